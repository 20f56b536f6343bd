"""What a checkpoint is: family, architecture, what the network predicts and how sure that is."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from undertow.checkpoints.files.model_file import open_model_file
from undertow.checkpoints.files.weights import Described, Weights
from undertow.checkpoints.identify.families import (
    FamilyMatch,
    FamilyName,
    describe_family,
    describe_match,
    find_family,
)
from undertow.checkpoints.identify.prediction import (
    SD2_STATISTIC,
    Evidence,
    Hints,
    Prediction,
    find_prediction,
    find_zero_terminal_snr,
    read_sidecar,
)
from undertow.checkpoints.identify.self_description import described_unet
from undertow.checkpoints.identify.unet_architecture import derive_config
from undertow.checkpoints.identify.unsupported import (
    SUPPORTED_MODELS,
    refuse_other_architectures,
    refuse_other_networks,
    refuse_quantized,
    refuse_relatives,
    refuse_unrecognized,
)
from undertow.checkpoints.keymap.contents import Contents, Part, read_contents
from undertow.errors import ConfigError, UnknownCheckpoint
from undertow.unet.config import UNetConfig

if TYPE_CHECKING:
    from undertow.shapes import AnyTensor

GIVE_CONFIG = "if it is a Stable Diffusion U-Net of unusual widths, give its architecture as `config`"


@dataclass(frozen=True, kw_only=True)
class Identification:
    """What a checkpoint was identified as. config: `None` when it has no U-Net. title: the architecture's name."""

    family: FamilyName
    variant: str
    title: str
    config: UNetConfig | None
    family_evidence: str
    prediction: Evidence[Prediction]
    zero_terminal_snr: Evidence[bool]


def identify(
    source: str | Path | Weights,
    *,
    config: UNetConfig | None = None,
    prediction: str | None = None,
    zero_terminal_snr: bool | None = None,
) -> Identification:
    """Identifies a single safetensors or GGUF file by its names, shapes and a few values.

    config: the architecture, when it cannot be derived. prediction, zero_terminal_snr: override what is found.
    Errors: `UnsupportedModel` names a model that undertow does not run; `UnknownCheckpoint`, `UnsafeFile`,
    `CorruptFile`.
    """
    weights = source if isinstance(source, Weights) else open_model_file(source)
    contents = readable_contents(weights)
    return identify_contents(
        weights, contents, config=config, prediction=prediction, zero_terminal_snr=zero_terminal_snr
    )


def readable_contents(weights: Described) -> Contents:
    """The parts of a file that undertow can read. Errors: `UnsupportedModel`, `UnknownCheckpoint`."""
    refuse_quantized(weights.path, weights.tensors, weights.metadata)
    refuse_other_architectures(weights.path, weights.tensors, weights.metadata)
    contents = read_contents(weights.tensors)
    refuse_other_networks(weights.path, contents.names)
    if not contents.parts:
        refuse_unrecognized(weights.path, contents, known_as="known", remedy=SUPPORTED_MODELS)
    return contents


def identify_contents(
    weights: Weights,
    contents: Contents,
    *,
    config: UNetConfig | None = None,
    prediction: str | None = None,
    zero_terminal_snr: bool | None = None,
    sidecar_of: Path | None = None,
) -> Identification:
    """`identify` for a file whose parts are known. sidecar_of: the file beside which to look for a YAML config."""
    if "unet" in contents.parts:
        config, match = identify_unet(weights, contents.parts["unet"], config)
    else:
        match = match_without_unet(contents)
    family, variant, title, evidence = match
    hints = Hints(
        markers=marked(contents),
        metadata=weights.metadata,
        sidecar=read_sidecar(weights.path if sidecar_of is None else sidecar_of),
        global_step=_global_step(weights, contents),
        statistic=lambda: _sd2_statistic(weights, contents),
    )
    found = find_prediction(family, hints, prediction)
    if config is not None and family == "sd2" and variant == "base" and found.value == "v":
        # The v model was trained at 768 pixels, and its attention overflows in half precision.
        title, config = "Stable Diffusion 2.x v (768)", replace(config, upcast_attention=True, sample_size=96)
    return Identification(
        family=family,
        variant=variant,
        title=title,
        config=config,
        family_evidence=evidence,
        prediction=found,
        zero_terminal_snr=find_zero_terminal_snr(hints, zero_terminal_snr),
    )


def marked(contents: Contents) -> tuple[str, ...]:
    """Short names of the markers in a file: tensors that say something by being there."""
    return tuple(short for short, name in contents.names.items() if name in contents.markers)


def identify_unet(weights: Described, part: Part, config: UNetConfig | None) -> tuple[UNetConfig, FamilyMatch]:
    """The U-Net's architecture, as given, as the header describes it or as shapes tell it, and what it is."""
    config = described_unet(weights) if config is None else config
    if config is not None:
        return config, describe_family(config)
    shapes = part.shapes(weights.tensors)
    refuse_relatives(weights.path, shapes)
    config = _derive(weights.path, shapes)
    published = find_family(config)
    if published is not None:  # shapes do not tell the size of the pictures
        config = replace(config, sample_size=published.config().sample_size)
    return config, describe_match(config, published)


def match_without_unet(contents: Contents) -> FamilyMatch:
    parts = set(contents.parts)
    family: FamilyName = "custom"
    if "openclip_g" in parts:
        family = "sdxl" if "clip_l" in parts else "sdxl_refiner"
    elif "openclip_h" in parts:
        family = "sd2"
    elif "clip_l" in parts:
        family = "sd1"
    title = f"parts of a pipeline without a U-Net ({', '.join(sorted(parts))})"
    return FamilyMatch(family, "parts", title, "its text encoders")


def _derive(path: Path, shapes: dict[str, tuple[int, ...]]) -> UNetConfig:
    try:
        return derive_config(shapes)
    except (ConfigError, KeyError, IndexError) as err:
        raise UnknownCheckpoint(path, f"a U-Net of an unknown architecture ({err})", GIVE_CONFIG) from err


def _sd2_statistic(weights: Weights, contents: Contents) -> "AnyTensor | None":
    mappings = contents.parts["unet"].mappings if "unet" in contents.parts else {}
    for name, mapping in mappings.items():
        if mapping.ours == (SD2_STATISTIC,):
            return weights.read(name)
    return None


def _global_step(weights: Weights, contents: Contents) -> int | None:
    name = contents.names.get("global_step")
    if name is not None and weights.tensors[name].count == 1:
        return int(weights.read(name).item())
    said = weights.metadata.get("global_step", "")
    return int(said) if said.isdigit() and len(said) < 12 else None
