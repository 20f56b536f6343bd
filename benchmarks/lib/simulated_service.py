"""A service in simulated time: jobs arrive, a worker takes them by the real schedule, and an engine works on them unit
by unit as `undertow.engine.engine` does, with noise on every unit. What the clock said at submit is held against it.

The engine is written out here, forward by forward, so that the clock is not compared with itself.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from undertow.serving.clock.costs import Costs
from undertow.serving.clock.finish_times import SAVED, Device, finish_times
from undertow.serving.clock.timetable import LATELY
from undertow.serving.inspection import InspectOptions
from undertow.serving.jobs import JobProgress, JobState, JobWork, Mode
from undertow.serving.schedule import FairState, Running, pick
from undertow.serving.store.records import QueueEntry

HEARTBEAT_S = 1.0
"""Between what a worker says of its jobs, at most."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What units of work take, in seconds. forward: a constant, of a row, and of a row for each cell. adapted: the part
    that a forward takes longer if adapters act in all of its rows, which they do for half of the jobs. looked: the part
    of jobs that are looked into, whose own rows take longer. decode: of a thousand cells. sizes: cells of pictures,
    each with how often it is asked for. steps, pictures: of jobs."""

    name: str
    forward: tuple[float, float, float]
    encode: float
    decode: float
    sizes: tuple[tuple[int, float], ...]
    steps: tuple[int, ...] = (8, 12, 20, 30)
    pictures: tuple[int, ...] = (1, 1, 1, 2, 4)
    modes: tuple[Mode, ...] = ("fast",)
    measured_rows: tuple[int, ...] = (1, 2, 4, 8, 16)
    adapted: float = 0.0
    looked: float = 0.0

    def forward_s(self, cells: int, rows: int, adapted_rows: int = 0) -> float:
        constant, row, cell = self.forward
        return constant + rows * (row + cell * cells) * (1 + self.adapted * adapted_rows / rows)


EMOJI = Machine(
    name="emoji on a CPU",
    forward=(0.008, 0.001, 2.5e-5),
    encode=0.01,
    decode=0.03,
    sizes=((256, 0.7), (1024, 0.3)),
)
EMOJI_LOOKED = replace(EMOJI, name="emoji on a CPU, a third looked into", looked=1 / 3)
EMOJI_LORA = replace(EMOJI, name="emoji on a CPU, half with LoRA", adapted=0.3)
SD15_CPU = Machine(
    name="SD1.5 on a CPU",
    forward=(0.05, 0.0, 2.4e-4),
    encode=0.4,
    decode=1.5,
    sizes=((1024, 0.3), (2304, 0.2), (4096, 0.5)),
)
SDXL_GPU = Machine(
    name="SDXL on an accelerator",
    forward=(0.02, 0.004, 2e-6),
    encode=0.05,
    decode=0.01,
    sizes=((4096, 0.3), (16384, 0.7)),
    steps=(8, 20, 30, 50),
    modes=("fast", "reproducible"),
)
MACHINES = (EMOJI, EMOJI_LORA, EMOJI_LOOKED, SD15_CPU, SDXL_GPU)
LOOKS = tuple(
    InspectOptions(**asked)
    for asked in ({"attention_maps": True}, {"attention_maps": True, "activations": True}, {"debug": "layers"})
)
"""What is looked at."""


@dataclass(kw_only=True)
class Simulated:
    """A job. cancel_at: when its client cancels it, if it is not done."""

    entry: QueueEntry
    cancel_at: float | None = None
    promised_at: float | None = None
    done_at: float | None = None
    encoded: bool = False
    left: int = 0
    """Steps."""
    pending: int = 0
    """Rows of the step that have no answer yet."""
    undecoded: int = 0

    @property
    def error(self) -> float:
        """Seconds that it was late; negative where it was early."""
        assert self.done_at is not None
        assert self.promised_at is not None
        return self.done_at - self.promised_at

    @property
    def allowed(self) -> float:
        """10 % of the time that was promised, or a second."""
        assert self.promised_at is not None
        return max(1.0, 0.1 * (self.promised_at - self.entry.submitted_at))


@dataclass(kw_only=True)
class Outcome:
    """Jobs that were not cancelled, and how busy the worker was."""

    jobs: list[Simulated]
    busy: float
    seed: int

    def share(self, kind: str) -> float:
        """Of jobs that were done in time: "held", neither later nor earlier than allowed; "not late"."""
        if kind == "held":
            return sum(abs(job.error) <= job.allowed for job in self.jobs) / len(self.jobs)
        return sum(job.error <= job.allowed for job in self.jobs) / len(self.jobs)


@dataclass(kw_only=True)
class World:
    """One worker, its engine and its clients."""

    machine: Machine
    load: float = 0.8
    keys: int = 3
    cancels: float = 0.1
    noise: float = 0.05
    count: int = 400
    seed: int = 0
    now: float = 0.0
    draw: random.Random = field(init=False)
    costs: Costs = field(default_factory=Costs)
    state: FairState = field(default_factory=FairState)
    waiting: list[Simulated] = field(default_factory=list)
    flying: list[Simulated] = field(default_factory=list)
    decoding: list[Simulated] = field(default_factory=list)
    turn: int = 0
    done: int = 0
    cancelled: int = 0

    def __post_init__(self) -> None:
        self.draw = random.Random(self.seed)
        self._warm_up()
        self.device = self._device()

    def _device(self) -> Device:
        """As a timetable makes it of what is known until now."""
        cancelled = SAVED * self.cancelled / max(LATELY, self.cancelled + self.done)
        return Device(costs={"m": self.costs}, models={"m"}, cancelled=cancelled)

    def run(self) -> Outcome:
        jobs = self.jobs()
        coming = sorted(jobs, key=lambda job: job.entry.submitted_at, reverse=True)
        busy = 0.0
        while coming or self.waiting or self.flying or self.decoding:
            while coming and coming[-1].entry.submitted_at <= self.now:
                self._submit(coming.pop())
            self._cancel()
            self._claim()
            took = self._work()
            if took is not None:
                busy += took
                self.now += took
            elif coming:
                self.now = max(self.now, coming[-1].entry.submitted_at)
        done = [job for job in jobs if job.done_at is not None]
        return Outcome(jobs=done, busy=busy / self.now, seed=self.seed)

    def _warm_up(self) -> None:
        """What a worker measures before its first job."""
        machine = self.machine
        self.costs.learn("encode", seconds=self._noisy(machine.encode))
        for cells, _ in machine.sizes:
            self.costs.learn("decode", seconds=self._noisy(machine.decode * cells / 1000), cells=cells)
            for rows in machine.measured_rows:
                for _ in range(3):
                    seconds = self._noisy(machine.forward_s(cells, rows))
                    self.costs.learn("denoise", seconds=seconds, cells=cells, rows=rows)
            self.costs.decide(cells)

    def jobs(self) -> list[Simulated]:
        """Arrivals as a Poisson process, at the load's share of what the machine does when it is full."""
        device = Device(costs={"m": self.costs}, models={"m"})
        entries = [self._entry(index) for index in range(self.count)]
        mean = sum(self._full_seconds(entry, device) for entry in entries) / self.count
        at, jobs = 0.0, []
        for entry in entries:
            at += self.draw.expovariate(self.load / mean)
            cancelled = self.draw.random() < self.cancels
            after = self.draw.expovariate(1 / (4 * mean)) if cancelled else None
            jobs.append(
                Simulated(
                    entry=replace(entry, submitted_at=at),
                    cancel_at=None if after is None else at + after,
                    left=entry.work.steps,
                    pending=entry.work.rows,
                    undecoded=entry.work.pictures,
                )
            )
        return jobs

    def _entry(self, index: int) -> QueueEntry:
        machine, draw = self.machine, self.draw
        cells = draw.choices([cells for cells, _ in machine.sizes], [weight for _, weight in machine.sizes])[0]
        mode, pictures = draw.choice(machine.modes), draw.choice(machine.pictures)
        rows = pictures * draw.choice((1, 2, 2, 2))
        steps = draw.choice(machine.steps)
        adapted_rows = rows if machine.adapted and draw.random() < 0.5 else 0
        work = JobWork(cells=cells, rows=rows, adapted_rows=adapted_rows, steps=steps, pictures=pictures)
        if machine.looked and draw.random() < machine.looked:
            look = draw.choice(LOOKS)
            work = replace(work, longer=look.longer, after_s=look.after_s)
        return entry_for(
            f"job{index}",
            f"key{draw.randrange(self.keys)}",
            work,
            mode=mode,
            rows=2 if mode == "reproducible" else None,
        )

    def _full_seconds(self, entry: QueueEntry, device: Device) -> float:
        """Of a job in full forwards."""
        cap = device.cap(entry) if entry.rows is None else entry.rows
        adapted_rows = cap if entry.work.adapted_rows else 0
        forward = self.machine.forward_s(entry.work.cells, cap, adapted_rows) / cap
        decode = self.machine.decode * entry.work.cells / 1000
        step = entry.work.rows * forward + self._looked_s(entry, entry.work.rows)
        return self.machine.encode + entry.work.steps * step + entry.work.pictures * decode + entry.work.after_s

    def _looked_s(self, entry: QueueEntry, rows: int) -> float:
        """What a forward takes longer because these rows of it are looked into."""
        return (entry.work.longer - 1) * self.machine.forward_s(entry.work.cells, rows) if rows else 0.0

    def _submit(self, job: Simulated) -> None:
        self.waiting.append(job)
        promised = finish_times(self._queue(), {"w": self.device}, job.entry.submitted_at, self.state)
        job.promised_at = promised[job.entry.id]
        job.entry = replace(job.entry, promised_at=job.promised_at, finish_at=job.promised_at)

    def _queue(self) -> list[QueueEntry]:
        """As the store shows it."""
        running = [self._said(job) for job in (*self.flying, *self.decoding)]
        return [*(job.entry for job in self.waiting), *running]

    def _said(self, job: Simulated) -> QueueEntry:
        steps = job.entry.work.steps
        stage = "decoding" if not job.left else "denoising"
        progress = JobProgress(stage=stage, step=steps - job.left, steps=steps)
        return replace(job.entry, state=JobState.RUNNING, worker="w", progress=progress)

    def _cancel(self) -> None:
        for line in (self.waiting, self.flying, self.decoding):
            for job in [one for one in line if one.cancel_at is not None and one.cancel_at <= self.now]:
                self.cancelled += 1
                line.remove(job)

    def _claim(self) -> None:
        if not self.waiting:
            return
        flying = [*self.flying, *self.decoding]
        running = [Running(entry=job.entry, left=job.left, promised_at=job.promised_at) for job in flying]
        room = self.device.room(running, self.now)
        for taken in pick([job.entry for job in self.waiting], self.state, room):
            job = next(one for one in self.waiting if one.entry.id == taken)
            self.waiting.remove(job)
            self.flying.append(job)

    def _work(self) -> float | None:
        """One unit of work; the kinds take turns, as in the engine."""
        kinds = (self._encode, self._denoise, self._decode)
        for _ in kinds:
            kind = kinds[self.turn]
            self.turn = (self.turn + 1) % len(kinds)
            took = kind()
            if took is not None:
                return took
        return None

    def _encode(self) -> float | None:
        job = next((one for one in self.flying if not one.encoded), None)
        if job is None:
            return None
        job.encoded = True
        return self._learned("encode", self._noisy(self.machine.encode))

    def _denoise(self) -> float | None:
        ready = [job for job in self.flying if job.encoded]
        if not ready:
            return None
        first = ready[0].entry
        pinned = first.rows
        most = self.device.cap(first) if pinned is None else pinned
        group = (first.work.cells, first.mode, first.rows)
        rows = adapted_rows = 0
        looked_s = 0.0
        for job in ready:
            if (job.entry.work.cells, job.entry.mode, job.entry.rows) != group:
                continue
            taken = min(job.pending, most - rows)
            job.pending -= taken
            rows += taken
            adapted_rows += taken if job.entry.work.adapted_rows else 0
            looked_s += self._looked_s(job.entry, taken)
        for job in [one for one in ready if not one.pending]:
            job.left -= 1
            job.pending = job.entry.work.rows
            self.flying.remove(job)
            (self.flying if job.left else self.decoding).append(job)
        computed = rows if pinned is None else pinned
        took = self._noisy(self.machine.forward_s(first.work.cells, computed, adapted_rows) + looked_s)
        if looked_s:
            return took  # of which nothing is learned
        return self._learned("denoise", took, cells=first.work.cells, rows=computed, adapted_rows=adapted_rows)

    def _decode(self) -> float | None:
        if not self.decoding:
            return None
        job = self.decoding[0]
        cells = job.entry.work.cells
        took = self._learned("decode", self._noisy(self.machine.decode * cells / 1000), cells=cells)
        job.undecoded -= 1
        if not job.undecoded:
            self.decoding.remove(job)
            took += job.entry.work.after_s
            job.done_at = self.now + took
            self.done += 1
        return took

    def _learned(self, kind: str, seconds: float, *, cells: int = 0, rows: int = 1, adapted_rows: int = 0) -> float:
        self.costs.learn(kind, seconds=seconds, cells=cells, rows=rows, adapted_rows=adapted_rows)
        self.device = self._device()
        return seconds

    def _noisy(self, seconds: float) -> float:
        return seconds * math.exp(self.draw.gauss(0.0, self.noise))


def entry_for(job: str, key: str, work: JobWork, *, mode: Mode = "fast", rows: int | None = None) -> QueueEntry:
    """A job that waits. Its cost is in row-steps of a thousand cells."""
    return QueueEntry(
        id=job,
        key=key,
        model="m",
        mode=mode,
        rows=rows,
        work=work,
        cost=work.rows * work.steps * work.cells / 1000,
        priority=0,
        state=JobState.QUEUED,
        submitted_at=0.0,
        started_at=None,
        deadline_at=None,
        promised_at=None,
        finish_at=None,
        attempt=0,
        alone=False,
        requeued=False,
        worker=None,
        beat_at=None,
        cancel_requested=False,
        progress=JobProgress(),
    )


def run_all(machine: Machine, seeds: Sequence[int], **settings: float) -> list[Outcome]:
    """A world for each seed."""
    return [World(machine=machine, seed=seed, **settings).run() for seed in seeds]  # pyright: ignore[reportArgumentType]
