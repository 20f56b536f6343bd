"""Which jobs a worker takes next: first come, first served, as long as no API key is served more than its share.

Keys take turns by deficits, as in deficit round robin (Shreedhar and Varghese, 1995), with a quantum of many jobs and
one change: within the quantum jobs keep the order in which they came. Plain deficit round robin lets whoever comes last
go before others who were told when they will be done; here that happens only where fairness needs it: a key that was
served a quantum more than the one that was served least, of those that wait, lets the others go first.
docs/decisions/011-finish-times.md says why, and what it costs.

Within a key a step of priority is worth a minute of waiting, so that priorities act and nothing starves; a deadline
that is near counts as if the job had come earlier. A worker draws few jobs at once: those that share forwards. Another
one joins where none of them is late because of it; one that is late already keeps nobody from joining, since the
service would draw less when it has most to do.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any

from undertow.serving.store.records import QueueEntry

QUANTUM_JOBS = 24.0
"""The quantum, in jobs of the size that was usual lately."""
CREDIT = 0.5
"""The part of the quantum that a key has before it which used less than others: whoever asks for little now and then
waits for at most the rest of a quantum of those who ask for much."""
PRIORITY_S = 60.0
"""Waiting that a step of priority is worth."""
LEAD_S = 60.0
"""Seconds before its deadline from which on a job counts as one that came earlier."""
MOST_JOBS = 16
"""That a worker draws at once."""
SLACK = 0.05
SLACK_S = 0.5
"""By how much a job that runs may become late because another joins: a share of the time that was promised, and
seconds."""
LOST = 3.0
"""Times that a job is late: its promise is broken whatever becomes of it."""

Group = tuple[str, int, str, int | None]
"""Jobs of one group can share forwards: model, cells, mode and rows."""


def group_of(entry: QueueEntry) -> Group:
    return entry.model, entry.work.cells, entry.mode, entry.rows


@dataclass(kw_only=True)
class FairState:
    """What keys were served, in row-steps. A worker has its own. floor: what the one that was served least had, of
    those that waited last. usual: row-steps of a job lately."""

    served: dict[str, float] = field(default_factory=dict)
    floor: float = 0.0
    usual: float = 0.0

    @property
    def quantum(self) -> float:
        return QUANTUM_JOBS * self.usual

    def copy(self) -> "FairState":
        return FairState(served=dict(self.served), floor=self.floor, usual=self.usual)

    def to_json(self) -> dict[str, Any]:
        """What a worker says of itself, so that the clock runs the same schedule ahead."""
        return {"served": self.served, "floor": self.floor, "usual": self.usual}

    @classmethod
    def from_json(cls, json: Any) -> "FairState":
        """What `to_json` wrote; a new state where it is anything else."""
        match json:
            case {"served": dict(served), "floor": float() | int() as floor, "usual": float() | int() as usual}:
                return cls(served={str(key): float(value) for key, value in served.items()}, floor=floor, usual=usual)
            case _:
                return cls()

    def meet(self, keys: Iterable[str]) -> None:
        """Keys that wait now. Who used less than others has at most the credit before them; who used so little is
        forgotten when gone."""
        waiting = set(keys)
        if not waiting:
            return
        known = [self.served[key] for key in waiting if key in self.served]
        self.floor = max(self.floor, min(known, default=self.floor))
        least = self.floor - CREDIT * self.quantum
        kept = {key: served for key, served in self.served.items() if served > least}
        self.served = {**dict.fromkeys(waiting, least), **kept}

    def charge(self, entry: QueueEntry) -> None:
        """A job was taken; one that was taken before is paid for already."""
        if not entry.requeued:
            self.served[entry.key] = self.served.get(entry.key, self.floor) + entry.cost
        self.usual = entry.cost if not self.usual else self.usual + 0.1 * (entry.cost - self.usual)


@dataclass(kw_only=True)
class Running:
    """A job that a worker draws. left: steps until it is denoised. promised_at: when its client was told that it would
    be done; `None` where nothing was said."""

    entry: QueueEntry
    left: float
    promised_at: float | None = None


@dataclass(kw_only=True)
class Room:
    """What a worker draws and has room for. most_rows: of a forward for jobs of such a group, in the mode "fast".
    step_s: seconds of a step of such a group with so many rows together, adapters in so many of them. decode_s: of all
    pictures of a job. looked_s: by which a job makes each step longer because it is looked into."""

    running: Sequence[Running] = ()
    now: float = 0.0
    most_jobs: int = MOST_JOBS
    most_rows: Callable[[QueueEntry], int] = lambda entry: entry.work.rows
    step_s: Callable[[QueueEntry, int, int], float] = lambda entry, rows, adapted_rows: 1.0
    decode_s: Callable[[QueueEntry], float] = lambda entry: 0.0
    looked_s: Callable[[QueueEntry], float] = lambda entry: 0.0

    def step_of(self, entries: Sequence[QueueEntry]) -> float:
        """Seconds of a step of jobs that share forwards."""
        works = [entry.work for entry in entries]
        step_s = self.step_s(entries[0], sum([one.rows for one in works]), sum([one.adapted_rows for one in works]))
        return step_s + sum([self.looked_s(entry) for entry in entries])


def pick(entries: Sequence[QueueEntry], state: FairState, room: Room) -> list[str]:
    """The jobs that a worker takes now, by their ids, in the order in which it begins them. entries: those that wait.
    state: is charged with them."""
    line = Line(entries, state)
    running = list(room.running)
    taken: list[str] = []
    while True:
        entry = line.take(running, room)
        if entry is None:
            return taken
        running.append(Running(entry=entry, left=entry.work.steps, promised_at=entry.promised_at))
        taken.append(entry.id)


class Line:
    """Jobs that wait, in the order in which they are taken. It charges `state`."""

    def __init__(self, entries: Sequence[QueueEntry], state: FairState):
        self.state = state
        self._again = sorted((entry for entry in entries if entry.requeued), key=_came)
        self._of_key: dict[str, list[QueueEntry]] = {}
        for entry in entries:
            if not entry.requeued:
                self._of_key.setdefault(entry.key, []).append(entry)
        state.meet(self._of_key)
        self._turns: list[tuple[float, str]] = []
        """When the next job of a key came: priorities act inside a key, and gain nothing against others."""
        for key, own in self._of_key.items():
            own.sort(key=rank)
            own.reverse()  # the next one last
            heappush(self._turns, (own[-1].submitted_at, key))
        self._head = self._first()

    def __bool__(self) -> bool:
        return self._head is not None

    def take(self, running: Sequence[Running], room: Room) -> QueueEntry | None:
        """The next job that may join those that run, which leaves the line."""
        first = self._head
        if first is None or len(running) >= room.most_jobs or (running and not may_join(first, running, room)):
            return None
        self._leave(first)
        self._head = self._first()
        return first

    def _first(self) -> QueueEntry | None:
        if self._again:
            return self._again[0]
        key = self._next_key()
        return None if key is None else self._of_key[key][-1]

    def _next_key(self) -> str | None:
        """The key whose turn it is: the one whose next job came first, of those that are not served too much."""
        if not self._of_key:
            return None
        least = min(self.state.served[key] for key in self._of_key)
        aside: list[tuple[float, str]] = []
        found = None
        while found is None:
            came, key = self._turns[0]
            if key not in self._of_key or self._of_key[key][-1].submitted_at != came:
                heappop(self._turns)  # of a job that has left
            elif self.state.served[key] <= least + self.state.quantum:
                found = key
            else:
                aside.append(heappop(self._turns))
        for turn in aside:
            heappush(self._turns, turn)
        return found

    def _leave(self, entry: QueueEntry) -> None:
        """entry: the first one."""
        self.state.charge(entry)
        if entry.requeued:
            del self._again[0]
            return
        own = self._of_key[entry.key]
        own.pop()
        if own:
            heappush(self._turns, (own[-1].submitted_at, entry.key))
        else:
            del self._of_key[entry.key]


def rank(entry: QueueEntry) -> float:
    """Place within a key; the smallest goes first."""
    came = entry.submitted_at
    if entry.deadline_at is not None:
        came = min(came, entry.deadline_at - LEAD_S)
    return came - PRIORITY_S * entry.priority


def _came(entry: QueueEntry) -> float:
    return entry.submitted_at


def may_join(entry: QueueEntry, running: Sequence[Running], room: Room) -> bool:
    """Whether a job can share the forwards of those that run, without making them late."""
    if not running:
        return True
    group = group_of(entry)
    if entry.alone or any(one.entry.alone or group_of(one.entry) != group for one in running):
        return False
    if sum([one.entry.work.rows for one in running]) >= most_rows(entry, room):
        return False
    alone = _lateness(running, room)
    together = _lateness([*running, Running(entry=entry, left=entry.work.steps)], room)
    return all(together[id(one)] <= max(1.0, alone[id(one)]) or alone[id(one)] > LOST for one in running)


def most_rows(entry: QueueEntry, room: Room) -> int:
    """Of a forward: pinned in the mode "reproducible"."""
    return entry.rows if entry.mode == "reproducible" and entry.rows is not None else room.most_rows(entry)


def _lateness(running: Sequence[Running], room: Room) -> dict[int, float]:
    """How late jobs that share forwards will be if no other comes, in parts of what is allowed, by `id` of the record.
    Each leaves when it is denoised, and the steps of the others take less time from then on."""
    rows = sum([one.entry.work.rows for one in running])
    adapted_rows = sum([one.entry.work.adapted_rows for one in running])
    looked_s = sum([room.looked_s(one.entry) for one in running])
    at, done = room.now, 0.0
    found: dict[int, float] = {}
    for one in sorted(running, key=_left):
        entry = one.entry
        step_s = room.step_s(entry, rows, adapted_rows) + looked_s
        at += (one.left - done) * step_s + room.decode_s(entry)
        done, looked_s = one.left, looked_s - room.looked_s(entry)
        rows, adapted_rows = rows - entry.work.rows, adapted_rows - entry.work.adapted_rows
        if one.promised_at is None:
            found[id(one)] = 0.0
        else:
            slack = max(SLACK_S, SLACK * (one.promised_at - entry.submitted_at))
            found[id(one)] = (at - one.promised_at) / slack
    return found


def _left(one: Running) -> float:
    return one.left
