"""The tables of `undertow adapters`."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from undertow.lookup import counted
from undertow.shortage import size_in_words

if TYPE_CHECKING:
    from undertow.adapters.files.library import LoadedAdapter
    from undertow.adapters.stacking.conflicts import Conflict, SameLayer
    from undertow.adapters.stacking.decisions import Decisions
    from undertow.adapters.stacking.summary import AdapterSummary
    from undertow.inspection.impact import Impact, Overhead

NAME = 12
"""Cells that a name has at least: most are not broken, in a terminal of 80."""


def print_explanation(
    console: Console,
    model: str,
    summaries: "Sequence[AdapterSummary]",
    held: "Mapping[str, LoadedAdapter]",
    decisions: "Decisions",
) -> None:
    """What the adapters are, where they meet, and what is done. held: what the usable ones' files hold, by name."""
    table = _table(f"in {model}", ("adapter", "kind", "rank", "acts at", "size", "scale", "priority", "is"), "size")
    for summary in summaries:
        made_for, rank, where = _described(summary, held.get(summary.name))
        scales = ", ".join(f"{scale:g}" for scale in summary.adapter.scales)
        table.add_row(
            _safe(summary.name),
            f"{summary.kind} for {made_for}" if made_for else summary.kind,
            rank,
            where,
            size_in_words(summary.size_bytes) if not summary.problem else "",
            scales,
            str(summary.adapter.priority),
            "kept" if summary.name in decisions.kept else "off",
        )
    console.print(table)
    if decisions.conflicts:
        console.print(_conflicts(decisions.conflicts))
    else:
        console.print("no conflicts")
    for line in decisions.notes:
        console.print(f"- {line}", markup=False, highlight=False)


def print_impacts(console: Console, impacts: "Sequence[Impact]", overheads: "Sequence[Overhead]", layers: int) -> None:
    """A row for each adapter and one for all; overheads: of the same, or none."""
    columns = ("adapters", "prediction", "outputs that change most")
    table = _table("relative change, ‖with - without‖ / ‖without‖", columns, "prediction")
    for impact in impacts:
        most = "\n".join(f"{change:6.1%} {layer}" for layer, change in impact.strongest(layers))
        table.add_row(_together(impact), f"{impact.prediction:.1%}", most)
    console.print(table)
    if overheads:
        console.print(_times(impacts, overheads))


def _times(impacts: "Sequence[Impact]", overheads: "Sequence[Overhead]") -> Table:
    columns = ("with", "without", "longer by", "once a request")
    table = _table("time of an evaluation of all levels of noise", ("adapters", *columns), *columns)
    for impact, found in zip(impacts, overheads, strict=True):
        table.add_row(
            _together(impact),
            f"{found.with_s * 1000:.1f} ms",
            f"{found.without_s * 1000:.1f} ms",
            f"{found.ratio - 1:+.0%}",
            f"{found.placing_s * 1000:.1f} ms",
        )
    table.caption = "once a request: reading text and pictures, placing weights"
    return table


def _together(impact: "Impact") -> str:
    return _safe(" + ".join(impact.names))


def _described(summary: "AdapterSummary", held: "LoadedAdapter | None") -> tuple[str, str, str]:
    """The family that a file was made for, its rank and where it acts, as far as they are known."""
    from undertow.adapters.lora.lora_file import Lora

    if not isinstance(held, Lora):
        return "", "", counted(len(summary.points), "point") if summary.points else ""
    report, counts = held.report, {network: len(layers) for network, layers in held.updates.items()}
    made_for = "" if report.base is None else _safe(report.base.title)
    rank = "" if report.ranks is None else " to ".join(dict.fromkeys(map(str, report.ranks)))
    text = sum(count for network, count in counts.items() if network != "unet")
    where = [counted(counts["unet"], "layer")] if counts.get("unet") else []
    where += [f"{text} of text"] if text else []
    return made_for, rank, ", ".join(where)


def _conflicts(conflicts: "Sequence[Conflict]") -> Table:
    from undertow.adapters.stacking.conflicts import Incompatible, OverBudget, SameLayer

    table = _table("conflicts", ("conflict", "adapters", "what"))
    for conflict in conflicts:
        match conflict:
            case Incompatible(names=names, reason=reason):
                table.add_row("incompatible", _safe(", ".join(names)), _safe(reason))
            case OverBudget(needed_bytes=needed, budget_bytes=budget, dropped=dropped):
                table.add_row(
                    "resource", _safe(", ".join(dropped)), f"{size_in_words(needed)} of {size_in_words(budget)}"
                )
            case SameLayer():
                pass
    shared = [conflict for conflict in conflicts if isinstance(conflict, SameLayer)]
    for names in dict.fromkeys(conflict.names for conflict in shared):
        here = [conflict for conflict in shared if conflict.names == names]
        table.add_row("same layer", _safe(", ".join(names)), _overlap(here))
    return table


def _overlap(here: "Sequence[SameLayer]") -> str:
    cosines = [conflict.cosine for conflict in here]
    ratio = median(conflict.energy_ratio for conflict in here)
    return (
        f"{counted(len(here), 'layer')}; "
        f"cosine {min(cosines):+.2f} to {max(cosines):+.2f}, median {median(cosines):+.2f}; "
        f"energy of the second {ratio:.2g} times the first's"
    )


def _table(title: str, columns: Sequence[str], *right: str) -> Table:
    table = Table(title=escape(title), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in columns:
        width = NAME if column in ("adapter", "kind") else None
        table.add_column(column, overflow="fold", justify="right" if column in right else "left", min_width=width)
    return table


def _safe(text: str) -> str:
    return escape(text)
