"""What units of work cost on one device with one model, learned from each one that was done."""

import time
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from undertow.json_fields import is_number

AVERAGED = 10
"""Observations of a unit of work that count alike; later ones count for a tenth each."""
OUTLIER = 4.0
"""An observation counts for at most so many times what is known: the first forward of a shape may compile."""
BETWEEN = 2.0
"""A step may take so many times its forward, with all that is done between two of them."""
GUESS_S = 2e-5
"""Of a row of a cell in a forward, before anything was measured."""


@runtime_checkable
class Event(Protocol):
    """What the engine tells of a unit of work; its `WorkEvent` is one."""

    @property
    def kind(self) -> str: ...
    @property
    def seconds(self) -> float: ...
    @property
    def requests(self) -> tuple[int, ...]: ...
    @property
    def size(self) -> tuple[int, int] | None: ...
    @property
    def computed_rows(self) -> int: ...
    @property
    def adapted_rows(self) -> int: ...
    @property
    def probed(self) -> bool: ...


@dataclass(kw_only=True)
class Mean:
    """A mean of seconds that follows changes."""

    seconds: float
    count: int = 1

    def add(self, seconds: float) -> None:
        if self.count == 1 and seconds < self.seconds / 2:  # the first one compiled, or read files
            self.seconds = seconds
            return
        self.count += 1
        self.seconds += (min(seconds, OUTLIER * self.seconds) - self.seconds) / min(self.count, AVERAGED)


@dataclass(kw_only=True)
class Costs:
    """encode: of a job. forward: by cells and rows. adapted: what a forward takes more because of adapters, by cells
    and by the rows in which some act. decode: of a picture, by cells. load: of the model. rows: by cells, the rows of a
    forward that were decided once: the most that pay."""

    encode: Mean | None = None
    load: Mean | None = None
    forward: dict[int, dict[int, Mean]] = field(default_factory=dict)
    adapted: dict[int, dict[int, Mean]] = field(default_factory=dict)
    decode: dict[int, Mean] = field(default_factory=dict)
    rows: dict[int, int] = field(default_factory=dict)

    def learn(self, kind: str, *, seconds: float, cells: int = 0, rows: int = 1, adapted_rows: int = 0) -> None:
        """kind: encode, denoise, decode or load."""
        match kind:
            case "encode":
                self.encode = _with(self.encode, seconds)
            case "load":
                self.load = _with(self.load, seconds)
            case "decode":
                self.decode[cells] = _with(self.decode.get(cells), seconds)
            case _ if adapted_rows and self.forward.get(cells):
                more = max(0.0, seconds - self.forward_s(cells, rows))
                of_cells = self.adapted.setdefault(cells, {})
                of_cells[adapted_rows] = _with(of_cells.get(adapted_rows), more)
            case _:
                of_cells = self.forward.setdefault(cells, {})
                of_cells[rows] = _with(of_cells.get(rows), seconds)

    @property
    def known(self) -> bool:
        """Whether any forward was measured."""
        return bool(self.forward)

    def rows_for(self, cells: int) -> int | None:
        """The most rows of a forward that pay, as decided; for pictures of another size so many that a forward has as
        many cells; `None` where nothing was decided."""
        if cells in self.rows or not self.rows:
            return self.rows.get(cells)
        nearest = min(self.rows, key=lambda known: abs(known - cells))
        return max(1, self.rows[nearest] * nearest // max(1, cells))

    def decide(self, cells: int, measured: Mapping[int, float] | None = None) -> int:
        """The most rows of a forward that pay for pictures of this size; once decided they stay. Called when a worker
        has measured them. measured: seconds of a forward by its rows; what was learned until now when `None`."""
        if cells not in self.rows:
            if measured is None:
                measured = {rows: mean.seconds for rows, mean in self.forward.get(cells, {}).items()}
            self.rows[cells] = best_rows(measured)
        return self.rows[cells]

    def forward_s(self, cells: int, rows: int, adapted_rows: int = 0) -> float:
        """Seconds of a forward: as measured, between what was measured, or in proportion to it."""
        plain = _of_rows(self.forward, cells, rows) if self.forward else GUESS_S * cells * rows
        return plain + (_of_rows(self.adapted, cells, adapted_rows) if adapted_rows and self.adapted else 0.0)

    def encode_s(self) -> float:
        return 0.0 if self.encode is None else self.encode.seconds

    def load_s(self) -> float:
        return 0.0 if self.load is None else self.load.seconds

    def decode_s(self, cells: int) -> float:
        """Of one picture."""
        if not self.decode:
            return 0.0
        return _between({known: mean.seconds for known, mean in self.decode.items()}, cells)

    def to_json(self) -> dict[str, Any]:
        return {
            "encode": _json(self.encode),
            "load": _json(self.load),
            "forward": _by_rows_json(self.forward),
            "adapted": _by_rows_json(self.adapted),
            "decode": {str(cells): _json(mean) for cells, mean in self.decode.items()},
            "rows": {str(cells): rows for cells, rows in self.rows.items()},
        }

    @classmethod
    def from_json(cls, json: Mapping[str, Any] | None) -> "Costs":
        """What `to_json` wrote; nothing is known where it is anything else."""
        json = json if isinstance(json, Mapping) else {}
        return cls(
            encode=_mean(json.get("encode")),
            load=_mean(json.get("load")),
            forward=_by_rows(json.get("forward")),
            adapted=_by_rows(json.get("adapted")),
            decode=_means(json.get("decode")),
            rows=_rows(json.get("rows")),
        )


class Learner:
    """Learns costs from an engine's events; a forward that was looked into says nothing of others. What is encoded in
    parts is one cost of its job. A step costs all the time
    since the unit before it: samplers, claims, logs and what else a process does make jobs last as well. now: gives
    seconds."""

    def __init__(self, costs: Costs, now: Callable[[], float] = time.monotonic):
        self.costs = costs
        self._now = now
        self._ended_at = float("-inf")
        self._encoding: dict[int, float] = {}

    def observe(self, event: Event) -> None:
        """May be called by the thread that works, after each unit of work."""
        now = self._now()
        took, self._ended_at = now - self._ended_at, now
        if event.kind == "encode":
            for number in event.requests:
                self._encoding[number] = self._encoding.get(number, 0.0) + event.seconds / len(event.requests)
            return
        for number in event.requests:
            encoded = self._encoding.pop(number, None)
            if encoded is not None:
                self.costs.learn("encode", seconds=encoded)
        if event.size is not None and not event.probed:
            cells = event.size[0] * event.size[1]
            # What is much longer was a pause: another model's turn, or a wait for the store.
            seconds = took if event.seconds < took < BETWEEN * event.seconds else event.seconds
            rows, adapted = event.computed_rows, event.adapted_rows
            self.costs.learn(event.kind, seconds=seconds, cells=cells, rows=rows, adapted_rows=adapted)


def best_rows(measured: Mapping[int, float], gain: float = 0.05) -> int:
    """The most rows of a forward that pay: from the fewest on, the next ones count as long as they draw so much more a
    second. measured: seconds of a forward, by its rows; 1 where nothing was measured."""
    best = 1
    per_second = 0.0
    for rows in sorted(measured):
        now = rows / measured[rows]
        if per_second and now < (1 + gain) * per_second:
            break
        best, per_second = rows, now
    return best


def _with(mean: Mean | None, seconds: float) -> Mean:
    if mean is None:
        return Mean(seconds=seconds)
    mean.add(seconds)
    return mean


def _of_rows(known: Mapping[int, Mapping[int, Mean]], cells: int, rows: int) -> float:
    """Of so many rows of the nearest size that is known, in proportion to its cells. known: one size at least."""
    nearest = min(known, key=lambda one: abs(one - cells))
    seconds = _between({count: mean.seconds for count, mean in known[nearest].items()}, rows)
    return seconds if nearest == cells else seconds * cells / max(1, nearest)


def _between(known: Mapping[int, float], at: int) -> float:
    """On the line between two neighbors; above all in proportion to the last, below all on the line of the first two,
    but at least in proportion to the first."""
    places = sorted(known)
    index = bisect_left(places, at)
    if index == len(places):
        return known[places[-1]] * at / places[-1]
    if places[index] == at:
        return known[at]
    if index == 0 and len(places) == 1:
        return known[places[0]] * at / places[0]
    low, high = places[max(0, index - 1)], places[max(1, index)]
    on_line = known[low] + (known[high] - known[low]) * (at - low) / (high - low)
    return on_line if index else max(on_line, known[low] * at / low)


def _json(mean: Mean | None) -> list[float] | None:
    return None if mean is None else [mean.seconds, mean.count]


def _mean(json: Any) -> Mean | None:
    match json:
        case [seconds, count] if is_number(seconds) and is_number(count) and seconds >= 0:
            return Mean(seconds=float(seconds), count=max(1, int(count)))
        case _:
            return None


def _means(json: Any) -> dict[int, Mean]:
    found = {int(name): _mean(value) for name, value in json.items()} if isinstance(json, Mapping) else {}
    return {name: mean for name, mean in found.items() if mean is not None}


def _by_rows(json: Any) -> dict[int, dict[int, Mean]]:
    of_cells = json.items() if isinstance(json, Mapping) else ()
    return {int(cells): means for cells, by_rows in of_cells if (means := _means(by_rows))}


def _by_rows_json(known: Mapping[int, Mapping[int, Mean]]) -> dict[str, dict[str, list[float] | None]]:
    return {str(cells): {str(rows): _json(mean) for rows, mean in of.items()} for cells, of in known.items()}


def _rows(json: Any) -> dict[int, int]:
    given = json.items() if isinstance(json, Mapping) else ()
    return {int(cells): rows for cells, rows in given if type(rows) is int and rows > 0}
