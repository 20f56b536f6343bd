"""What a model is made of, from its configs and the headers of its files alone: no weights are read, torch is not
imported, and of a model on the Hub nothing but these is fetched."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from undertow.checkpoints.files.header import HeaderOnly, TensorInfo, stored_kind
from undertow.checkpoints.files.hub import files_to_fetch
from undertow.checkpoints.files.listing import Listing, list_files
from undertow.checkpoints.files.model_folder import CONFIG
from undertow.checkpoints.files.place import model_name
from undertow.checkpoints.files.scaled import without_scales
from undertow.checkpoints.identify.families import ENCODERS, FamilyName, describe_family
from undertow.checkpoints.identify.file_levels import levels_of_file
from undertow.checkpoints.identify.identification import identify_unet, marked, match_without_unet, readable_contents
from undertow.checkpoints.identify.prediction import Hints, find_zero_terminal_snr
from undertow.checkpoints.identify.self_description import described_text
from undertow.checkpoints.identify.text_architecture import kind_of_text, transformers_config
from undertow.checkpoints.identify.unsupported import refuse_other_parts, refuse_other_pipelines
from undertow.checkpoints.identify.vae_architecture import vae_config_of
from undertow.checkpoints.keymap.prefixes import TextKind
from undertow.encoders.clip_config import ClipTextConfig, config_from_transformers
from undertow.errors import ConfigError, UnknownCheckpoint, naming_file
from undertow.quantization import METADATA, Quantization, QuantizedWeights
from undertow.schedulers.betas import LinearBetas, ScaledLinearBetas
from undertow.schedulers.levels import CarriedLevels, DiscreteLevels, Levels, read_levels
from undertow.schedulers.model_sampler import ModelSampler
from undertow.schedulers.samplers import folder_sampler
from undertow.unet.config import UNetConfig
from undertow.unet.diffusers_config import config_from_diffusers
from undertow.vae.config import VAEConfig
from undertow.vae.diffusers_config import AUTOENCODER, vae_config_from_diffusers

INDEX = "model_index.json"
SCHEDULER = "scheduler/scheduler_config.json"
TEXT_FOLDERS = ("text_encoder", "text_encoder_2")

Wanted = Quantization | Literal["stored"] | None


@dataclass(frozen=True, kw_only=True)
class Outline:
    """The networks of a model. text: the encoders that its family reads, in their order. stored: the type that most of
    the U-Net's weights have in the file, as safetensors call it; `None` where there are no weights yet. quantized: what
    undertow quantized when it wrote it, or will when it reads it. scheduler: diffusers' class that its folder names.
    sampler: that it is drawn with where a request names none, or why that is not known. levels: of noise; `None` for
    those of a scheduler that is not known."""

    name: str
    family: FamilyName
    unet: UNetConfig
    vae: VAEConfig | None = None
    text: Mapping[TextKind, ClipTextConfig] = field(default_factory=dict)
    stored: str | None = None
    quantized: tuple[QuantizedWeights, ...] = ()
    scheduler: str | None = None
    sampler: ModelSampler | str | None = None
    levels: Levels | CarriedLevels | None = None


def outline(source: str, quantization: Wanted = "stored") -> Outline:
    """The networks of the model in a .safetensors file, a diffusers folder or at a Hub id. quantization: how it is
    loaded; "stored" as its files were written, `None` with plain weights.

    Errors: `UnknownCheckpoint`, `UnsupportedModel`, `UnsafeFile`, `CorruptFile`, `ConfigError`.
    """
    listing, file = list_files(source)
    return (
        _of_folder(listing, quantization)
        if file is None
        else _of_file(without_scales(listing.header(file)), quantization)
    )


def _of_file(file: HeaderOnly, quantization: Wanted) -> Outline:
    contents = readable_contents(file)
    if "unet" not in contents.parts:
        held = match_without_unet(contents).title
        raise UnknownCheckpoint(file.path, f"{held}, which draw nothing by themselves", "give a file with a U-Net")
    part = contents.parts["unet"]
    config, match = identify_unet(file, part, None)
    described = described_text(file)
    markers = marked(contents)
    text = {}
    for kind in ENCODERS[match.family]:
        if kind in contents.parts:
            own = described.get(kind)
            shapes = contents.parts[kind].shapes(file.tensors)
            text[kind] = config_from_transformers(transformers_config(kind, shapes) if own is None else own, kind)
    return Outline(
        name=model_name(file.path),
        family=match.family,
        unet=config,
        vae=vae_config_of(file, contents, match.family),
        text=text,
        levels=levels_of_file(file, contents, zero_terminal_snr=find_zero_terminal_snr(Hints(markers=markers)).value),
        stored=stored_kind(_plain(file, part.mappings)),
        quantized=tuple(
            QuantizedWeights.of(kind, rules.layers(kind, shapes), shapes)
            for kind in ("unet", "vae", *text)
            if kind in contents.parts and (rules := _rules(file, quantization)) is not None
            for shapes in (_as_loaded(kind, contents.parts[kind].shapes(file.tensors)),)
        ),
    )


def _plain(file: HeaderOnly, names: Iterable[str]) -> Iterator[TensorInfo]:
    """Of a file that undertow quantized, what it left as it was."""
    every = METADATA not in file.metadata
    return (file.tensors[name] for name in names if every or file.tensors[name].packed is None)


def _as_loaded(kind: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Older files have the matrices of the autoencoder's attention as convolutions of one pixel."""
    matrices = kind == "vae"
    return {
        name: shape[:2] if matrices and ".attentions." in name and shape[2:] == (1, 1) else shape
        for name, shape in shapes.items()
    }


def _rules(file: HeaderOnly, quantization: Wanted) -> Quantization | None:
    """By which the weights in a file are quantized once they are loaded."""
    if quantization != "stored":
        return quantization
    return Quantization.from_json(file.metadata[METADATA]) if METADATA in file.metadata else None


def _quantized(
    files: Listing, places: Mapping[str, str], read: Callable[[str], HeaderOnly], quantization: Wanted
) -> Iterator[QuantizedWeights]:
    """What is quantized of each component. places: folder of each."""
    chosen = files_to_fetch(list(files.names), None)
    for component, folder in places.items():
        own = [name for name in chosen if name.endswith(".safetensors") and name.rpartition("/")[0] == folder]
        headers = [without_scales(read(name)) for name in own]
        rules = _rules(headers[0], quantization) if headers else None
        if rules is not None:
            shapes = {name: one.shape for header in headers for name, one in header.tensors.items()}
            yield QuantizedWeights.of(component, rules.layers(component, shapes), shapes)


def _of_folder(files: Listing, quantization: Wanted) -> Outline:
    names = files.names
    pipeline = None
    if INDEX in names:
        index = files.json(INDEX)
        refuse_other_pipelines(files.path, index)
        pipeline = str(index.get("_class_name"))
    inside = "" if CONFIG in names else "unet/"
    if f"{inside}{CONFIG}" not in names:
        raise UnknownCheckpoint(
            files.path, f"no {CONFIG}, no unet/{CONFIG}", "give a diffusers model or pipeline folder"
        )
    described = files.json(f"{inside}{CONFIG}")
    if not inside and described.get("_class_name") == AUTOENCODER:
        problem = "an autoencoder without a U-Net, which draws nothing by itself"
        raise UnknownCheckpoint(files.path, problem, "give a whole model; in Python, this as `vae=`")
    if not inside:
        refuse_other_parts(files.path, described)
    with naming_file(files.path / inside / CONFIG):
        config = config_from_diffusers(described)
    text: dict[TextKind, ClipTextConfig] = {}
    places: dict[str, str] = {"unet": inside.rstrip("/"), "vae": "vae"}
    for folder in TEXT_FOLDERS:
        if f"{folder}/{CONFIG}" in names:
            described = files.json(f"{folder}/{CONFIG}")
            with naming_file(files.path / folder / CONFIG):
                kind = kind_of_text(folder, described)
                text[kind] = config_from_transformers(described, kind)
            places[kind] = folder
    weights = [name for name in files_to_fetch(list(names), None) if _is_weights(name, inside)]
    read = cache(files.header)  # which asks the Hub
    header = without_scales(read(weights[0])) if weights else None
    scheduler = files.json(SCHEDULER) if SCHEDULER in names else {}
    return Outline(
        name=model_name(files.path),
        family=describe_family(config).family,
        unet=config,
        vae=_vae_config(files) if f"vae/{CONFIG}" in names else None,
        text=text,
        stored=None if header is None else stored_kind(_plain(header, header.tensors)),
        quantized=tuple(_quantized(files, places, read, quantization)),
        scheduler=str(scheduler.get("_class_name")) if SCHEDULER in names else None,
        sampler=folder_sampler(scheduler or None, pipeline),
        levels=_levels(scheduler, config),
    )


def _levels(scheduler: Mapping[str, Any], unet: UNetConfig) -> Levels | None:
    """As `pipeline_folder.open_folder` has them; `None` for those of a scheduler that is not known."""
    if not scheduler:
        return DiscreteLevels(betas=ScaledLinearBetas() if unet.context_dim is not None else LinearBetas())
    try:
        return read_levels(scheduler)
    except ConfigError:
        return None


def _vae_config(files: Listing) -> VAEConfig:
    with naming_file(files.path / "vae" / CONFIG):
        return vae_config_from_diffusers(files.json(f"vae/{CONFIG}"))


def _is_weights(name: str, inside: str) -> bool:
    return name.endswith(".safetensors") and name.rpartition("/")[0] == inside.rstrip("/")
