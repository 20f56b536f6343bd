"""What a checkpoint is: family, architecture, what the network predicts and how sure that is."""

from dataclasses import dataclass, replace
from pathlib import Path

from undertow.checkpoints.files.weights import AnyTensor, Weights, open_weights
from undertow.checkpoints.identify.families import FamilyName, family_of_structure, find_family
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
    refuse_other_files,
    refuse_other_networks,
    refuse_quantized,
    refuse_relatives,
)
from undertow.checkpoints.keymap.contents import Contents, read_contents
from undertow.errors import ConfigError, UnknownCheckpoint
from undertow.unet.config import UNetConfig

GIVE_CONFIG = "if it is a Stable Diffusion U-Net of unusual widths, give its architecture as `config`"


@dataclass(frozen=True, kw_only=True)
class Identification:
    """What was found. config: `None` when the checkpoint has no U-Net. title: the published architecture's name."""

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
    """What a single safetensors file is, from its names, shapes and a few values.

    config: the architecture, when it cannot be derived. prediction, zero_terminal_snr: overrule what is found.
    Errors: `UnsupportedModel` names a model that undertow does not run; `UnknownCheckpoint`, `UnsafeFile`,
    `CorruptFile`.
    """
    weights = source if isinstance(source, Weights) else open_weights(source)
    contents = readable_contents(weights)
    return identify_contents(
        weights, contents, config=config, prediction=prediction, zero_terminal_snr=zero_terminal_snr
    )


def readable_contents(weights: Weights) -> Contents:
    """The parts of a file that undertow can use. Errors: `UnsupportedModel`, `UnknownCheckpoint`."""
    refuse_quantized(weights.path, weights.tensors, weights.metadata)
    contents = read_contents(weights.tensors)
    refuse_other_networks(weights.path, contents.names)
    if not contents.parts:
        refuse_other_files(weights.path, contents.names)
        some = ", ".join(repr(name) for name in list(weights.tensors)[:3])
        raise UnknownCheckpoint(
            weights.path, f"none of its {len(weights.tensors)} tensors is known ({some}, ...)", SUPPORTED_MODELS
        )
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
    """`identify` for a file whose parts are known. sidecar_of: the file beside which a yaml may lie."""
    family, variant, title, evidence = _family_without_unet(contents)
    if "unet" in contents.parts:
        shapes = contents.parts["unet"].shapes(weights.tensors)
        if config is None:
            config = described_unet(weights)
        if config is None:
            refuse_relatives(weights.path, shapes)
            config = _derive(weights.path, shapes)
        family, variant, title, evidence = describe_family(config)
    hints = Hints(
        markers=tuple(short for short, name in contents.names.items() if name in contents.markers),
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


def describe_family(config: UNetConfig) -> tuple[FamilyName, str, str, str]:
    """(family, variant, title, evidence) of an architecture."""
    text = "no text" if config.context_dim is None else f"text {config.context_dim} wide"
    channels = "/".join(map(str, config.block_out_channels))
    shape = f"{text}, {config.in_channels} input channels, levels of {channels} channels"
    known = find_family(config)
    if known is not None:
        return known.name, known.variant, known.title, shape
    family = family_of_structure(config)
    return family, "custom", f"a U-Net of unpublished widths, built like {family}", shape


def _family_without_unet(contents: Contents) -> tuple[FamilyName, str, str, str]:
    parts = set(contents.parts)
    family: FamilyName = "custom"
    if "openclip_g" in parts:
        family = "sdxl" if "clip_l" in parts else "sdxl_refiner"
    elif "openclip_h" in parts:
        family = "sd2"
    elif "clip_l" in parts:
        family = "sd1"
    return family, "parts", f"parts of a pipeline without a U-Net ({', '.join(sorted(parts))})", "its text encoders"


def _derive(path: Path, shapes: dict[str, tuple[int, ...]]) -> UNetConfig:
    try:
        config = derive_config(shapes)
    except (ConfigError, KeyError, IndexError) as err:
        raise UnknownCheckpoint(path, f"a U-Net of an unknown architecture ({err})", GIVE_CONFIG) from err
    if find_family(config) is not None:
        return replace(config, sample_size=_published_size(config))
    return config


def _published_size(config: UNetConfig) -> int:
    family = find_family(config)
    return config.sample_size if family is None else family.config().sample_size


def _sd2_statistic(weights: Weights, contents: Contents) -> AnyTensor | None:
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
