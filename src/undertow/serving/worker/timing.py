"""What work costs here, learned from every unit of it: it decides which jobs are taken, and says when all are done."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from undertow.attention.measurement import Machine
from undertow.engine.events import WorkEvent
from undertow.serving.clock.costs import Costs, Learner
from undertow.serving.clock.finish_times import Device, finish_times
from undertow.serving.clock.timetable import COMPUTING, device_of, place_of
from undertow.serving.jobs import JobState
from undertow.serving.schedule import MOST_JOBS, FairState, Running, most_rows, pick
from undertow.serving.settings import ServerSettings
from undertow.serving.store.records import QueueEntry, WorkerInfo
from undertow.serving.store.store import Store

SAVE_S = 10.0
"""Between two times that costs are written, where they are learned all the time."""
SAY_S, SAY_SHARE = 1.0, 0.05
"""Between two times that finish times are computed, at least, and the share of time that it may take."""
SILENT_S = 10.0
"""A worker that wrote nothing for so long draws nothing."""


@dataclass(kw_only=True, eq=False)
class Timing:
    """The costs of one worker, by model, and the fairness that it keeps."""

    store: Store
    device: str
    settings: ServerSettings = field(default_factory=ServerSettings)
    computing: str = ""
    """What `computing_of` says: costs are shared with workers that compute alike, and with no others."""
    state: FairState = field(default_factory=FairState)
    costs: dict[str, Costs] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock, init=False)
    """The thread that works learns while others read."""
    _saved_at: float = field(default_factory=time.monotonic, init=False)
    _say_at: float = field(default=0.0, init=False)

    def of(self, model: str) -> Costs:
        """What is known of a model: what workers of the same kind have learned at any time."""
        if model not in self.costs:
            known = Costs.from_json(self.store.costs.get(model, *self._place))
            with self._lock:
                self.costs.setdefault(model, known)
        return self.costs[model]

    def learner(self, model: str) -> Callable[[WorkEvent], None]:
        """Learns from an engine's units of work."""
        learner = Learner(self.of(model))

        def observe(event: WorkEvent) -> None:
            with self._lock:
                learner.observe(event)

        return observe

    def schedule(self) -> Device:
        """This worker, as the schedule sees it."""
        return Device(costs=self.costs, most_jobs=self.settings.jobs_at_once or MOST_JOBS)

    @property
    def _place(self) -> tuple[str, str]:
        return self.device, self.computing

    def choose(self, waiting: Sequence[QueueEntry], running: Sequence[Running]) -> tuple[list[str], FairState]:
        """The jobs to be taken, and the fairness when they are. It is pure: a transaction may be run again."""
        for entry in waiting:
            self.of(entry.model)
        state = self.state.copy()
        with self._lock:
            return pick(waiting, state, self.schedule().room(running, self.store.clock())), state

    def is_full(self, running: Sequence[Running]) -> bool:
        """Whether nothing can join these jobs, whatever waits."""
        room = self.schedule().room(running, 0.0)
        first = running[0].entry
        rows = sum(one.entry.work.rows for one in running)
        return (
            len(running) >= room.most_jobs
            or any(one.entry.alone for one in running)
            or (rows >= most_rows(first, room))
        )

    def finish_times(self, worker: str, loaded: Sequence[str]) -> Mapping[str, float]:
        """When everything that waits and runs will be done; empty where it was said a moment ago, or another worker
        says it. worker: this one."""
        started = time.monotonic()
        if started < self._say_at:
            return {}
        now = self.store.clock()
        workers = {one.name: one for one in self.store.workers.list(seen_after=now - SILENT_S)}
        if min(workers, default=worker) != worker:
            self._say_at = started + SAY_S
            return {}
        entries = self.store.queue()
        for model in {entry.model for entry in entries}:
            self.of(model)
        if not workers:
            workers = {
                worker: WorkerInfo(
                    name=worker, device=self.device, pid=0, models=tuple(loaded), data={COMPUTING: self.computing}
                )
            }
        models = {self.settings.default_model, *(entry.model for entry in entries)}
        known = self._known(models, {place_of(one) for one in workers.values()})
        devices = {name: device_of(one, known[place_of(one)], self.settings, now) for name, one in workers.items()}
        found = finish_times(entries, devices, now, self.state)
        took = time.monotonic() - started
        self._say_at = started + max(SAY_S, took / SAY_SHARE)
        return found

    def _known(self, models: set[str], places: set[tuple[str, str]]) -> dict[tuple[str, str], dict[str, Costs]]:
        """What units of work cost at each place (`place_of`), by model."""
        own = {model: Costs.from_json(json) for model, json in self._written().items()}
        others = places - {self._place}
        measured = self.store.costs.all() if others else {}
        found = {place: {model: Costs.from_json(measured.get((model, *place))) for model in models} for place in others}
        return {self._place: own, **found}

    def save(self, *, now: bool = False) -> None:
        """Writes the costs, from time to time, for API processes and for later."""
        if now or time.monotonic() - self._saved_at > SAVE_S:
            self._saved_at = time.monotonic()
            for model, json in self._written().items():
                if self.costs[model].known:
                    self.store.costs.put(model, *self._place, json)

    def _written(self) -> dict[str, dict[str, Any]]:
        """The costs of all models, at one moment."""
        with self._lock:
            return {model: costs.to_json() for model, costs in self.costs.items()}


def computing_of(settings: ServerSettings, machine: Machine) -> str:
    """How a worker computes: on which machine, in how many threads, in which type, by what. What took its time
    otherwise says nothing of it. machine: with the threads that PyTorch really uses, whoever decided on them."""
    backend = None if settings.backend == "eager" else settings.backend
    said = (machine.words, settings.precision, backend, settings.quantize)
    return ", ".join(one for one in said if one is not None)


def running(entry: QueueEntry, step: int, steps: int) -> Running:
    """A job that this worker draws, with what it has before it. step, steps: as the engine says."""
    share = step / steps if steps else 0.0
    return Running(entry=entry, left=entry.work.steps * max(0.0, 1.0 - share), promised_at=entry.promised_at)


def waiting_in(queue: Sequence[QueueEntry]) -> list[QueueEntry]:
    return [entry for entry in queue if entry.state is JobState.QUEUED]
