"""What a ControlNet and a T2I-Adapter are built from, and the `config.json` of diffusers' ControlNetModel: most of its
fields are those of UNet2DConditionModel, read by `unet.diffusers_config`; the rest describe the hint."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from undertow.errors import ConfigError
from undertow.json_fields import flag, is_whole, whole
from undertow.limits import LAYERS, WIDTH
from undertow.unet.config import UNetConfig
from undertow.unet.diffusers_config import CONDITIONAL, config_from_diffusers, config_to_diffusers


@dataclass(frozen=True, kw_only=True, slots=True)
class ControlNetConfig:
    """A ControlNet's architecture (arXiv:2302.05543).

    unet: the architecture of its encoder and middle block; fields about the decoder are ignored. The encoder may have
    less attention than that of the U-Net it controls (SDXL's mid and small ControlNets). hint_channels: widths of the
    layers that embed the hint, each after the first at half the resolution of the one before. hint_in: number of
    channels of the hint. global_pool: residuals are averaged over the picture (shuffle). bgr: the network was trained
    on hints in BGR order. Errors: `ConfigError`.
    """

    unet: UNetConfig
    hint_channels: tuple[int, ...] = (16, 32, 96, 256)
    hint_in: int = 3
    global_pool: bool = False
    bgr: bool = False

    def __post_init__(self) -> None:
        if not self.hint_channels or min(self.hint_channels) < 1:
            raise ConfigError("hint_channels", self.hint_channels, "needs at least one width, each at least 1")
        if max(*self.hint_channels, self.hint_in) > WIDTH.most:
            raise ConfigError("hint_channels", (*self.hint_channels, self.hint_in), WIDTH.rule)
        if len(self.hint_channels) > LAYERS.most:
            raise ConfigError("hint_channels", len(self.hint_channels), LAYERS.rule)
        if self.hint_in < 1:
            raise ConfigError("hint_in", self.hint_in, "must be at least 1")
        if self.unet.guidance_dim is not None:
            rule = "must be None: a ControlNet takes no guidance"
            raise ConfigError("unet.guidance_dim", self.unet.guidance_dim, rule)


T2IKind = Literal["full", "light", "xl"]


@dataclass(frozen=True, kw_only=True, slots=True)
class T2IStage:
    """One stage of a T2I-Adapter, which computes one feature map. down: whether it halves the resolution."""

    inputs: int
    outputs: int
    down: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class T2IConfig:
    """A T2I-Adapter's architecture (arXiv:2302.08453), in diffusers' terms.

    channels: widths of the stages; "light" repeats the last one. resnets: ResBlocks per stage. hint_in: channels of the
    hint. hint_factor: pixels of the hint per cell of the first feature map, in each direction. Errors: `ConfigError`.
    """

    kind: T2IKind = "full"
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    resnets: int = 2
    hint_in: int = 3
    hint_factor: int = 8

    def __post_init__(self) -> None:
        for name in ("resnets", "hint_in", "hint_factor"):
            if getattr(self, name) < 1:
                raise ConfigError(name, getattr(self, name), "must be at least 1")
            if getattr(self, name) > WIDTH.most:
                raise ConfigError(name, getattr(self, name), WIDTH.rule)
        if self.layers > LAYERS.most:
            raise ConfigError("layers", self.layers, LAYERS.rule)
        if not self.channels or min(self.channels) < 1:
            raise ConfigError("channels", self.channels, "needs at least one width, each at least 1")
        if self.kind == "light" and any(width % 4 for width in self.channels):
            raise ConfigError(
                "channels", self.channels, "must be multiples of 4: a light stage is a quarter as wide inside"
            )
        if self.kind == "xl" and (len(self.channels) != 4 or self.channels[2] != self.channels[3]):
            raise ConfigError("channels", self.channels, "must be four in the XL form, the last two equal")

    @property
    def layers(self) -> int:
        """ResBlocks."""
        return self.resnets * (len(self.channels) + (self.kind == "light"))

    def stages(self) -> tuple[T2IStage, ...]:
        """One record for each feature map, the finest first."""
        channels = self.channels
        if self.kind == "light":
            inputs = (self.hint_in * self.hint_factor**2, *channels)
            outputs = (*channels, channels[-1])
        else:
            inputs, outputs = (channels[0], *channels[:-1]), channels
        halved = (2,) if self.kind == "xl" else range(1, len(outputs))
        return tuple(
            T2IStage(inputs=wide, outputs=narrow, down=index in halved)
            for index, (wide, narrow) in enumerate(zip(inputs, outputs, strict=True))
        )


CONTROLNET = "ControlNetModel"
T2I = "T2IAdapter"

_DEFAULTS: Mapping[str, Any] = {
    "block_out_channels": [320, 640, 1280, 1280],
    "cross_attention_dim": 1280,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
}
"""What the absence of a field means in ControlNetModel, where that differs from UNet2DConditionModel."""

_OF_THE_HINT = (
    "conditioning_channels",
    "conditioning_embedding_out_channels",
    "controlnet_conditioning_channel_order",
    "global_pool_conditions",
)
_NOT_THERE = ("out_channels", "up_block_types", "sample_size", "dropout", "time_cond_proj_dim", "time_embedding_dim")
"""What a ControlNetModel does not have: a decoder, dropout, a guidance embedding, another width of time."""


def control_config_from_diffusers(json: Mapping[str, Any]) -> ControlNetConfig:
    """The architecture that a ControlNetModel's config describes. Errors: `ConfigError` names the field."""
    hint_in = whole(json, "conditioning_channels", 3)
    channels = json.get("conditioning_embedding_out_channels", [16, 32, 96, 256])
    order = json.get("controlnet_conditioning_channel_order", "rgb")
    pool = flag(json, "global_pool_conditions", False)
    if not isinstance(channels, list | tuple) or not all(map(is_whole, channels)):
        raise ConfigError("conditioning_embedding_out_channels", channels, "must be a list of whole numbers")
    if order not in ("rgb", "bgr"):
        raise ConfigError("controlnet_conditioning_channel_order", order, "must be 'rgb' or 'bgr'")
    unet = {**_DEFAULTS, **{name: value for name, value in json.items() if name not in _OF_THE_HINT}}
    down = unet["down_block_types"]
    if not isinstance(down, list | tuple) or not all(isinstance(kind, str) for kind in down):
        raise ConfigError("down_block_types", down, "must be a list of names")
    unet |= {
        "_class_name": CONDITIONAL,
        "up_block_types": [kind.replace("Down", "Up") for kind in down[::-1]],
        "time_cond_proj_dim": None,
    }
    depths = unet.get("transformer_layers_per_block")
    if isinstance(depths, list | tuple) and any(isinstance(depth, list | tuple) for depth in depths):
        unet.setdefault("reverse_transformer_layers_per_block", 1)  # a decoder that it does not have
    return ControlNetConfig(
        unet=config_from_diffusers(unet),
        hint_channels=tuple(channels),
        hint_in=hint_in,
        global_pool=pool,
        bgr=order == "bgr",
    )


def control_config_to_diffusers(config: ControlNetConfig) -> dict[str, Any]:
    """The config as the contents of `config.json`. A time embedding whose width is not 4 times that of the first level
    is written under the U-Net's name for it; diffusers ignores the field with a warning and cannot load such a network.
    Errors: `ConfigError` for networks that ControlNetModel cannot express."""
    unet = config.unet
    if unet.context_dim is None:
        raise ConfigError("unet.context_dim", None, "diffusers has ControlNets of networks with text only")
    fields = config_to_diffusers(unet)
    if unet.time_dim is None or unet.time_dim == 4 * unet.levels[0].channels:
        fields.pop("time_embedding_dim")
    dropped = set(_NOT_THERE) - {"time_embedding_dim"}
    return {
        **{name: value for name, value in fields.items() if name not in dropped},
        "_class_name": CONTROLNET,
        "conditioning_channels": config.hint_in,
        "conditioning_embedding_out_channels": list(config.hint_channels),
        "controlnet_conditioning_channel_order": "bgr" if config.bgr else "rgb",
        "global_pool_conditions": config.global_pool,
    }
