"""How many replicas the waiting work is worth: row-steps over the throughput that was measured. Pure; no Ray."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

from undertow.serving.clock.costs import Costs
from undertow.serving.jobs import JobState
from undertow.serving.store.records import QueueEntry


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is left to draw. seconds: that one worker needs for it. jobs: that wait and run."""

    row_steps: float = 0.0
    seconds: float = 0.0
    jobs: int = 0


def load_of(queue: Sequence[QueueEntry], costs: Mapping[str, Costs]) -> Load:
    """costs: by model, as one worker measured them."""
    row_steps = seconds = 0.0
    for entry in queue:
        left = entry.cost * _share_left(entry)
        row_steps += left
        seconds += left / row_steps_per_s(entry, costs.get(entry.model, Costs()))
    return Load(row_steps=row_steps, seconds=seconds, jobs=len(queue))


def row_steps_per_s(entry: QueueEntry, costs: Costs) -> float:
    """Of forwards as wide as such jobs get them when many wait."""
    cells = entry.work.cells
    rows = entry.rows or costs.rows_for(cells) or entry.work.rows
    return rows / max(costs.forward_s(cells, rows, min(rows, entry.work.adapted_rows)), 1e-9)


def replicas_for(load: Load, *, catch_up_s: float, least: int, most: int) -> int:
    """So many that everything is drawn within `catch_up_s`, and no more than there are jobs: one job is drawn by one
    worker."""
    wanted = min(ceil(load.seconds / catch_up_s), load.jobs)
    return max(least, min(most, wanted))


def _share_left(entry: QueueEntry) -> float:
    if entry.state is not JobState.RUNNING or not entry.progress.steps:
        return 1.0
    return max(0.0, 1.0 - entry.progress.step / entry.progress.steps)
