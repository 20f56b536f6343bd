"""What an IP-Adapter's tensors are called: the authors' files, their trainer's, and what diffusers saves.

authors    image_proj.*, ip_adapter.N.to_{k,v}_ip.weight; a pickle's two dictionaries read the same
trainer    image_proj_model.*, adapter_modules.N.to_{k,v}_ip.weight (tutorial_train.py before its conversion)
diffusers  encoder_hid_proj.image_projection_layers.I.*, SITE.processor.to_{k,v}_ip.I.weight, beside a U-Net's tensors

The names inside `image_proj` differ too; keys and values of the resampler are one matrix in the authors' files.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from undertow.checkpoints.files.header import TensorInfo
from undertow.errors import InvalidInput

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


def read_names(path: Path, tensors: Mapping[str, TensorInfo], index: int | None = None) -> Names:
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
