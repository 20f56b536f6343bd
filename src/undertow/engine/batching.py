"""Continuous batching: generators of many pictures, whose rows share forwards, and who join and leave at every step."""

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from torch import Tensor

from undertow.adapters.manager import AdapterManager
from undertow.engine.forward import fit_together, forward
from undertow.engine.rows import Outcome, Row, Steps
from undertow.errors import InvalidInput

CELLS_AT_ONCE = {"cpu": 8192}
CELLS_ON_ACCELERATORS = 65536
"""Latent cells that one forward computes by default: a batch of 2 rows of 512x512 pixels on a CPU, where larger ones
gain nothing (benchmarks/batching.py), 16 on an accelerator, and many more of small pictures."""


@dataclass(frozen=True, kw_only=True)
class BatchLimits:
    """rows: most rows of a forward, by the size of the picture when `None`. padded_to: every forward computes exactly
    this many rows, so that a picture is bit-equal whatever shares its batches. Errors: `InvalidInput`."""

    rows: int | None = None
    padded_to: int | None = None

    def __post_init__(self) -> None:
        for name in ("rows", "padded_to"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidInput(name, value, "at least 1")
        if self.rows is not None and self.padded_to is not None and self.rows > self.padded_to:
            raise InvalidInput("rows", self.rows, f"at most padded_to = {self.padded_to}")

    def most_rows(self, latents: Tensor) -> int:
        """Rows of a forward over such latents."""
        if self.padded_to is not None:
            return self.padded_to if self.rows is None else self.rows
        if self.rows is not None:
            return self.rows
        cells = CELLS_AT_ONCE.get(latents.device.type, CELLS_ON_ACCELERATORS)
        return max(2, cells // (latents.shape[2] * latents.shape[3]))


@dataclass(frozen=True, kw_only=True)
class Share:
    """A forward as one picture had part in it: seconds, by rows; rows: of the whole batch."""

    seconds: float
    rows: int


@dataclass(kw_only=True, eq=False)
class Task:
    """A generator on its way. done: given its result. failed: given what it raised; others go on. rows: those that
    it waits for, answers: what has come of them."""

    steps: Steps[Tensor]
    done: Callable[[Tensor], None]
    failed: Callable[[Exception], None]
    shared: Callable[[Share], None] = lambda share: None
    rows: list[Row] = field(default_factory=list, init=False)
    answers: list[Outcome | None] = field(default_factory=list, init=False)


class Batcher:
    """Runs tasks. Anyone may `join` between two steps, also from within a task. manager: of the adapters in rows."""

    def __init__(self, limits: BatchLimits, manager: AdapterManager | None = None):
        self.limits = limits
        self.manager = manager
        self._tasks: list[Task] = []

    def join(self, task: Task) -> None:
        """Takes part from the next step on. The task runs to its first evaluation now."""
        self._tasks.append(task)
        self._advance(task, None)

    def leave(self, task: Task) -> None:
        """Takes no more part; its generator is closed."""
        if task in self._tasks:
            self._tasks.remove(task)
            task.steps.close()

    @property
    def busy(self) -> bool:
        return bool(self._tasks)

    def step(self) -> None:
        """One forward, for the row that has waited longest and as many others as can share with it; the pictures whose
        evaluations are complete go on to their next."""
        waiting = [(task, index) for task in self._tasks for index, answer in enumerate(task.answers) if answer is None]
        if not waiting:
            return
        chosen = self._together(waiting)
        started = time.perf_counter()
        try:
            outcomes = forward([_row(place) for place in chosen], self.manager, self.limits.padded_to)
        except Exception as error:
            for task in dict.fromkeys(task for task, _ in chosen):
                self._end(task, error)
            return
        each = (time.perf_counter() - started) / len(chosen)
        served: dict[Task, int] = {}
        for (task, index), outcome in zip(chosen, outcomes, strict=True):
            task.answers[index] = outcome
            served[task] = served.get(task, 0) + 1
        # Who has waited goes behind those who have not been served, so that every key gets its turn.
        for task, count in served.items():
            task.shared(Share(seconds=each * count, rows=len(chosen)))
            if task not in self._tasks:
                continue  # it left because another picture of its request was cancelled or failed
            if all(answer is not None for answer in task.answers):
                self._tasks.remove(task)
                self._tasks.append(task)
                self._advance(task, [answer for answer in task.answers if answer is not None])

    def _together(self, waiting: list[tuple[Task, int]]) -> list[tuple[Task, int]]:
        """The row that has waited longest, and those that can share its forward. Pictures whose adapters are merged
        into the weights right now go on first, since merging others takes time."""
        first = next((place for place in waiting if self._is_merged(_row(place))), waiting[0])
        key: Hashable = _row(first).key
        chosen: list[tuple[Task, int]] = []
        for place in waiting:
            if len(chosen) == self.limits.most_rows(_row(first).latents):
                break
            if _row(place).key == key and self._fit([*chosen, place]):
                chosen.append(place)
        return chosen

    def _fit(self, places: list[tuple[Task, int]]) -> bool:
        return fit_together([_row(place) for place in places], self.manager)

    def _is_merged(self, row: Row) -> bool:
        """Whether the weights are already those that the row needs."""
        return row.adapters is None or self.manager is None or self.manager.is_prepared(row.adapters)

    def run(self) -> None:
        """Until nobody takes part."""
        while self.busy:
            self.step()

    def _advance(self, task: Task, answers: list[Outcome] | None) -> None:
        try:
            task.rows = list(task.steps.send(answers))  # pyright: ignore[reportArgumentType]
            task.answers = [None] * len(task.rows)
        except StopIteration as finished:
            self._tasks.remove(task)
            task.done(finished.value)
        except Exception as error:  # of one picture, which must not end the others
            self._end(task, error)

    def _end(self, task: Task, error: Exception) -> None:
        if task in self._tasks:
            self._tasks.remove(task)
        task.steps.close()
        task.failed(error)


def _row(place: tuple[Task, int]) -> Row:
    task, index = place
    return task.rows[index]
