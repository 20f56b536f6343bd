"""The networks of a model that a user names: a family, an embedded model, a file, a folder or a Hub id."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from undertow.adapters.control.config import ControlNetConfig
from undertow.checkpoints.identify.few_steps import suggested_fields
from undertow.embedded import embedded_models
from undertow.errors import InvalidInput, UnknownCheckpoint
from undertow.limits import PIXELS
from undertow.lookup import did_you_mean
from undertow.memory.families import family
from undertow.memory.machine import this_machine
from undertow.memory.work import Subject, TextNetwork, VAENetwork
from undertow.quantization import NONE, Quantized, QuantizedWeights, as_quantization
from undertow.schedulers.levels import CarriedLevels, Levels
from undertow.schedulers.model_sampler import ModelSampler
from undertow.unet.config import UNetConfig
from undertow.unet.presets import PRESETS

if TYPE_CHECKING:
    from undertow.checkpoints.identify.outline import Outline
    from undertow.checkpoints.keymap.prefixes import TextKind
    from undertow.encoders.clip_config import ClipTextConfig
    from undertow.vae.config import VAEConfig

TYPES: Mapping[str, str] = {"F64": "float32", "F32": "float32", "BF16": "bfloat16"}
"""By the format's name of a stored type, the one that networks compute in; every other is a half, or less."""


@dataclass(frozen=True, kw_only=True)
class NamedModel:
    """A model that was named. stored: the type of its U-Net's weights; "float32" for a family, which has no file, and
    for embedded models, which the command line computes in float32. scheduler: diffusers' class that its folder
    names. sampler, levels: as in `Outline`. text_layers: of each text encoder."""

    subject: Subject
    stored: str = "float32"
    scheduler: str | None = None
    sampler: ModelSampler | str | None = None
    levels: Levels | CarriedLevels | None = None
    text_layers: "Mapping[TextKind, int]" = field(default_factory=dict)

    @property
    def suggested(self) -> dict[str, float]:
        """Fields of a request that it is best drawn with; nothing where the defaults are right."""
        unet = self.subject.unet
        return {} if unet is None else suggested_fields(unet, self.scheduler)


def named_model(source: str, quantize: Quantized | None = None) -> NamedModel:
    """The networks of a model, without weights and without torch: `PRESETS` and embedded models by name, else as
    `outline` finds them. quantize: as `undertow.load` takes it. Errors: those of `outline`; `UnknownCheckpoint` names
    the known names; `InvalidInput` for a family with quantized weights, since it has none to count."""
    quantization = "stored" if quantize is None else as_quantization(quantize)
    if source.lower() in PRESETS:
        if quantize not in (None, NONE):
            remedy = "name a file or a folder of one"
            raise InvalidInput("--quantize", quantize, f"nothing beside {source}, a family without weights", remedy)
        return NamedModel(subject=family(source.lower()))
    from undertow.checkpoints.identify.outline import outline  # noqa: PLC0415  slow to import, and families need it not

    embedded = embedded_models()
    if source in embedded:
        return _named(source, outline(str(embedded[source]), quantization), "float32")
    if "/" not in source and not Path(source).exists():
        known = [*PRESETS, *embedded]
        remedy = f"{did_you_mean(source, known)}known names: {', '.join(known)}"
        raise UnknownCheckpoint(source, "no such file or folder, and no known name", remedy)
    found = outline(source, quantization)
    stored = "float32" if found.stored is None else TYPES.get(found.stored, "float16")
    return _named(found.name, found, stored)


def subject_of(
    name: str,
    unet: UNetConfig,
    vae: "VAEConfig | None",
    text: "Iterable[tuple[TextKind, ClipTextConfig]]",
    quantized: Iterable[QuantizedWeights] = (),
) -> Subject:
    """The networks of a model as a forecast takes them. Its ControlNets are those that are made for it: its encoder.
    quantized: by component as checkpoints call them."""
    textual = unet.context_dim is not None
    return Subject(
        name=name,
        unet=unet,
        vae=None if vae is None else VAENetwork.of(vae),
        text_encoders=tuple(_text_network(kind, config) for kind, config in text),
        controlnet=ControlNetConfig(unet=replace(unet, in_channels=4, guidance_dim=None)) if textual else None,
        quantized=tuple(
            one if one.component in ("unet", "vae") else replace(one, component="text") for one in quantized
        ),
    )


def require_size(argument: str, size: tuple[int, int], subject: Subject) -> None:
    """size: height and width in pixels. Errors: `InvalidInput` for one that the model cannot draw, or nobody does."""
    factor, (height, width) = subject.factor, size
    PIXELS.require(argument, height * width, f"{width}x{height}")
    if min(size) < factor or height % factor or width % factor:
        near = "x".join(str(max(factor, round(side / factor) * factor)) for side in (width, height))
        expected = f"multiples of {factor} pixels, as {subject.name} draws them"
        raise InvalidInput(argument, f"{width}x{height}", expected, f"the nearest is {near}")


def _named(name: str, found: "Outline", stored: str) -> NamedModel:
    return NamedModel(
        subject=subject_of(name, found.unet, found.vae, found.text.items(), found.quantized),
        stored=stored,
        scheduler=found.scheduler,
        sampler=found.sampler,
        levels=found.levels,
        text_layers={kind: config.layers for kind, config in found.text.items()},
    )


def _text_network(kind: "TextKind", config: "ClipTextConfig") -> TextNetwork:
    """Of OpenCLIP-H the last layer is never read; the pooled vector only of bigG (`encoders.text_stack`)."""
    return TextNetwork(
        width=config.width,
        layers=config.layers - (kind == "openclip_h"),
        heads=config.heads,
        intermediate=config.intermediate,
        activation=config.activation,
        projection=config.projection if kind == "openclip_g" else None,
        vocabulary=config.vocabulary,
        positions=config.positions,
    )


def computed_types(
    stored: str, asked: str | None, vae_asked: str | None, *, device: str, overflows: bool
) -> tuple[str, str]:
    """The types of the U-Net and of the VAE, as `checkpoints.read.dtypes.choose_dtypes` takes them when a model is
    loaded. overflows: the VAE's activations leave float16's range."""
    wanted = stored if asked is None else asked
    network = wanted if asked == "float16" or computes(wanted, device) else "float32"
    if vae_asked is not None:
        return network, vae_asked
    return network, wanted if computes(wanted, device) and not (wanted == "float16" and overflows) else "float32"


def computes(dtype: str, device: str) -> bool:
    """`processor.computes` without torch: what this machine's processor says of itself."""
    if device != "cpu" or dtype == "float32":
        return True
    return dtype == "bfloat16" and this_machine().bfloat16
