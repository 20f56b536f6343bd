"""What is done about conflicts, as source document 000 has it: merged, dropped by priority, or disabled; and told."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from undertow.adapters.lora.updates import LayerUpdates
from undertow.adapters.stack import STRATEGIES, AdapterStack
from undertow.adapters.stacking.conflicts import (
    AddsUp,
    Conflict,
    Incompatible,
    OverBudget,
    SameLayer,
    additive_overlaps,
    find_conflicts,
    order_dependence,
    ordered,
    overlapping_in_time,
)
from undertow.adapters.stacking.overlap import delta, energy
from undertow.adapters.stacking.strategies import Rule, revised
from undertow.adapters.stacking.summary import AdapterSummary
from undertow.shortage import size_in_words


@dataclass(frozen=True, kw_only=True, eq=False)
class Decisions:
    """kept, disabled: names, the highest priority first. layers: by name, the updates of kept adapters that are not
    simply those of their files. conflicts: what was decided about. notes: the decisions, a sentence each."""

    kept: tuple[str, ...]
    disabled: tuple[str, ...]
    layers: Mapping[str, LayerUpdates]
    conflicts: tuple[Conflict, ...]
    notes: tuple[str, ...]


def decide(stack: AdapterStack, summaries: Sequence[AdapterSummary]) -> Decisions:
    """Decides which adapters of a stack act, and how. summaries: of adapters; those that are not on are ignored."""
    present = ordered(stack, summaries)
    conflicts = find_conflicts(stack, present)
    lost = [name for conflict in conflicts for name in _lost(conflict)]
    kept = [summary for summary in present if summary.name not in lost]
    rule = Rule(strategy=stack.strategy, weights=stack.weights, density=stack.density)
    changes: dict[str, LayerUpdates] = {}
    for company in overlapping_in_time(kept):
        changes |= revised([scaled for summary in company if (scaled := summary.scaled) is not None], rule)
    lines = [line for conflict in conflicts for line in _decided(conflict)]
    lines += list(_merging(stack, [conflict for conflict in conflicts if isinstance(conflict, SameLayer)]))
    if stack.strategy == "orthogonal":
        lines += list(_remaining(kept, changes))
    return Decisions(
        kept=tuple(summary.name for summary in kept),
        disabled=tuple(summary.name for summary in present if summary.name in lost),
        layers=changes,
        conflicts=conflicts,
        notes=(*lines, *map(_meeting, additive_overlaps(kept))),
    )


def describe_interactions(summaries: Sequence[AdapterSummary]) -> tuple[str, ...]:
    """Notes on adapters that a request lists one by one, without a stack. All of them act; the notes say where their
    order matters."""
    lines: list[str] = []
    for one, other in combinations(summaries, 2):
        met = order_dependence(one, other)
        if met is not None and len(met.kinds) == 2:
            lines.append(
                f"{met.who} both depend on the weights of {met.where}: {one.name} is applied first, as listed, "
                "and the other order would give another picture"
            )
        elif met is not None:
            lines.append(
                f"{met.who} is computed from the base weights of {met.where}; "
                "the other adapter's change is added after it"
            )
    return (*lines, *map(_meeting, additive_overlaps(summaries)))


def _lost(conflict: Conflict) -> tuple[str, ...]:
    match conflict:
        case Incompatible(names=names):
            return names[-1:]
        case OverBudget(dropped=dropped):
            return dropped
        case SameLayer():
            return ()


def _decided(conflict: Conflict) -> Iterator[str]:
    match conflict:
        case Incompatible(names=(name,), reason=reason):
            yield f"{name} is off: {reason}"
        case Incompatible(names=(higher, lower), reason=reason):
            yield f"{lower} is off, {higher} comes before it: {reason}"
        case OverBudget():
            gone = " and ".join(conflict.dropped)
            yield (
                f"{gone} {'is' if len(conflict.dropped) == 1 else 'are'} off: all together take "
                f"{size_in_words(conflict.needed_bytes)} and may take {size_in_words(conflict.budget_bytes)}; "
                "the lowest priority goes first"
            )
        case _:
            return


def _merging(stack: AdapterStack, found: Sequence[SameLayer]) -> Iterator[str]:
    """A sentence for each pair of adapters that share layers."""
    for names in dict.fromkeys(conflict.names for conflict in found):
        here = [conflict for conflict in found if conflict.names == names]
        most = max(here, key=lambda conflict: abs(conflict.cosine))
        mean = sum(conflict.cosine for conflict in here) / len(here)
        count = "a layer" if len(here) == 1 else f"{len(here)} layers"
        yield (
            f"{names[0]} and {names[1]} both change {count}: cosine {mean:+.2f} on average, {most.cosine:+.2f} at "
            f"{most.layer}; {stack.strategy}: {STRATEGIES[stack.strategy]}"
        )


def _remaining(kept: Sequence[AdapterSummary], changes: Mapping[str, LayerUpdates]) -> Iterator[str]:
    """How much of each update a projection leaves, which can be little where a higher priority has full rank."""
    for summary in kept:
        if summary.name not in changes or summary.layers is None:
            continue
        before = _energy(summary.layers)
        after = _energy(changes[summary.name])
        if before > 0 and after < before:
            yield f"{summary.name} keeps {after / before:.0%} of its energy beside those of higher priority"


def _energy(changes: LayerUpdates) -> float:
    deltas = ((delta(update), changes.gain(layer, 1.0)) for layer, update in changes.updates.items())
    return sum(gain**2 * energy(change) for change, gain in deltas if change is not None)


def _meeting(met: AddsUp) -> str:
    points = met.points[0] if len(met.points) == 1 else f"{len(met.points)} points ({met.points[0]}, ...)"
    return f"{' and '.join(met.names)} act at {points}: their contributions add up, in any order"
