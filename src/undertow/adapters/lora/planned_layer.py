"""One layer of a LoRA file: its update from names and shapes, before weights are read, and then with its values."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from undertow.adapters.lora.algorithms import build_update
from undertow.adapters.lora.leaves import Layer
from undertow.adapters.lora.lora_source import LoraFile
from undertow.adapters.lora.recognition import REMEDY, UnreadableLayer
from undertow.adapters.lora.updates import AnyTensor, Update
from undertow.errors import CorruptFile, UnsupportedModel

SMALL_LEAVES = ("alpha", "on_input")
"""Numbers that decide what the other tensors mean."""

VECTORS = ("weight", "dora_scale", "magnitude", "rescale", "up_bias", "diff", "diff_b", "w_norm", "b_norm")
"""Leaves that may have one dimension."""

ReadTensor = Callable[[str], AnyTensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class PlannedLayer:
    """One layer of a file. update: on the meta device, with shapes but no values. alpha: the layer's own, or from the
    config. tensors: those it was built from, by the file's names."""

    layer: Layer
    update: Update
    alpha: float | None
    tensors: Mapping[str, AnyTensor]


def build_layer(file: LoraFile, layer: Layer, read: ReadTensor) -> PlannedLayer:
    """The update of one layer. Errors: `CorruptFile` for an incomplete one."""
    alpha, settings = _alpha(file, layer, read), file.settings_for(layer)

    def scale(rank: int | None) -> float:
        # kohya's and LyCORIS' zero means the rank; of a LoKr without low-rank matrices they ignore alpha.
        if alpha is not None:
            return alpha / rank if alpha and rank else 1.0
        if settings is None:
            return 1.0
        divisor = settings.rank_for(layer.stem) if rank is None else rank
        given = None if divisor is None else settings.scale(layer.stem, divisor)
        return 1.0 if given is None else given

    tensors = {name: read(name) for leaf, name in layer.leaves.items() if leaf != "alpha"}
    _require_numbers(file, layer)
    try:
        leaves = {leaf: tensors[name] for leaf, name in layer.leaves.items() if name in tensors}
        update = build_update(leaves, alpha, scale)
    except UnreadableLayer as err:
        raise CorruptFile(file.path, f"the layer {layer.stem} {err}", REMEDY) from err
    known = alpha if alpha is not None or settings is None else settings.alpha_for(layer.stem)
    return PlannedLayer(layer=layer, update=update, alpha=known, tensors=tensors)


def fill_layer(file: LoraFile, planned: PlannedLayer, read: ReadTensor) -> Update:
    """A planned update with the file's values in place of bare shapes. If some of its tensors were computed from
    several (biases that are scaled or added up), it is built again."""
    names = {id(tensor): name for name, tensor in planned.tensors.items()}
    computed: list[AnyTensor] = []

    def filled(tensor: AnyTensor) -> AnyTensor:
        if id(tensor) in names:
            return read(names[id(tensor)])
        computed.append(tensor)
        return tensor

    for leaf in SMALL_LEAVES:
        if leaf in planned.layer.leaves:
            read(planned.layer.leaves[leaf])  # whose values the plan has used, and nobody has looked at
    update = planned.update.mapped(filled)
    return build_layer(file, planned.layer, read).update if computed else update


def plan_layer(file: LoraFile, layer: Layer, read: ReadTensor) -> PlannedLayer:
    """The update of one layer from its shapes, before its values are read. Errors: `CorruptFile`."""
    small = {name for leaf, name in layer.leaves.items() if leaf in SMALL_LEAVES}

    def shape_only(name: str) -> AnyTensor:
        if name in small:
            return read(name)
        info = file.weights.tensors[name]
        return torch.empty(info.shape, dtype=info.dtype, device="meta")

    return build_layer(file, layer, shape_only)


def _require_numbers(file: LoraFile, layer: Layer) -> None:
    """Accepts floating-point vectors and matrices. Errors: `UnsupportedModel` for whole numbers, whose scale nothing
    says; `CorruptFile` for a number or a vector in the place of a matrix."""
    for leaf, name in layer.leaves.items():
        info = file.weights.tensors[name]
        if leaf in SMALL_LEAVES:
            continue
        if not info.dtype.is_floating_point:
            held = f"a LoRA whose tensors are {str(info.dtype).removeprefix('torch.')} ({name})"
            raise UnsupportedModel(file.path, held, "save it in float16 or float32, with what it was quantized by")
        if len(info.shape) < (1 if leaf in VECTORS else 2):
            problem = f"{name} has the shape {list(info.shape)}, which is no matrix"
            raise CorruptFile(file.path, problem, "download it again, or train it anew")


def _alpha(file: LoraFile, layer: Layer, read: ReadTensor) -> float | None:
    name = layer.leaves.get("alpha")
    if name is None:
        return None
    if file.weights.tensors[name].count != 1:
        raise CorruptFile(file.path, f"{name} is not one number", "download it again, or train it anew")
    return float(read(name).flatten()[0])
