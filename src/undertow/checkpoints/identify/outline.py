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
from undertow.checkpoints.identify.few_steps import distilled_at
from undertow.checkpoints.identify.identification import identify_unet, match_without_unet, readable_contents
from undertow.checkpoints.identify.self_description import described_text
from undertow.checkpoints.identify.text_architecture import kind_of_text, transformers_config
from undertow.checkpoints.identify.unsupported import refuse_other_pipelines
from undertow.checkpoints.identify.vae_architecture import vae_config_of
from undertow.checkpoints.keymap.prefixes import TextKind
from undertow.encoders.clip_config import ClipTextConfig, config_from_transformers
from undertow.errors import UnknownCheckpoint, naming_file
from undertow.known_names import PathName
from undertow.quantization import METADATA, Quantization, QuantizedWeights
from undertow.unet.config import UNetConfig
from undertow.unet.diffusers_config import config_from_diffusers
from undertow.vae.config import VAEConfig
from undertow.vae.diffusers_config import vae_config_from_diffusers

INDEX = "model_index.json"
SCHEDULER = "scheduler/scheduler_config.json"
TEXT_FOLDERS = ("text_encoder", "text_encoder_2")

Wanted = Quantization | Literal["stored"] | None


@dataclass(frozen=True, kw_only=True)
class Outline:
    """The networks of a model. text: the encoders that its family reads, in their order. stored: the type that most of
    the U-Net's weights have in the file, as safetensors call it; `None` where there are no weights yet. quantized: what
    undertow quantized when it wrote it, or will when it reads it. scheduler: diffusers' class that its folder names.
    distilled_at: the most steps that it draws along its own levels, where that is said. path: what its noise levels go
    along, as `diffusion.paths` calls it; `None` for single files, of which more than names of tensors would have to be
    read."""

    name: str
    family: FamilyName
    unet: UNetConfig
    vae: VAEConfig | None = None
    text: Mapping[TextKind, ClipTextConfig] = field(default_factory=dict)
    stored: str | None = None
    quantized: tuple[QuantizedWeights, ...] = ()
    scheduler: str | None = None
    distilled_at: int | None = None
    path: PathName | None = None


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
    if INDEX in names:
        refuse_other_pipelines(files.path, files.json(INDEX))
    inside = "" if CONFIG in names else "unet/"
    if f"{inside}{CONFIG}" not in names:
        raise UnknownCheckpoint(
            files.path, f"no {CONFIG}, no unet/{CONFIG}", "give a diffusers model or pipeline folder"
        )
    with naming_file(files.path / inside / CONFIG):
        config = config_from_diffusers(files.json(f"{inside}{CONFIG}"))
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
        distilled_at=_distilled_at(files, scheduler),
        path=path_of(scheduler),
    )


def path_of(scheduler: Mapping[str, Any]) -> PathName:
    """What the levels of a folder's scheduler go along. scheduler: its config; nothing where there is none."""
    name = str(scheduler.get("_class_name"))
    if name.startswith("FlowMatch"):
        return "RectifiedFlow"
    return "VarianceExploding" if name.startswith("EDM") else "VariancePreserving"


def _distilled_at(files: Listing, scheduler: Mapping[str, Any]) -> int | None:
    with naming_file(files.path / SCHEDULER):
        return distilled_at(scheduler)


def _vae_config(files: Listing) -> VAEConfig:
    with naming_file(files.path / "vae" / CONFIG):
        return vae_config_from_diffusers(files.json(f"vae/{CONFIG}"))


def _is_weights(name: str, inside: str) -> bool:
    return name.endswith(".safetensors") and name.rpartition("/")[0] == inside.rstrip("/")
