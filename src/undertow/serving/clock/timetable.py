"""What the service says of time: when a new job will be done, when those that wait will be, when to come again."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from threading import Lock
from typing import Protocol, runtime_checkable

from undertow.serving.clock.costs import Costs
from undertow.serving.clock.finish_times import SAVED, Device, finish_times
from undertow.serving.jobs import Job, JobProgress, JobState, NewJob
from undertow.serving.schedule import MOST_JOBS, FairState
from undertow.serving.settings import ServerSettings
from undertow.serving.store.records import QueueEntry, WorkerInfo

REFRESH_S = 0.5
"""The queue is read again after so long; jobs that were promised meanwhile are known."""
WORKERS_S = 5.0
"""So are workers and what units of work cost."""
SILENT_S = 30.0
"""After which a worker that says nothing draws nothing."""
LATELY = 100
"""Jobs by which the share that is cancelled is known."""
MANY = 50
"""Jobs of one key that wait, from which on another one is placed behind them without running the schedule ahead."""
FAIR = "fair"
"""Where a worker says the state of its schedule, in `WorkerInfo.data`."""
COMPUTING = "computing"
"""And how it computes, by which costs are kept."""
NEW = ""
"""The id of a job that is not in the queue yet."""


@runtime_checkable
class Listed(Protocol):
    """`Store.workers`."""

    def list(self, seen_after: float = 0.0) -> list[WorkerInfo]: ...


@runtime_checkable
class Measured(Protocol):
    """`Store.costs`."""

    def all(self) -> dict[tuple[str, str, str], dict[str, object]]: ...


@runtime_checkable
class Queue(Protocol):
    """What of a `Store` is read."""

    @property
    def workers(self) -> Listed: ...
    @property
    def costs(self) -> Measured: ...
    @property
    def clock(self) -> Callable[[], float]: ...
    def queue(self) -> list[QueueEntry]: ...
    def jobs(self, *, states: Sequence[JobState], limit: int) -> list[Job]: ...


class Timetable:
    """Of one service. Any thread may ask."""

    def __init__(self, store: Queue, settings: ServerSettings, *, refresh_s: float = REFRESH_S):
        self._store, self._settings, self._refresh_s = store, settings, refresh_s
        self._lock = Lock()
        self._entries: list[QueueEntry] = []
        self._promised: dict[str, QueueEntry] = {}
        self._times: dict[str, float] | None = None
        self._devices: dict[str, Device] = {}
        self._state = FairState()
        self._count = 0
        self._read_at = self._workers_at = float("-inf")

    def promise(self, new: NewJob) -> float:
        """When a job will be done that is accepted now, in seconds since 1970. It counts in later answers, as long as
        it is not in the queue."""
        with self._lock:
            self._refresh()
            now = self._store.clock()
            entry = entry_of(new, now)
            finish_at = self._promise(entry, now)
            name = f"new {self._count}"
            self._count += 1
            self._promised[name] = replace(entry, id=name, promised_at=finish_at, finish_at=finish_at)
            if self._times is not None:
                self._times[name] = finish_at
            return finish_at

    def withdraw(self, new: NewJob) -> None:
        """The job that was promised last is not accepted."""
        with self._lock:
            for name, entry in reversed(self._promised.items()):
                if entry.key == new.key and entry.work == new.work:
                    del self._promised[name]
                    self._times = None
                    return

    def finish_times(self) -> Mapping[str, float]:
        """When every job of the queue will be done, as far as can be said now, by its id."""
        with self._lock:
            self._refresh()
            return dict(self._all(self._store.clock()))

    def retry_after_s(self) -> float:
        """Seconds until the next job of the queue is done, after which there is room for another one."""
        with self._lock:
            self._refresh()
            now = self._store.clock()
            return max(1.0, min(self._all(now).values(), default=now) - now)

    def rows(self, model: str, cells: int) -> int | None:
        """Of a forward for pictures of this size, the most that pay; `None` where no worker has measured it."""
        with self._lock:
            self._refresh()
            known = (device.costs[model].rows_for(cells) for device in self._devices.values() if model in device.costs)
            return next((rows for rows in known if rows is not None), None)

    def _promise(self, entry: QueueEntry, now: float) -> float:
        waiting = [one for one in self._line() if one.key == entry.key and one.state == JobState.QUEUED]
        if len(waiting) < MANY or entry.priority or entry.deadline_at is not None:
            return self._run([*self._line(), entry], now)[NEW]
        times = self._all(now)
        last = max(times[one.id] for one in waiting)
        pace = (last - now) / sum(one.cost for one in waiting)
        return last + pace * entry.cost

    def _all(self, now: float) -> dict[str, float]:
        if self._times is None:
            self._times = self._run(self._line(), now)
        return self._times

    def _run(self, entries: Sequence[QueueEntry], now: float) -> dict[str, float]:
        return finish_times(entries, self._devices, now, self._state)

    def _line(self) -> list[QueueEntry]:
        return [*self._entries, *self._promised.values()]

    def _refresh(self) -> None:
        at = time.monotonic()
        if at - self._workers_at > WORKERS_S:
            self._workers_at = at
            self._look_at_workers()
        if at - self._read_at > self._refresh_s:
            self._read_at = at
            self._entries = self._store.queue()
            self._promised, self._times = {}, None

    def _look_at_workers(self) -> None:
        workers = self._store.workers.list(self._store.clock() - SILENT_S)
        measured = self._store.costs.all()
        if not workers:  # about to start, and to compute as they did last
            last = {device: computing for _, device, computing in measured}
            workers = [
                WorkerInfo(name=device, device=device, pid=0, data={COMPUTING: last.get(device, "")})
                for device in self._settings.devices
            ]
        cancelled = SAVED * self._cancelled_share()
        self._devices = {}
        for worker in workers:
            costs = {
                model: Costs.from_json(json)
                for (model, *where), json in measured.items()
                if tuple(where) == place_of(worker)
            }
            self._devices[worker.name] = device_of(
                worker, costs, self._settings, self._store.clock(), cancelled=cancelled
            )
        self._state = FairState.from_json(next((one.data[FAIR] for one in workers if FAIR in one.data), None))

    def _cancelled_share(self) -> float:
        """Of the jobs that were submitted lately and are done."""
        done = self._store.jobs(states=(JobState.SUCCEEDED, JobState.CANCELED), limit=LATELY)
        return sum(job.state == JobState.CANCELED for job in done) / max(LATELY, len(done))


def place_of(worker: WorkerInfo) -> tuple[str, str]:
    """The device, and how the worker computes there: its costs are kept by both."""
    return worker.device, worker.data.get(COMPUTING, "")


def device_of(
    worker: WorkerInfo, costs: Mapping[str, Costs], settings: ServerSettings, now: float, *, cancelled: float = 0.0
) -> Device:
    """What a worker is to the clock. One that is starting draws when its first model is loaded and measured, which is
    expected to take what it took the last time. costs: of its models."""
    models, ready_s = set(worker.models), 0.0
    if worker.state == "starting" and worker.started_at:
        models.add(settings.default_model)
        known = costs.get(settings.default_model, Costs()).load_s()
        ready_s = max(0.0, worker.started_at + (known or settings.start_s) - now)
    return Device(
        costs=costs,
        models=models,
        cancelled=cancelled,
        most_jobs=settings.jobs_at_once or MOST_JOBS,
        ready_s=ready_s,
    )


def entry_of(new: NewJob, now: float) -> QueueEntry:
    """A job as it will stand in the queue."""
    return QueueEntry(
        id=NEW,
        key=new.key,
        model=new.spec.model,
        mode=new.spec.mode,
        rows=new.spec.rows,
        work=new.work,
        cost=new.cost,
        priority=new.priority,
        state=JobState.QUEUED,
        submitted_at=now,
        started_at=None,
        deadline_at=new.deadline_at,
        promised_at=None,
        finish_at=None,
        attempt=0,
        alone=new.alone,
        requeued=False,
        worker=None,
        beat_at=None,
        cancel_requested=False,
        progress=JobProgress(),
    )
