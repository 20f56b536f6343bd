"""What an IP-Adapter's tensors are called: the authors' files, their trainer's, and what diffusers saves.

authors    image_proj.*, ip_adapter.N.to_{k,v}_ip.weight; a pickle's two dictionaries read the same
trainer    image_proj_model.*, adapter_modules.N.to_{k,v}_ip.weight (tutorial_train.py before its conversion)
diffusers  encoder_hid_proj.image_projection_layers.I.*, SITE.processor.to_{k,v}_ip.I.weight, beside a U-Net's tensors

The names inside `image_proj` differ too; keys and values of the resampler are one matrix in the authors' files.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from undertow.checkpoints.files.header import TensorInfo
from undertow.checkpoints.files.weights import Weights
from undertow.checkpoints.identify.unsupported import (
    SUPPORTED_MODELS,
    refuse_other_files,
    refuse_other_networks,
    refuse_quantized,
)
from undertow.checkpoints.keymap.contents import read_contents
from undertow.checkpoints.keymap.prefixes import TITLES
from undertow.errors import InvalidInput, UnknownCheckpoint, UnsupportedModel

Shape = tuple[int, ...]

_PREFIXES: Mapping[str, str] = {
    "image_proj.": "image_proj.",
    "image_proj_model.": "image_proj.",
    "ip_adapter.": "ip_adapter.",
    "adapter_modules.": "ip_adapter.",
}
_PAIR = re.compile(r"ip_adapter\.(\d+)\.to_[kv]_ip\.weight")
_DIFFUSERS_PAIR = re.compile(r"(?P<site>.+)\.processor\.(?P<leaf>to_[kv]_ip)\.(?P<index>\d+)\.weight")
_DIFFUSERS_PROJECTION = re.compile(r"encoder_hid_proj\.image_projection_layers\.(?P<index>\d+)\.(?P<name>.+)")

# diffusers' names of a projection's layers and the authors', in the order in which they are tried.
_PROJECTION_NAMES: tuple[tuple[str, str], ...] = (
    (r"image_embeds\.(weight|bias)", r"proj.\1"),
    (r"ff\.net\.0\.proj\.(weight|bias)", r"proj.0.\1"),
    (r"ff\.net\.2\.(weight|bias)", r"proj.2.\1"),
    (r"layers\.(\d+)\.ln0\.(weight|bias)", r"layers.\1.0.norm1.\2"),
    (r"layers\.(\d+)\.ln1\.(weight|bias)", r"layers.\1.0.norm2.\2"),
    (r"layers\.(\d+)\.attn\.to_q\.weight", r"layers.\1.0.to_q.weight"),
    (r"layers\.(\d+)\.attn\.to_out\.0\.weight", r"layers.\1.0.to_out.weight"),
    (r"layers\.(\d+)\.attn\.to_k\.weight", r"layers.\1.0.to_kv.weight"),
    (r"layers\.(\d+)\.attn\.to_v\.weight", r"layers.\1.0.to_kv.weight"),
    (r"layers\.(\d+)\.ff\.0\.(weight|bias)", r"layers.\1.1.0.\2"),
    (r"layers\.(\d+)\.ff\.1\.net\.0\.proj\.weight", r"layers.\1.1.1.weight"),
    (r"layers\.(\d+)\.ff\.1\.net\.2\.weight", r"layers.\1.1.3.weight"),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Names:
    """projection: the authors' names of `image_proj`'s tensors, each with the file's tensors to stack. pairs: the
    file's tensors by number N, or by the cross-attention's name, and leaf ("to_k_ip"). unknown: names of neither.
    adapters: how many the file holds."""

    projection: Mapping[str, tuple[str, ...]]
    pairs: Mapping[tuple[int | str, str], str]
    unknown: tuple[str, ...] = ()
    adapters: int = 1
    shapes: Mapping[str, Shape] = field(default_factory=dict)

    def projection_shapes(self) -> dict[str, Shape]:
        """Shapes of `image_proj`'s tensors by the authors' names."""
        return {
            name: (sum(self.shapes[piece][0] for piece in pieces), *self.shapes[pieces[0]][1:])
            if self.shapes[pieces[0]]
            else ()
            for name, pieces in self.projection.items()
        }

    def layers(self) -> set[int | str]:
        """Numbers, or names, of the cross-attentions that the file has tensors for."""
        return {layer for layer, _ in self.pairs}


def is_image_prompt(names: Collection[str]) -> bool:
    """Whether a file is an IP-Adapter in any form, its projection or its matrices alone included."""
    return any(
        name.startswith(tuple(_PREFIXES)) or _DIFFUSERS_PROJECTION.match(name) or _DIFFUSERS_PAIR.fullmatch(name)
        for name in names
    )


def read_image_prompt_names(path: Path, tensors: Mapping[str, TensorInfo], index: int | None = None) -> Names:
    """The file's names sorted. index: which of several adapters in a file of diffusers'.

    Errors: `InvalidInput` for a file with several and no index, and for an index that it does not have.
    """
    shapes = {name: tuple(info.shape) for name, info in tensors.items()}
    if any(_DIFFUSERS_PROJECTION.match(name) or _DIFFUSERS_PAIR.fullmatch(name) for name in shapes):
        return _diffusers_names(path, shapes, index)
    _chosen(path, {0}, index)
    return _authors_names(shapes)


def _authors_names(shapes: Mapping[str, Shape]) -> Names:
    projection: dict[str, tuple[str, ...]] = {}
    pairs: dict[tuple[int | str, str], str] = {}
    unknown: list[str] = []
    for name in shapes:
        prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), None)
        ours = name if prefix is None else _PREFIXES[prefix] + name.removeprefix(prefix)
        match = _PAIR.fullmatch(ours)
        if match is not None:
            pairs[int(match[1]), ours.split(".")[2]] = name
        elif ours.startswith("image_proj."):
            projection[ours.removeprefix("image_proj.")] = (name,)
        else:
            unknown.append(name)
    return Names(projection=projection, pairs=pairs, unknown=tuple(unknown), shapes=shapes)


def _diffusers_names(path: Path, shapes: Mapping[str, Shape], index: int | None) -> Names:
    parts = {name: _DIFFUSERS_PROJECTION.fullmatch(name) or _DIFFUSERS_PAIR.fullmatch(name) for name in shapes}
    held = {int(match["index"]) for match in parts.values() if match is not None}
    chosen = _chosen(path, held, index)
    projection: dict[str, tuple[str, ...]] = {}
    pairs: dict[tuple[int | str, str], str] = {}
    full = f"encoder_hid_proj.image_projection_layers.{chosen}.ff.net.2.weight" in shapes
    # Keys come before values in the authors' matrix of both, as their names do in the alphabet.
    for name, match in sorted(parts.items()):
        if match is None or int(match["index"]) != chosen:
            continue
        if match.re is _DIFFUSERS_PAIR:
            pairs[match["site"], match["leaf"]] = name
        else:
            ours = _authors_projection_name(match["name"], full=full)
            projection[ours] = (*projection.get(ours, ()), name)
    return Names(projection=projection, pairs=pairs, adapters=len(held), shapes=shapes)


def _authors_projection_name(name: str, *, full: bool) -> str:
    if full and name.startswith("norm."):
        return f"proj.3.{name.removeprefix('norm.')}"
    for pattern, ours in _PROJECTION_NAMES:
        match = re.fullmatch(pattern, name)
        if match is not None:
            return match.expand(ours)
    return name


def _chosen(path: Path, held: set[int], index: int | None) -> int:
    if index is None and len(held) == 1:
        return next(iter(held))
    if index is None or index not in held:
        numbers = ", ".join(map(str, sorted(held)))
        raise InvalidInput("index", index, f"one of {numbers}: the adapters that {path} holds")
    return index


USE_FACE = (
    "it reads InsightFace's embedding of a face, which undertow does not compute; IP-Adapter Plus Face and Full Face "
    "read faces through CLIP"
)
ARCFACE_DIM = 512
KOLORS_WIDTH = 2048
"""Width of the resampler in Kolors' files; it is 1280 in those of SDXL, whose cross-attentions are as wide."""

FACE_PREFIXES = ("id_encoder.", "id_adapter", "pulid_")
"""Adapters that read faces and are called like nothing else here."""

_BY_NAME: Mapping[str, tuple[str, str]] = {
    "an IP-Adapter FaceID Plus": (r"(image_proj|image_proj_model)\.perceiver_resampler\..+", USE_FACE),
    "an IP-Adapter FaceID": (r"(ip_adapter|adapter_modules)\.\d+\.to_(q|k|v|out)_lora\..+", USE_FACE),
    "a FaceID adapter of diffusers'": (
        r"encoder_hid_proj\.image_projection_layers\.\d+\.(proj\.net|perceiver_resampler)\..+",
        USE_FACE,
    ),
    "a PhotoMaker": (r"id_encoder\..+", "it needs an identity encoder and its LoRA, which undertow does not run"),
    "a PuLID": (r"(id_adapter|id_adapter_attn_layers|pulid_ca|pulid_encoder)\..+", USE_FACE),
    "an IP-Adapter of FLUX": (r"(double_blocks\..*ip_adapter_.+|ip_adapter_proj_model\..+)", SUPPORTED_MODELS),
    "an IP-Adapter of Stable Diffusion 3": (r"ip_adapter\.\d+\.norm_.+", SUPPORTED_MODELS),
}


def require_image_prompt(path: Path, weights: Weights) -> None:
    """Passes an IP-Adapter that undertow can run, by names and shapes. Errors: `UnsupportedModel` names others with
    the reason, `UnknownCheckpoint`. path: as messages name it."""
    refuse_quantized(path, weights.tensors, weights.metadata)
    shapes = {name: tuple(info.shape) for name, info in weights.tensors.items()}
    for model, remedy in _relatives(shapes):
        raise UnsupportedModel(path, model, remedy)
    if not is_image_prompt(shapes):
        _refuse_strangers(path, weights)


def _relatives(shapes: Mapping[str, Shape]) -> Iterator[tuple[str, str]]:
    """(what the file is, what to do instead), the telling ones first."""
    for model, (pattern, remedy) in _BY_NAME.items():
        layer = re.compile(pattern)
        found = next((name for name in shapes if layer.fullmatch(name)), None)
        if found is not None:
            yield f"{model} ({found})", remedy
    if _last_norm_is_outside(shapes):
        yield "an IP-Adapter FaceID Portrait or a relative (image_proj.proj.2 without proj.3)", USE_FACE
    width = shapes.get("image_proj.proj_in.weight", (0, 0))
    if width == (1280, ARCFACE_DIM) and shapes.get("image_proj.proj_out.weight") == (2048, 1280):
        yield f"an InstantID (its resampler reads {ARCFACE_DIM} numbers)", USE_FACE
    if width[0] == KOLORS_WIDTH and shapes.get("ip_adapter.1.to_k_ip.weight") == (640, 2048):
        yield f"an IP-Adapter of Kolors (its resampler is {KOLORS_WIDTH} wide)", SUPPORTED_MODELS


def _last_norm_is_outside(shapes: Mapping[str, Shape]) -> bool:
    """Whether an MLP makes several tokens of one vector, as for a face: in the authors' names its norm is no part of
    the MLP, and in diffusers' the MLP's result is wider than its norm."""
    if "image_proj.proj.2.weight" in shapes:
        return "image_proj.proj.3.weight" not in shapes
    layer = re.compile(r"(encoder_hid_proj\.image_projection_layers\.\d+)\.ff\.net\.2\.weight")
    matches = [match for name in shapes if (match := layer.fullmatch(name)) is not None]
    return any(shapes[match[0]][0] != shapes.get(f"{match[1]}.norm.weight", (0,))[0] for match in matches)


def _refuse_strangers(path: Path, weights: Weights) -> None:
    refuse_other_networks(path, weights.tensors)
    parts = read_contents(weights.tensors).parts
    if parts:
        held = ", ".join(TITLES[part] for part in parts)
        remedy = "load it with `undertow.load`, and give an IP-Adapter here"
        raise UnsupportedModel(path, f"a model of its own ({held}), not an image prompt", remedy)
    refuse_other_files(path, weights.tensors)
    some = ", ".join(repr(name) for name in list(weights.tensors)[:3])
    problem = f"none of its {len(weights.tensors)} tensors is called as in an IP-Adapter ({some})"
    raise UnknownCheckpoint(path, problem, "give an IP-Adapter: image_proj.* and ip_adapter.*")


def missing_half(path: Path, half: str, other: str) -> UnknownCheckpoint:
    """A file with one half of an IP-Adapter."""
    return UnknownCheckpoint(path, f"half of an IP-Adapter: {half} without {other}", "download or save it whole")
