"""What is to be done, in numbers, and with which networks: what a forecast is made of. Imports no torch."""

from dataclasses import dataclass, field
from typing import Literal

from undertow.adapters.control.config import ControlNetConfig
from undertow.attention.policy import SCORES_OUT
from undertow.doors import checked_record
from undertow.encoders.clip_config import CLIP_VOCABULARY
from undertow.errors import ConfigError
from undertow.limits import COUNT, PARTS, STEPS, TOKENS
from undertow.quantization import QuantizedWeights, Scheme
from undertow.unet.config import UNetConfig

ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Bytes of a number, by the name of its type."""

KernelName = Literal[
    "auto", "math", "sdpa", "chunked", "sliced", "flash", "efficient", "cudnn", "xformers", "local-approximate"
]
"""As in `attention.policy.KERNEL_NAMES`, and "auto", the rule of `attention.choose` without measurements."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VAENetwork:
    """The part of a `VAEConfig` that decides about memory, under the same names."""

    level_channels: tuple[int, ...] = (128, 256, 512, 512)
    resnets: int = 2
    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    norm_groups: int = 32
    middle_attention: bool = True
    quant_conv: bool = True
    post_quant_conv: bool = True
    force_upcast: bool = False

    @property
    def factor(self) -> int:
        """Pixels per latent cell, along each side."""
        return 2 ** (len(self.level_channels) - 1)

    @classmethod
    def of(cls, config: object) -> "VAENetwork":
        """The network of a `VAEConfig`."""
        return cls(**{name: getattr(config, name) for name in cls.__slots__})


@dataclass(frozen=True, kw_only=True, slots=True)
class TextNetwork:
    """The part of a `ClipTextConfig` that decides about memory, under the same names. run: layers that are computed.
    pooled: a pooled vector is read, through a projection."""

    width: int
    layers: int
    heads: int
    intermediate: int
    activation: Literal["quick_gelu", "gelu"]
    projection: int | None = None
    vocabulary: int = CLIP_VOCABULARY
    positions: int = 77

    @property
    def pooled(self) -> bool:
        return self.projection is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class VisionNetwork:
    """The part of a `ClipVisionConfig` that decides about memory, under the same names."""

    width: int
    layers: int
    heads: int
    intermediate: int
    projection: int
    activation: Literal["quick_gelu", "gelu"]
    image_size: int = 224
    patch_size: int = 14
    channels: int = 3

    @property
    def tokens(self) -> int:
        """One of the whole picture, and one of each patch."""
        return 1 + (self.image_size // self.patch_size) ** 2

    @classmethod
    def of(cls, config: object) -> "VisionNetwork":
        """The network of a `ClipVisionConfig`."""
        return cls(**{name: getattr(config, name) for name in cls.__slots__})


VIT_H = VisionNetwork(width=1280, layers=32, heads=16, intermediate=5120, projection=1024, activation="gelu")
"""OpenCLIP ViT-H/14, which most IP-Adapters read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """The networks of a model. unet: `None` forecasts only the others. quantized: weights of the unet, the vae and the
    text encoders ("text") that are."""

    name: str
    unet: UNetConfig | None = None
    vae: VAENetwork | None = None
    text_encoders: tuple[TextNetwork, ...] = ()
    controlnet: ControlNetConfig | None = None
    quantized: tuple[QuantizedWeights, ...] = ()

    def schemes(self, component: str) -> tuple[Scheme, ...]:
        """In which a component's linear layers compute, besides plain ones."""
        return tuple(dict.fromkeys(s for one in self.quantized if one.component == component for s in one.schemes))

    @property
    def factor(self) -> int:
        """Pixels per cell of the U-Net's input, along each side: 1 for a model of pixels."""
        return 1 if self.vae is None else self.vae.factor


@checked_record
@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingWork:
    """A training step. kind: what learns. rank: of a LoRA. batch: pictures of a step. checkpointing: activations are
    computed again in the backward pass: none, those of every layer ("layers"), or of the layers of these stages
    ("down_blocks.0", "mid_block")."""

    kind: Literal["lora", "full"] = "lora"
    rank: int = 8
    batch: int = 1
    checkpointing: Literal["none", "layers"] | tuple[str, ...] = "none"

    def recomputes(self, stage: str) -> bool:
        """Whether the layers of a stage are computed again in the backward pass."""
        return self.checkpointing == "layers" if isinstance(self.checkpointing, str) else stage in self.checkpointing


AT_LEAST_ONE = (
    *("pictures", "branches", "references", "tokens", "steps"),
    *("lora_rank", "lora_slots", "feed_forward_chunks"),
)
AT_LEAST_NONE = (
    *("image_tokens", "image_prompt_bytes", "adapter_bytes"),
    *("regions", "shared_rows", "loras", "controlnets", "t2i_adapters"),
)
"""Fields of `Work`."""


@checked_record
@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What is to be computed.

    size: height and width in pixels. pictures: of the request. branches: rows of each picture in one forward (2 with
    guidance). rows: most rows of one forward; `None`: all. shared_rows: that one forward computes at least, with those
    of other requests and of padding. tokens: of the text, 77 for each chunk. image_tokens: of
    reference pictures (IP-Adapter). references: how many of these `image_encoder` sees at once. image_dtype: its type;
    `None` is float32, since files are in float16, which CPUs do not compute. image_prompt_bytes: of the networks of
    IP-Adapters. adapter_bytes: of files of LoRA, and of T2I-Adapters. regions: parts of the picture that see prompts of
    their own by attention, whose tokens are among `tokens`. loras: adapters that act in one row; merged: they are
    merged into the weights, of which copies are kept on the host. changes_all: one changes more of the U-Net than its
    transformers. changes_text: one changes the text encoders too, of which there is then a changed copy while they
    read. lora_slots: adapters that are held in slots. controlnets, t2i_adapters: how many act. kernels: queries, keys
    and the kernel of calls that have another than `kernel`, as measurements choose. attention_in_parts: kernels compute
    parts of the queries one after the other. feed_forward_chunks: parts in which feed-forward layers are computed.
    kept_text: keys and values of the text stay in memory from step to step. copied: what computes the U-Net and
    ControlNets has their weights a second time, in an order of its own.
    decode_bytes: budget of the VAE's exact tiles; `None`: no tiles. keep: what stays in memory during other stages.
    offloaded_layers: only the weights of one layer are in memory at a time. text_dtype, vae_dtype: `None` takes
    `dtype`. training: of a training step.
    """

    size: tuple[int, int] = (512, 512)
    pictures: int = 1
    branches: int = 2
    rows: int | None = None
    shared_rows: int = 0
    tokens: int = 77
    image_tokens: int = 0
    references: int = 1
    image_encoder: VisionNetwork = VIT_H
    image_dtype: str | None = None
    image_prompt_bytes: int = 0
    adapter_bytes: int = 0
    steps: int = 20
    dtype: str = "float32"
    text_dtype: str | None = None
    vae_dtype: str | None = None
    kernel: KernelName = "auto"
    kernels: tuple[tuple[int, int, KernelName], ...] = ()
    attention_in_parts: bool = False
    regions: int = 0
    loras: int = 0
    lora_rank: int = 16
    lora_slots: int = 8
    merged: bool = False
    changes_all: bool = False
    changes_text: bool = True
    controlnets: int = 0
    t2i_adapters: int = 0
    feed_forward_chunks: int = 1
    kept_text: bool = False
    copied: bool = False
    decode_bytes: int | None = None
    keep: tuple[str, ...] = field(default=("text", "image", "controlnet", "unet", "vae"))
    offloaded_layers: bool = False
    training: TrainingWork | None = None

    def __post_init__(self) -> None:
        for name in AT_LEAST_ONE:
            _require(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        for name in AT_LEAST_NONE:
            _require(getattr(self, name) >= 0, name, getattr(self, name), "must be at least 0")
        _require(self.rows is None or self.rows >= 1, "rows", self.rows, "must be at least 1, or None")
        _require(min(self.size) >= 1, "size", self.size, "must be at least 1 pixel")
        COUNT.require("pictures", self.pictures)
        STEPS.require("steps", self.steps)
        TOKENS.require("tokens", self.tokens)
        for name in ("loras", "lora_slots", "controlnets", "t2i_adapters"):
            PARTS.require(name, getattr(self, name))
        known = f"must be one of {', '.join(ITEM_BYTES)}"
        for name in ("dtype", "text_dtype", "vae_dtype", "image_dtype"):
            value = getattr(self, name)
            _require(value in ITEM_BYTES or (value is None and name != "dtype"), name, value, known)

    @property
    def holds_scores(self) -> bool:
        """Whether a kernel writes scores out."""
        return any(name in SCORES_OUT for name in (self.kernel, *(name for _, _, name in self.kernels)))

    @property
    def batch(self) -> int:
        """Rows of one forward of the U-Net."""
        wanted = max(self.pictures * self.branches, self.shared_rows)
        return wanted if self.rows is None else min(self.rows, wanted)

    def cells(self, subject: Subject) -> tuple[int, int]:
        """Height and width of the U-Net's input. Errors: `ConfigError` for a size that is no multiple of the factor."""
        factor = subject.factor
        height, width = self.size
        _require(not height % factor and not width % factor, "size", self.size, f"must be in multiples of {factor}")
        return height // factor, width // factor


def _require(holds: bool, field: str, value: object, rule: str) -> None:
    if not holds:
        raise ConfigError(field, value, rule)
