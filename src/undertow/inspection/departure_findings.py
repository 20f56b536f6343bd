"""What a comparison has found so far, and the tensors of the first departure."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from undertow.inspection.departure import Departure, ForwardErrors, Place
from undertow.inspection.departure_runs import Forward
from undertow.inspection.departure_tape import Evidence, Forced, OwnError

Modules = Mapping[str, nn.Module]

MOST_BYTES = 64 * 2**20
"""Of a module's weights that are kept with its departure."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Caught:
    """The first departure, its tensors, and the forward of A that it is in; `None` in the text encoders. modules:
    copies of A's and B's, with the weights that they had then, where they hold no others and are small."""

    departure: Departure
    evidence: Evidence
    forward: Forward | None
    modules: tuple[nn.Module | None, nn.Module | None]


@dataclass(kw_only=True, eq=False)
class Findings:
    """What was found so far. kinds: classes of modules by name."""

    tolerance: float
    text: dict[str, float] = field(default_factory=dict[str, float])
    forwards: list[ForwardErrors] = field(default_factory=list[ForwardErrors])
    caught: Caught | None = None
    first: Departure | None = None
    notes: list[str] = field(default_factory=list[str])

    def take(self, forced: Forced, place: Place, a: Modules, b: Modules, forward: Forward | None) -> None:
        """Keeps the first departure of a forward or stage, unless there was one before."""
        evidence = forced.first
        if evidence is None or self.first is not None:
            return
        before = forced.errors[: forced.errors.index(evidence.own)]
        self.first = Departure(
            place=place,
            own=evidence.own,
            agreed=max((one.error for one in before), default=0.0),
            kind=type(b[evidence.own.module]).__name__ if evidence.own.module in b else "",
        )
        kept = _kept(a.get(self.first.module)), _kept(b.get(self.first.module))
        self.caught = Caught(departure=self.first, evidence=evidence, forward=forward, modules=kept)

    def take_whole(self, place: Place, name: str, error: float) -> None:
        """A stage of which only the whole is seen."""
        if self.first is None and error > self.tolerance:
            self.first = Departure(place=place, own=OwnError(module=name, error=error), agreed=0.0)


def largest(errors: Sequence[OwnError]) -> dict[str, float]:
    """By module, in the order of execution."""
    found: dict[str, float] = {}
    for one in errors:
        found[one.module] = max(one.error, found.get(one.module, 0.0))
    return found


def _kept(module: nn.Module | None) -> nn.Module | None:
    """A copy, since weights may be merged into it and taken out again."""
    if module is None or any(True for _ in module.children()):
        return None
    size = sum(weight.numel() * weight.element_size() for weight in module.parameters())
    return copy.deepcopy(module) if size <= MOST_BYTES else None
