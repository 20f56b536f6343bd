"""Quantized weights with scales, as ComfyUI keeps them in safetensors files: 8-bit numbers, of which one scale for a
layer, or one for each of its rows, makes the weights.

Two spellings. The older one is a marker `scaled_fp8` and a `scale_weight` beside each weight. In the newer one there is
a `weight_scale`, and JSON in a tensor `comfy_quant` beside it, or in the header under `_quantization_metadata`, says
the format. Weights with `convrot` were multiplied by a rotation, which is its own inverse
(https://github.com/leejet/stable-diffusion.cpp/blob/master/docs/int8_convrot.md). Scales of inputs are for
multiplications in 8 bits, which undertow does not do, and are left out.
"""

import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from undertow.checkpoints.files.header import HeaderOnly, Packed, TensorInfo
from undertow.checkpoints.files.header_json import corrupt
from undertow.errors import UnsupportedModel, in_plain_words
from undertow.quantization import Scheme

if TYPE_CHECKING:
    from undertow.checkpoints.files.weights import TensorReader, WeightFile
    from undertow.shapes import AnyTensor

FORMATS: Mapping[str, str] = {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "int8_tensorwise": "I8"}
"""ComfyUI's names of the formats that are read, and what safetensors calls their numbers."""

MARKER, CONFIG, IN_HEADER = "scaled_fp8", "comfy_quant", "_quantization_metadata"
SCALES, INPUT_SCALES = ("scale_weight", "weight_scale"), ("scale_input", "input_scale")
CONFIG_BYTES = 4096
ROTATION = "convrot"
USUAL_GROUP = 256


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a weight is made. scale: the name of the tensor with its scales. group: how many inputs are rotated together;
    1 for none."""

    scale: str
    group: int = 1


@dataclass(frozen=True, kw_only=True)
class PlainView:
    """A file as if its weights were plain. recipes: of those that are not, by name."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    recipes: Mapping[str, Recipe]


def without_scales(file: HeaderOnly) -> HeaderOnly:
    """A header as if its weights were plain, as far as headers tell. Errors: `CorruptFile`, `UnsupportedModel`."""
    view = plain_view(file.path, file.tensors, file.metadata, {})
    return HeaderOnly(path=file.path, tensors=view.tensors, metadata=view.metadata)


def plain_view(
    path: Path, tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str], configs: Mapping[str, Mapping[str, Any]]
) -> PlainView:
    """What a file holds once its scales are applied. configs: what `comfy_quant` tensors say, by layer. Layers that are
    not understood stay as they are, with their scales, for which the file is refused.

    Errors: `UnsupportedModel` for a format by name; `CorruptFile`.
    """
    configs = {**_in_header(path, metadata), **configs}
    plain, recipes = dict(tensors), dict[str, Recipe]()
    for layer, scale in _layers(tensors):
        weight = f"{layer}weight"
        info, config = tensors.get(weight), configs.get(layer, {})
        described = tensors.get(f"{layer}{CONFIG}")
        if described is not None and described.kind != "U8":
            continue
        if info is None or info.kind not in FORMATS.values() or not _fits(tensors[scale], info):
            continue
        group = _group(path, layer, info, config)
        recipes[weight] = Recipe(scale=scale, group=group)
        name = {"F8_E4M3": "fp8 e4m3", "F8_E5M2": "fp8 e5m2", "I8": "int8"}[info.kind]
        turned = f", rotated by {group}" if group > 1 else ""
        plain[weight] = TensorInfo("F16", info.shape, Packed(f"{name} with scales{turned}", 8))
        for left_out in (scale, *(f"{layer}{kind}" for kind in (CONFIG, *INPUT_SCALES))):
            plain.pop(left_out, None)
    if recipes:
        plain = {name: info for name, info in plain.items() if name.rpartition(".")[2] != MARKER}
        metadata = {key: value for key, value in metadata.items() if key != IN_HEADER}
    return PlainView(tensors=plain, metadata=metadata, recipes=recipes)


def _layers(tensors: Mapping[str, TensorInfo]) -> list[tuple[str, str]]:
    """The start of the names of each scaled layer, with its dot, and the name of its scale."""
    found: list[tuple[str, str]] = []
    for name in tensors:
        start, dot, last = name.rpartition(".")
        if last in SCALES:
            found.append((f"{start}{dot}", name))
    return found


def _fits(scale: TensorInfo, weight: TensorInfo) -> bool:
    """Whether there is one scale for a layer, or one for each row."""
    rows = weight.shape[:1]
    return scale.kind in ("F32", "F16", "BF16") and (scale.count == 1 or (scale.count,) == rows)


def _group(path: Path, layer: str, weight: TensorInfo, config: Mapping[str, Any]) -> int:
    """How many inputs are rotated together. Errors: `UnsupportedModel`, `CorruptFile`."""
    form = config.get("format")
    if form is not None and FORMATS.get(str(form)) != weight.kind:
        if str(form) in FORMATS:
            raise corrupt(path, f"the layer {layer.rstrip('.')!r} is {form} by its description, and {weight.kind}")
        raise _other_format(path, str(form))
    if not config.get(ROTATION):
        return 1
    group = config.get(f"{ROTATION}_groupsize", USUAL_GROUP)
    inputs = prod(weight.shape[1:])
    whole = isinstance(group, int) and 4 <= group <= inputs and inputs % group == 0
    if not whole or len(weight.shape) != 2 or group.bit_count() != 1 or group.bit_length() % 2 == 0:
        wanted = f"powers of 4 that divide its {inputs} inputs are possible"
        raise corrupt(path, f"the layer {layer.rstrip('.')!r} is rotated by {str(group)[:20]}; {wanted}")
    return group


def _other_format(path: Path, form: str) -> UnsupportedModel:
    remedy = f"use its float16 or bfloat16 form, or one of {', '.join(FORMATS)}"
    return UnsupportedModel(path, f"a file of weights that ComfyUI quantized as {form[:40]!r}", remedy)


def _in_header(path: Path, metadata: Mapping[str, str]) -> dict[str, Mapping[str, Any]]:
    """What the header says of layers. Errors: `CorruptFile`."""
    said = _json(path, metadata[IN_HEADER]) if IN_HEADER in metadata else {}
    layers = said.get("layers", {})
    if not isinstance(layers, dict) or not all(isinstance(config, dict) for config in layers.values()):
        raise corrupt(path, f"{IN_HEADER} in its header names no layers")
    return {f"{layer}.": config for layer, config in layers.items()}


def _json(path: Path, text: str | bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as err:
        raise corrupt(path, f"a description of its quantization that is not JSON ({in_plain_words(err)})") from err
    if not isinstance(found, dict):
        raise corrupt(path, f"a description of its quantization that is a JSON {type(found).__name__}, not an object")
    return found


class ScaledFile:
    """A safetensors file whose weights with scales are read as the float32 numbers that they stand for. Errors as in
    `plain_view`."""

    def __init__(self, file: "WeightFile"):
        self.path = file.path
        self._file = file
        view = plain_view(file.path, file.tensors, file.metadata, _configs(file))
        self.tensors, self.metadata, self._recipes = view.tensors, view.metadata, view.recipes

    @contextmanager
    def reader(self) -> "Generator[ScaledReader]":
        """Reads tensors until the block ends. Errors: `CorruptFile` when the file changes meanwhile."""
        with self._file.reader() as reader:
            yield ScaledReader(reader, self._recipes)


class ScaledReader:
    """Reads tensors of an open file, and applies their scales."""

    def __init__(self, reader: "TensorReader", recipes: Mapping[str, Recipe]):
        self._reader, self._recipes = reader, recipes

    def read(self, name: str) -> "AnyTensor":
        """One tensor: in the file's type, or in float32 where it has scales."""
        recipe = self._recipes.get(name)
        if recipe is None:
            return self._reader.read(name)
        stored = self._reader.read(name).float()
        values = stored * self._reader.read(recipe.scale).float().reshape(-1, *(1,) * (stored.ndim - 1))
        if recipe.group == 1:
            return values
        return (values.unflatten(1, (-1, recipe.group)) @ rotation(recipe.group)).flatten(1)


@cache
def rotation(size: int) -> "AnyTensor":
    """The regular Hadamard matrix of a power of 4, normalized: symmetric, and its own inverse."""
    import torch  # noqa: PLC0415  slow to import

    if size == 1:
        return torch.ones(1, 1)
    four = torch.tensor([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]], dtype=torch.float32) / 2
    return torch.kron(four, rotation(size // 4))


def _configs(file: "WeightFile") -> dict[str, dict[str, Any]]:
    """What `comfy_quant` tensors say, by layer. Errors: `CorruptFile`; `UnsupportedModel` for a format that is
    not among `FORMATS`."""
    found: dict[str, dict[str, Any]] = {}
    with file.reader() as reader:
        for name, info in file.tensors.items():
            if name.rpartition(".")[2] != CONFIG:
                continue
            if info.kind != "U8":
                continue
            if info.count > CONFIG_BYTES:
                raise corrupt(file.path, f"{name!r} has {info.count:,} bytes; {CONFIG_BYTES:,} are allowed")
            config = _json(file.path, bytes(reader.read(name).tolist()))
            if str(config.get("format")) not in FORMATS:
                raise _other_format(file.path, str(config.get("format")))
            found[name.removesuffix(CONFIG)] = config
    return found


def plain_file(file: "WeightFile") -> "ScaledFile | WeightFile":
    """The file itself, or as one whose weights are plain where some have scales. Errors as in `plain_view`."""
    return ScaledFile(file) if has_scales(file.tensors) else file


def layer_config(scheme: Scheme) -> bytes:
    """The JSON of a layer's tensor `comfy_quant`, of a layer that undertow quantized."""
    described: dict[str, object] = {"format": "float8_e4m3fn" if scheme == "float8" else "int8_tensorwise"}
    if scheme == "int8-weights":  # ComfyUI's word for products of plain numbers
        described["full_precision_matrix_mult"] = True
    return json.dumps(described).encode()


def has_scales(tensors: Mapping[str, TensorInfo]) -> bool:
    """Whether a file has weights with scales, by its names."""
    return any(name.rpartition(".")[2] in (*SCALES, CONFIG) for name in tensors)
