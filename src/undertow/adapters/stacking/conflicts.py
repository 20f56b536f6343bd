"""Where adapters of one stack stand in each other's way, as source document 000 has it: same layer, resource,
incompatible. Pure functions over what was read."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from undertow.adapters.stack import AdapterStack
from undertow.adapters.stacking.overlap import Delta, delta, energy, inner
from undertow.adapters.stacking.strategies import shared_layers
from undertow.adapters.stacking.summary import AdapterSummary

SHOWN = 1
"""Layers named in a sentence."""


@dataclass(frozen=True, kw_only=True)
class SameLayer:
    """Two adapters change the same layer. names: the higher priority first. cosine: of the angle between their changes,
    each at its scale; -1 is opposite, 0 unrelated, 1 the same. energy_ratio: `‖Δ‖²` of the lower over that of the
    higher."""

    layer: str
    names: tuple[str, str]
    cosine: float
    energy_ratio: float


@dataclass(frozen=True, kw_only=True)
class OverBudget:
    """All adapters together exceed the memory budget. dropped: those that are disabled, the lowest priority first."""

    needed_bytes: int
    budget_bytes: int
    dropped: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Incompatible:
    """An adapter that cannot be used, by itself or beside another. names: the last is the one that is disabled."""

    names: tuple[str, ...]
    reason: str


Conflict = SameLayer | OverBudget | Incompatible


@dataclass(frozen=True, kw_only=True)
class AddsUp:
    """Adapters that act at the same points, where their contributions add up in any order. No conflict, but worth
    reporting."""

    names: tuple[str, ...]
    points: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class OrderDependence:
    """Two adapters of which at least one depends on weights that the other changes. kinds: the algorithms of those, by
    name."""

    layers: tuple[str, ...]
    kinds: Mapping[str, str]

    @property
    def where(self) -> str:
        """How many layers, and the first of them, for messages."""
        shown = ", ".join(self.layers[:SHOWN]) + (", ..." if len(self.layers) > SHOWN else "")
        return f"the layer {shown}" if len(self.layers) == 1 else f"{len(self.layers)} layers ({shown})"

    @property
    def who(self) -> str:
        return " and ".join(f"{kind} of {name}" for name, kind in self.kinds.items())


def find_conflicts(stack: AdapterStack, summaries: Sequence[AdapterSummary]) -> tuple[Conflict, ...]:
    """All conflicts, in the order in which they are decided: adapters that cannot be used, adapters beyond the memory
    budget, and layers that several of the others change. summaries: of the adapters that are on.

    For low-rank updates, the cost is a few small matrix products for each shared layer, whatever the layer's size.
    """
    remaining = ordered(stack, summaries)
    incompatible = tuple(_incompatible(stack, remaining))
    remaining = _without(remaining, [conflict.names[-1] for conflict in incompatible])
    room = _over_budget(stack, remaining)
    remaining = _without(remaining, () if room is None else room.dropped)
    return (*incompatible, *(() if room is None else (room,)), *_same_layers(remaining))


def ordered(stack: AdapterStack, summaries: Sequence[AdapterSummary]) -> list[AdapterSummary]:
    """Summaries in the stack's order, without adapters that are off."""
    by_name = {summary.name: summary for summary in summaries}
    return [by_name[adapter.title] for adapter in stack if adapter.title in by_name]


def overlapping_in_time(summaries: Sequence[AdapterSummary]) -> list[list[AdapterSummary]]:
    """Groups of adapters whose intervals of steps overlap, directly or through others; in the given order."""
    groups: list[list[AdapterSummary]] = []
    for summary in summaries:
        met = [group for group in groups if any(_in_time(summary, other) for other in group)]
        groups = [group for group in groups if group not in met]
        groups.append([one for group in met for one in group] + [summary])
    return [[summary for summary in summaries if summary in group] for group in groups]


def _in_time(one: AdapterSummary, other: AdapterSummary) -> bool:
    """Whether there are steps in which both act."""
    return max(one.adapter.start, other.adapter.start) < min(one.adapter.end, other.adapter.end)


def additive_overlaps(summaries: Sequence[AdapterSummary]) -> tuple[AddsUp, ...]:
    """Points where the contributions of several adapters add up (ControlNets, T2I-Adapters, IP-Adapters)."""
    at: dict[str, list[str]] = {}
    for summary in summaries:
        for point in summary.points:
            at.setdefault(point, []).append(summary.name)
    groups: dict[tuple[str, ...], list[str]] = {}
    for point, names in at.items():
        if len(names) > 1:
            groups.setdefault(tuple(names), []).append(point)
    return tuple(AddsUp(names=names, points=tuple(points)) for names, points in groups.items())


def order_dependence(one: AdapterSummary, other: AdapterSummary) -> OrderDependence | None:
    """The layers where the result depends on which of two adapters is applied first; `None` if they simply add up."""
    if not _in_time(one, other):
        return None
    applied = [scaled for scaled in (one.scaled, other.scaled) if scaled is not None]
    kinds: dict[str, str] = {}
    layers = []
    for layer, here in shared_layers(applied).items():
        looking = [scaled for scaled in here if not scaled.layers.updates[layer].additive]
        if looking:
            layers.append(layer)
            kinds |= {scaled.layers.title: scaled.layers.updates[layer].kind for scaled in looking}
    return OrderDependence(layers=tuple(layers), kinds=kinds) if layers else None


def _without(summaries: list[AdapterSummary], names: Sequence[str]) -> list[AdapterSummary]:
    return [summary for summary in summaries if summary.name not in names]


def _incompatible(stack: AdapterStack, summaries: Sequence[AdapterSummary]) -> Iterator[Incompatible]:
    staying: list[AdapterSummary] = []
    for summary in summaries:
        if summary.problem:
            yield Incompatible(names=(summary.name,), reason=summary.problem)
            continue
        found = None
        if stack.strategy != "priority":  # which leaves one change to a layer, and so no order
            found = next(filter(None, (_order_conflict(higher, summary) for higher in staying)), None)
        if found is None:
            staying.append(summary)
        else:
            yield found


def _order_conflict(higher: AdapterSummary, lower: AdapterSummary) -> Incompatible | None:
    met = order_dependence(higher, lower)
    if met is None:
        return None
    reason = (
        f"both change {met.where}, and {met.who} depends on the weights there, so that the result would depend on the "
        "order; strategy 'priority' keeps both, one in each layer"
    )
    return Incompatible(names=(higher.name, lower.name), reason=reason)


def _over_budget(stack: AdapterStack, summaries: Sequence[AdapterSummary]) -> OverBudget | None:
    if stack.budget_bytes is None:
        return None
    needed = left = sum(summary.size_bytes for summary in summaries)
    dropped = []
    for summary in reversed(summaries):
        if left <= stack.budget_bytes:
            break
        dropped.append(summary.name)
        left -= summary.size_bytes
    if not dropped:
        return None
    return OverBudget(needed_bytes=needed, budget_bytes=stack.budget_bytes, dropped=tuple(dropped))


def _same_layers(summaries: Sequence[AdapterSummary]) -> Iterator[SameLayer]:
    by_name = {summary.name: summary for summary in summaries}
    applied = [scaled for summary in summaries if (scaled := summary.scaled) is not None]
    for layer, here in shared_layers(applied).items():
        found: list[tuple[str, float, Delta, float]] = []
        for scaled in here:
            change = delta(scaled.layers.updates[layer])
            length = 0.0 if change is None else energy(change)
            if change is not None and length > 0:
                found.append((scaled.layers.title, scaled.layers.gain(layer, scaled.gain), change, length))
        for (higher, gain, change, length), (lower, its_gain, its_change, its_length) in combinations(found, 2):
            if not _in_time(by_name[higher], by_name[lower]):
                continue
            sign = 1 if gain * its_gain > 0 else -1
            together = inner(change, its_change) / (length * its_length) ** 0.5
            yield SameLayer(
                layer=layer,
                names=(higher, lower),
                cosine=sign * max(-1.0, min(1.0, together)),
                energy_ratio=its_gain**2 * its_length / (gain**2 * length),
            )
