"""When jobs will be done: the schedule run ahead, with what units of work cost.

The same `schedule.Line` decides here and in a worker, so that what is said is what is done. Later jobs are not known
here; the schedule lets them change as little as is fair.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from math import ceil

from undertow.serving.clock.costs import Costs
from undertow.serving.jobs import JobState
from undertow.serving.schedule import MOST_JOBS, FairState, Group, Line, Room, Running, group_of
from undertow.serving.store.records import QueueEntry

SAVED = 0.5
"""Of the work of a job that is cancelled, what is saved: some wait no more, some are nearly done."""
DEFAULT_ROWS = 2
"""Of a forward where nothing was decided: those of a picture with guidance."""


@dataclass(kw_only=True)
class Device:
    """What draws, as far as time is concerned. costs: by model. models: that are loaded. cancelled: the part of the
    work that waits which is expected to be cancelled before it is done. ready_s: until it draws anything."""

    costs: Mapping[str, Costs]
    models: set[str] = field(default_factory=set)
    most_jobs: int = MOST_JOBS
    cancelled: float = 0.0
    ready_s: float = 0.0
    _steps: dict[tuple[Group, int, int], float] = field(default_factory=dict)

    def of(self, entry: QueueEntry) -> Costs:
        return self.costs.get(entry.model) or Costs()

    def cap(self, entry: QueueEntry) -> int:
        """Most rows of a forward in the mode "fast"."""
        decided = self.of(entry).rows_for(entry.work.cells)
        return DEFAULT_ROWS if decided is None else decided

    def step_s(self, entry: QueueEntry, rows: int, adapted_rows: int) -> float:
        """Of a step of jobs of this one's group that have so many rows together, adapters in so many of them."""
        key = (group_of(entry), rows, adapted_rows)
        if key not in self._steps:
            self._steps[key] = self._forwards_s(entry, rows, adapted_rows)
        return self._steps[key]

    def _forwards_s(self, entry: QueueEntry, rows: int, adapted_rows: int) -> float:
        """More rows than a forward has take turns, in forwards that are full."""
        pinned = entry.rows if entry.mode == "reproducible" else None
        at_once = self.cap(entry) if pinned is None else pinned
        computed = at_once if pinned is not None else min(rows, at_once)
        turns = max(1.0, rows / at_once)
        return turns * self.of(entry).forward_s(entry.work.cells, computed, ceil(adapted_rows / turns))

    def looked_s(self, entry: QueueEntry) -> float:
        """By which a job makes each step longer because it is looked into: its own rows alone are."""
        if entry.work.longer == 1:
            return 0.0
        return (entry.work.longer - 1) * self.of(entry).forward_s(entry.work.cells, entry.work.rows)

    def decode_s(self, entry: QueueEntry) -> float:
        """Of all pictures of a job, and of what was seen; none where it will be canceled."""
        if entry.cancel_requested:
            return 0.0
        return entry.work.pictures * self.of(entry).decode_s(entry.work.cells) + entry.work.after_s

    def seconds(self, entry: QueueEntry) -> float:
        """Of a job that is alone."""
        step_s = self.room((), 0.0).step_of([entry])
        return self.of(entry).encode_s() + entry.work.steps * step_s + self.decode_s(entry)

    def room(self, running: Sequence[Running], now: float) -> Room:
        """For the jobs that it draws, and more."""
        return Room(
            running=running,
            now=now,
            most_jobs=self.most_jobs,
            most_rows=self.cap,
            step_s=self.step_s,
            decode_s=self.decode_s,
            looked_s=self.looked_s,
        )


def finish_times(
    entries: Sequence[QueueEntry], devices: Mapping[str, Device], now: float, state: FairState | None = None
) -> dict[str, float]:
    """When every job of the queue will be done, by its id, in seconds since 1970. entries: those that wait and those
    that run. devices: by the names of the workers; at least one. state: of the workers' schedule."""
    waiting = [entry for entry in entries if entry.state == JobState.QUEUED]
    line = Line(waiting, FairState() if state is None else state.copy())
    found: dict[str, float] = {}
    lanes = [_Lane(device, now + device.ready_s, _running(entries, name, devices)) for name, device in devices.items()]
    heap = [(lane.at, index) for index, lane in enumerate(lanes)]
    heapify(heap)
    while heap:
        _, index = heappop(heap)
        lane = lanes[index]
        lane.fill(line)
        if lane.running:
            found.update(lane.advance())
            heappush(heap, (lane.at, index))
    return found


def _running(entries: Sequence[QueueEntry], name: str, devices: Mapping[str, Device]) -> list[Running]:
    """The jobs that a worker draws; those of a worker that is not known are the first one's."""
    first = next(iter(devices))
    own = [
        entry
        for entry in entries
        if entry.state == JobState.RUNNING and (entry.worker if entry.worker in devices else first) == name
    ]
    return [Running(entry=entry, left=left_of(entry), promised_at=entry.promised_at) for entry in own]


def left_of(entry: QueueEntry) -> float:
    """Steps that a running job has before it, by what its worker said last: the present one where it is canceled."""
    progress = entry.progress
    if progress.stage == "decoding":
        return 0.0
    share = progress.step / progress.steps if progress.steps else 0.0
    left = entry.work.steps * max(0.0, 1.0 - share)
    return min(left, 1.0) if entry.cancel_requested else left


class _Lane:
    """One worker, from event to event."""

    def __init__(self, device: Device, at: float, running: list[Running]):
        self.device, self.at, self.running = device, at, running
        self._room = device.room(running, at)
        self._models = set(device.models)
        self._catch_up()

    def _catch_up(self) -> None:
        """What was done since the worker said that it was so far, of jobs that are being denoised."""
        step_s = self._step_s()
        for one in self.running:
            said_at = one.entry.beat_at
            if said_at is not None and one.entry.progress.stage == "denoising" and step_s:
                one.left = max(min(one.left, 1.0), one.left - max(0.0, self.at - said_at) / step_s)

    def fill(self, line: Line) -> None:
        """Takes jobs as a worker does."""
        while line:
            self._room.now = self.at
            entry = line.take(self.running, self._room)
            if entry is None:
                return
            if entry.model not in self._models:
                self.at += self.device.of(entry).load_s()
                self._models.add(entry.model)
            self.at += self.device.of(entry).encode_s()
            left = entry.work.steps * (1 - self.device.cancelled)
            self.running.append(Running(entry=entry, left=left, promised_at=entry.promised_at))

    def advance(self) -> dict[str, float]:
        """To the moment when the next jobs are done; when each of these is."""
        steps = min([one.left for one in self.running])
        self.at += steps * self._step_s()
        done: list[Running] = []
        others: list[Running] = []
        for one in self.running:
            one.left -= steps
            (others if one.left > 1e-9 else done).append(one)
        self.running = others
        found: dict[str, float] = {}
        for one in done:
            self.at += self.device.decode_s(one.entry)
            if others:  # decoding a picture and a step of the others take turns
                turns = min([float(one.entry.work.pictures), *(other.left for other in others)])
                self.at += turns * self._step_s()
                for other in others:
                    other.left -= turns
            found[one.entry.id] = self.at + self._not_cancelled_s(one.entry)
        return found

    def _not_cancelled_s(self, entry: QueueEntry) -> float:
        """What a job takes itself of the time that others are expected not to take: it is done only if it stays."""
        if entry.state != JobState.QUEUED:
            return 0.0
        return self.device.cancelled * entry.work.steps * self._room.step_of([entry])

    def _step_s(self) -> float:
        """Of one step of all that run, whose groups take turns."""
        groups: dict[Group, list[Running]] = {}
        for one in self.running:
            groups.setdefault(group_of(one.entry), []).append(one)
        return sum([self._room.step_of([one.entry for one in group]) for group in groups.values()])
