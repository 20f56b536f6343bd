"""Which layer of a model each layer of a file changes, and how: from names and shapes, before weights are read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from undertow.adapters.lora.base_model import BaseModel, find_base_model
from undertow.adapters.lora.lora_refusals import refuse_unread
from undertow.adapters.lora.lora_source import LoraFile
from undertow.adapters.lora.matching import fitting_family, match_layers
from undertow.adapters.lora.planned_layer import PlannedLayer, plan_layer
from undertow.adapters.lora.targets import Place, Targets
from undertow.errors import AdapterMismatch
from undertow.lookup import counted

SHOWN = 5
"""Names listed in a message."""

LENIENT = "in Python, `read_lora(..., strict=False)` of undertow.adapters.lora.lora_file"
_TEXT_PREFIXES = ("lora_te", "text_encoder")


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
        planned = [plan_layer(file, layer, read) for layer in file.names.layers.values()]
    base = find_base_model(((each.layer.stem, each.update) for each in planned), file.weights.metadata)
    if targets is None:
        base = fitting_family(file, planned) if base is None else base
        return Plan(model=None, base=base, matched={}, unmatched=planned, reshaped={})
    _require_same_width(file, base, targets)
    found = match_layers(file, planned, targets)
    if base is None and not found.whole:
        base = fitting_family(file, planned)
    return Plan(
        model=targets.family,
        base=base,
        matched=found.matched,
        unmatched=found.unmatched,
        reshaped=found.reshaped,
    )


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
        have = counted(len(stems), "of its layers has another shape", "of its layers have other shapes")
        problem = f"{have} than {targets.family}'s ({_some(stems)})"
        raise AdapterMismatch(file.path, problem, _remedy(plan, targets), reshaped=stems)
    stems = [each.layer.stem for each in plan.unmatched]
    if stems or file.names.unknown:
        unknown = [*stems, *file.names.unknown]
        are = counted(len(unknown), "of its names is", "of its names are")
        problem = f"{are} unknown in {targets.family} ({_some(unknown)})"
        raise AdapterMismatch(file.path, problem, _remedy(plan, targets), unmatched=unknown)


def require_any(file: LoraFile, plan: Plan, targets: Targets) -> None:
    """Checks that some layer of the file fits the model. Errors: `AdapterMismatch`, `UnsupportedModel`."""
    if plan.matched:
        return
    refuse_unread(file.path, file.names.unread)
    stems = [each.layer.stem for each in (*plan.reshaped.values(), *plan.unmatched)]
    none = f"none of its {len(stems)} layers is one" if len(stems) > 1 else "its only layer is none"
    problem = f"{none} of {targets.family} ({_some(stems)})"
    raise AdapterMismatch(
        file.path,
        problem,
        _remedy(plan, targets, lenient=False),
        unmatched=[each.layer.stem for each in plan.unmatched],
        reshaped=[each.layer.stem for each in plan.reshaped.values()],
    )


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
