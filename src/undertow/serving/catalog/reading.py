"""What a file or a folder is, a model, an adapter or an embedding, by its header alone: names and shapes of tensors,
and diffusers' configs. The workers, who load it, look closer."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from undertow.adapters.control.control_refusals import refuse_other_controls
from undertow.adapters.files.opened import OpenedAdapter, open_adapter
from undertow.adapters.files.picture_readers import CLASSES, IMAGE_PROMPT, reader_named
from undertow.adapters.image_prompt.names import require_image_prompt
from undertow.adapters.lora.leaves import LoraNames, read_lora_names
from undertow.adapters.lora.lora_refusals import TEXT_READER, refuse_unread, require_lora
from undertow.adapters.lora.recognition import require_whole
from undertow.checkpoints.files.hub import cached_copy
from undertow.checkpoints.files.place import is_hub_id
from undertow.checkpoints.files.words import read_vocabulary
from undertow.checkpoints.identify.families import describe_family
from undertow.checkpoints.identify.unsupported import refuse_quantized
from undertow.checkpoints.read.inversion_names import holds_inversions, inversions_in, names_of
from undertow.embedded import embedded_models
from undertow.errors import CheckpointError, UnknownCheckpoint
from undertow.known_names import PRECISIONS, PrecisionName
from undertow.memory.subjects import NamedModel, computed_types, named_model
from undertow.serving.catalog.entries import EMBEDDING, AdapterEntry, ModelEntry
from undertow.serving.settings import ServerSettings
from undertow.unet.presets import PRESETS

if TYPE_CHECKING:
    from undertow.checkpoints.files.header import TensorInfo

IMAGE_ENCODER = "image_encoder"
KEYS = ("attn2.to_k.weight", "to_k_ip.weight", "to_k_ip.0.weight")
"""How the name of a tensor ends, in a ControlNet or an IP-Adapter, whose inputs are the text's, or are as wide."""


def read_model(name: str, source: str, settings: ServerSettings, device: str = "cpu") -> ModelEntry:
    """A model that draws from texts, by its configs and headers, as the service computes it. Errors: kinds of
    `CheckpointError` for what is not there, and for what the service does not draw with; `ConfigError`."""
    path = _model_path(source)
    if source.lower() in PRESETS and source not in embedded_models() and not Path(source).exists():
        raise UnknownCheckpoint(source, "a family, which has no weights", "give a file, a folder or a Hub id")
    named = named_model(source, settings.quantize)
    unet, vae = named.subject.unet, named.subject.vae
    assert unet is not None
    if vae is None or unet.context_dim is None:
        missing = "no autoencoder" if vae is None else "no text to draw from"
        raise UnknownCheckpoint(source, f"a model with {missing}, which the service does not draw with")
    if settings.backend == "openvino" and named.subject.schemes("unet"):
        remedy = "serve it with another --backend, or write it with plain weights"
        raise UnknownCheckpoint(source, "a U-Net with quantized weights, whose products OpenVINO has none of", remedy)
    types, usual = (_types(named, device, asked) for asked in (settings.precision, None))
    dtype, vae_dtype = types
    return ModelEntry(
        name=name,
        source=source,
        path=path,
        subject=named.subject,
        dtype=dtype,
        vae_dtype=vae_dtype,
        precision=None if types == usual else settings.precision,
        backend=None if settings.backend == "eager" else settings.backend,
        quantize=settings.quantize,
        family=describe_family(unet).family,
        suggested=named.suggested,
        sampler=named.sampler,
        levels=named.levels,
        text_layers=named.text_layers,
        vocabulary=read_vocabulary(path) if path.is_dir() else None,
    )


def read_adapter(path: Path, name: str, model: str | None = None) -> AdapterEntry:
    """An adapter or an embedding. Errors: kinds of `CheckpointError`, also for pickles and for files of other
    networks."""
    with open_adapter(path) as opened:
        kind, title = _kind(opened)
        width, words, layers = None, (), ()
        if kind == EMBEDDING:
            words, width = _words(opened), _vector_width(opened.tensors)
        else:
            width = _text_width(opened, kind)
            layers = _lora_layers(opened) if kind == "LoRA" else ()
        return AdapterEntry(
            name=name,
            path=path,
            kind=kind,
            title=title,
            files=(*opened.files, *_encoder_files(path)),
            model=model,
            text_width=width,
            words=words,
            layers=layers,
            rank=_lora_rank(opened) if kind == "LoRA" else None,
            numbers=sum(info.count for info in opened.tensors.values()),
            stored_bytes=sum(info.size_bytes for info in opened.tensors.values()),
        )


def _encoder_files(place: Path) -> list[Path]:
    """Of the image encoder that an IP-Adapter has in its folder."""
    folder = place / IMAGE_ENCODER
    return [*sorted(folder.glob("*.json")), *sorted(folder.glob("*.safetensors"))]


def _model_path(source: str) -> Path:
    """Where a model lies on this machine. Errors: `UnknownCheckpoint` for one that has to be downloaded first."""
    path = Path(embedded_models().get(source, source)).expanduser()
    if path.exists():
        return path
    found = cached_copy(source) if is_hub_id(source) else None
    if found is None:
        remedy = f"load it once with `undertow generate --model {source}`" if is_hub_id(source) else ""
        problem = "not whole on this machine" if is_hub_id(source) else "no such file or folder, and no known name"
        raise UnknownCheckpoint(source, problem, remedy)
    return found


def _types(named: NamedModel, device: str, precision: PrecisionName | None) -> tuple[str, str]:
    asked = None if precision is None else PRECISIONS[precision]
    vae = named.subject.vae
    overflows = vae is not None and vae.force_upcast
    return computed_types(named.stored, asked, None, device=device.partition(":")[0], overflows=overflows)


def _kind(opened: OpenedAdapter) -> tuple[str, str]:
    """What it is, and what it is called by its file. Errors: as `read_adapter`."""
    metadata = opened.weights.metadata
    title = metadata.get("modelspec.title") or metadata.get("ss_output_name") or ""
    refuse_quantized(opened.path, opened.names, metadata)
    refuse_other_controls(opened.path, opened.names, opened.config)
    reader = CLASSES.get(str(opened.config.get("_class_name"))) or reader_named(opened.tensors)
    if reader is not None:
        if reader == IMAGE_PROMPT:
            require_image_prompt(opened.path, opened.weights)
        return reader, title
    if holds_inversions(opened.tensors):
        return EMBEDDING, title
    names = read_lora_names(opened.tensors, metadata)
    try:
        require_lora(opened.weights, names)
    except CheckpointError:
        if inversions_in(opened.tensors, asked=True):  # of a model of unusual width
            return EMBEDDING, title
        raise
    refuse_unread(opened.path, names.unread)
    return "LoRA", title


def _words(opened: OpenedAdapter) -> tuple[str, ...]:
    groups = inversions_in(opened.tensors, asked=True)
    named = (names_of(opened.path, name, alone=len(groups) == 1) for _, name in groups)
    return tuple(dict.fromkeys(word for words in named for word in words))


def _vector_width(tensors: "Mapping[str, TensorInfo]") -> int | None:
    """Of the vectors, where they are for one encoder."""
    widths = {info.shape[-1] for keys in inversions_in(tensors, asked=True).values() for info in _infos(tensors, keys)}
    return widths.pop() if len(widths) == 1 else None


def _infos(tensors: "Mapping[str, TensorInfo]", keys: Mapping[str, str]) -> "list[TensorInfo]":
    return [tensors[key] for key in keys.values()]


def _lora_layers(opened: OpenedAdapter) -> tuple[str, ...]:
    """What a LoRA calls the layers that it changes. Errors: `CorruptFile` for one that is not whole."""
    names = read_lora_names(opened.tensors, opened.weights.metadata)
    require_whole(opened.path, names, {name: info.shape for name, info in opened.tensors.items()})
    return tuple(names.layers)


LOW_RANK = frozenset({"down", "up", "mid", "alpha"})
"""Leaves of a layer that is a plain low-rank change, as a slot takes it."""


def _lora_rank(opened: OpenedAdapter) -> int | None:
    layers = read_lora_names(opened.tensors, opened.weights.metadata).layers.values()
    if any(not LOW_RANK.issuperset(layer.leaves) for layer in layers):
        return None
    return max((opened.tensors[layer.leaves["down"]].shape[0] for layer in layers if "down" in layer.leaves), default=0)


def _text_width(opened: OpenedAdapter, kind: str) -> int | None:
    """Of the tokens that the layers which read text were made for; `None` where no tensor tells."""
    shapes = {name: info.shape for name, info in opened.tensors.items()}
    if kind == "LoRA":
        return _lora_width(read_lora_names(shapes), shapes)
    return next((shape[1] for name, shape in shapes.items() if name.endswith(KEYS) and len(shape) == 2), None)


def _lora_width(names: LoraNames, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    for stem, layer in names.layers.items():
        shape = shapes.get(layer.leaves.get("down", ""), ())
        if TEXT_READER.fullmatch(stem) and len(shape) == 2:
            return shape[1]
    return None
