"""Which layer of a model each layer of a file changes, and how: from names and shapes, before weights are read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from undertow.adapters.lora.algorithms import UnreadableLayer, build_update
from undertow.adapters.lora.base_model import BaseModel, find_base_model, refuse_unread
from undertow.adapters.lora.leaves import Layer
from undertow.adapters.lora.lora_source import LoraFile
from undertow.adapters.lora.targets import Place, Targets
from undertow.adapters.lora.updates import AnyTensor, Update, vector_fits
from undertow.errors import AdapterMismatch, CorruptFile

SHOWN = 5
"""Names listed in a message."""

SMALL_LEAVES = ("alpha", "on_input")
"""Numbers that decide what the other tensors mean."""

LENIENT = "`read_lora(..., strict=False)` of undertow.adapters.lora.lora_file"
_TEXT_PREFIXES = ("lora_te", "text_encoder")

ReadTensor = Callable[[str], AnyTensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class PlannedLayer:
    """One layer of a file. update: on the meta device, with shapes but no values. alpha: the layer's own, or from the
    config. tensors: those it was built from, by the file's names."""

    layer: Layer
    update: Update
    alpha: float | None
    tensors: Mapping[str, AnyTensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """The layers of a file, assigned to those of a model. reshaped: layers that have another shape in the model.
    unmatched: layers that the model does not have.

    model: its family; without a model every layer is in `unmatched`.
    """

    model: str | None
    base: BaseModel | None
    matched: Mapping[Place, PlannedLayer]
    unmatched: Sequence[PlannedLayer] = ()
    reshaped: Mapping[Place, PlannedLayer]

    @property
    def layers(self) -> list[PlannedLayer]:
        return [*self.matched.values(), *self.reshaped.values(), *self.unmatched]


def make_plan(file: LoraFile, targets: Targets | None) -> Plan:
    """Errors: `AdapterMismatch` for another base model, `CorruptFile` for incomplete layers."""
    with file.weights.reader() as read:
        planned = [_planned(file, layer, read) for layer in file.names.layers.values()]
    base = find_base_model(((each.layer.stem, each.update) for each in planned), file.weights.metadata)
    if targets is None:
        return Plan(model=None, base=base, matched={}, unmatched=planned, reshaped={})
    _require_same_width(file, base, targets)
    matched: dict[Place, PlannedLayer] = {}
    reshaped: dict[Place, PlannedLayer] = {}
    unmatched: list[PlannedLayer] = []
    for each in planned:
        places = targets.candidates(each.layer.stem)
        place = next((place for place in places if _fits(each.update, place, targets)), None)
        if not places:
            unmatched.append(each)
        elif place is None:
            reshaped[places[0]] = each
        elif place in matched:
            pair = f"{matched[place].layer.stem} and {each.layer.stem}"
            raise CorruptFile(file.path, f"{pair} are the same layer", "load one of the adapters in it at a time")
        else:
            matched[place] = each
    return Plan(model=targets.family, base=base, matched=matched, unmatched=unmatched, reshaped=reshaped)


def require_all(file: LoraFile, plan: Plan, targets: Targets) -> None:
    """Checks that every layer of the file fits the model. Errors: `AdapterMismatch`, `UnsupportedModel`."""
    refuse_unread(file.path, file.names.unread)
    for place, each in plan.reshaped.items():
        if str(place) == "unet.conv_in":
            raise AdapterMismatch(
                file.path,
                f"it changes conv_in of a U-Net of other input channels than this one's {targets.in_channels}",
                f"{LENIENT} loads the rest",
                reshaped=[each.layer.stem],
            )
    if plan.reshaped:
        stems = [each.layer.stem for each in plan.reshaped.values()]
        problem = f"{len(stems)} of its layers have other shapes than {targets.family}'s ({_some(stems)})"
        raise AdapterMismatch(file.path, problem, _remedy(plan, targets), reshaped=stems)
    stems = [each.layer.stem for each in plan.unmatched]
    if stems or file.names.unknown:
        unknown = [*stems, *file.names.unknown]
        problem = f"{len(unknown)} of its names are unknown in {targets.family} ({_some(unknown)})"
        raise AdapterMismatch(file.path, problem, _remedy(plan, targets), unmatched=unknown)


def require_any(file: LoraFile, plan: Plan, targets: Targets) -> None:
    """Checks that some layer of the file fits the model. Errors: `AdapterMismatch`, `UnsupportedModel`."""
    if plan.matched:
        return
    refuse_unread(file.path, file.names.unread)
    stems = [each.layer.stem for each in (*plan.reshaped.values(), *plan.unmatched)]
    problem = f"none of its {len(stems)} layers is one of {targets.family} ({_some(stems)})"
    raise AdapterMismatch(
        file.path,
        problem,
        _remedy(plan, targets, lenient=False),
        unmatched=[each.layer.stem for each in plan.unmatched],
        reshaped=[each.layer.stem for each in plan.reshaped.values()],
    )


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
    try:
        leaves = {leaf: tensors[name] for leaf, name in layer.leaves.items() if name in tensors}
        update = build_update(leaves, alpha, scale)
    except UnreadableLayer as err:
        raise CorruptFile(file.path, f"the layer {layer.stem} {err}", "download it again, or train it anew") from err
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


def _planned(file: LoraFile, layer: Layer, read: ReadTensor) -> PlannedLayer:
    small = {name for leaf, name in layer.leaves.items() if leaf in SMALL_LEAVES}

    def shape_only(name: str) -> AnyTensor:
        if name in small:
            return read(name)
        info = file.weights.tensors[name]
        return torch.empty(info.shape, dtype=info.dtype, device="meta")

    return build_layer(file, layer, shape_only)


def _alpha(file: LoraFile, layer: Layer, read: ReadTensor) -> float | None:
    name = layer.leaves.get("alpha")
    if name is None:
        return None
    if file.weights.tensors[name].count != 1:
        raise CorruptFile(file.path, f"{name} is not one number", "download it again, or train it anew")
    return float(read(name).flatten()[0])


def _fits(update: Update, place: Place, targets: Targets) -> bool:
    target = targets[place]
    return update.fits(target.shape) and vector_fits(update.bias_change, target.shape[0])


def _require_same_width(file: LoraFile, base: BaseModel | None, targets: Targets) -> None:
    if base is None or base.width is None or base.width == targets.context_dim:
        return
    reads = "no text" if targets.context_dim is None else f"text {targets.context_dim} wide"
    raise AdapterMismatch(
        file.path,
        f"it was made for {base.title} ({base.evidence}), and this model is {targets.family}, which reads {reads}",
        "load it into a model of its own family",
        made_for=base.title,
    )


def _remedy(plan: Plan, targets: Targets, *, lenient: bool = True) -> str:
    hints: list[str] = []
    if plan.base is not None and plan.base.width is None:
        hints.append(f"it was made for {plan.base.title}: {plan.base.evidence}")
    if any(each.layer.stem.startswith(_TEXT_PREFIXES) for each in plan.unmatched):
        hints.append(f"the model has {len(targets.encoders)} text encoders here")
    if lenient:
        hints.append(f"{LENIENT} leaves them out")
    return "; ".join(hints)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
