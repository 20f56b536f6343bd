"""How a worker comes by jobs: it looks when something changed, and in vain for a small share of the time at most. It
looks beside the work, which goes on when the store keeps it waiting."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field

from undertow.serving.jobs import Claim
from undertow.serving.schedule import FairState, Running
from undertow.serving.store.records import QueueEntry
from undertow.serving.store.store import Store
from undertow.serving.worker.publish import Inline
from undertow.serving.worker.timing import Timing, waiting_in

Taken = list[tuple[Claim, QueueEntry]]
"""Jobs that were leased, each as the schedule saw it."""

LOOK_S, LOOK_SHARE = 0.02, 0.05
"""Between two looks at what waits that found nothing beside jobs that run, at least, and the share of time that these
may take. After a look that found jobs, and when one is done, there may be room and more to take at once."""

AGAIN_S = 1.0
"""After a look that failed beside jobs that run."""

WATCH_S = 0.1
"""A helper beside the work waits for a change so long at a time: what comes during a step is leased when it is done."""

IDLE_SHARE = 0.2
"""Of the time of a worker that has nothing to do: the next job comes a moment after the last one was answered."""


def pause_s(took_s: float, *, is_idle: bool) -> float:
    """From the beginning of a look that found nothing to the next one. took_s: how long it was. is_idle: nothing runs
    beside it."""
    return took_s / IDLE_SHARE if is_idle else max(LOOK_S, took_s / LOOK_SHARE)


@dataclass(kw_only=True, eq=False)
class Claiming:
    """worker: the name under which jobs are leased. hold: extends the lease of a job from now on, whenever the loop
    comes to it. helper: does what waits for the store. watch_s: how long it may wait for a change beside jobs that run.
    """

    store: Store
    timing: Timing
    worker: str
    lease_s: float
    hold: Callable[[Claim], None] = lambda claim: None
    helper: Executor = field(default_factory=Inline)
    watch_s: float = 0.0
    _asked: "Future[Taken] | None" = None
    _seen: int = -1
    _look_at: float = 0.0
    _beside: int = 0
    """Jobs that ran at the last look."""
    _beside_asked: int = 0
    """Jobs that ran when the helper was asked."""
    _has_room: threading.Event = field(default_factory=threading.Event)
    """Set when a job has ended since the helper was asked."""

    def may_look(self, running: Sequence[Running]) -> bool:
        """Whether there may be a job to take beside those that run."""
        return not self.timing.is_full(running) if running else self._pause_left(running) <= 0

    @property
    def is_asking(self) -> bool:
        """Whether jobs may have been leased that nobody has taken yet."""
        return self._asked is not None

    def take(self, running: Sequence[Running]) -> Taken:
        """What the schedule chose and was leased; nothing as long as it is being asked beside jobs that run. Errors:
        `StoreError`."""
        if not running:
            self._has_room.set()
            return self.taken() or self._take(running)
        found = self._answered()
        if self._asked is None and not found:
            self._has_room.clear()
            self._beside_asked = len(running)
            self._asked = self.helper.submit(self._watch, tuple(running))
            return self._answered()
        if len(running) < self._beside_asked:
            self._has_room.set()
        return found

    def taken(self) -> Taken:
        """The end of what was asked. Errors: `StoreError`."""
        asked, self._asked = self._asked, None
        return [] if asked is None else asked.result()

    def _answered(self) -> Taken:
        """The end of what was asked, if it has come. Errors: `StoreError`."""
        return self.taken() if self._asked is not None and self._asked.done() else []

    def _pause_left(self, running: Sequence[Running]) -> float:
        """Seconds until the next look; none where one of those has ended that ran at the last one."""
        return 0.0 if len(running) < self._beside else max(0.0, self._look_at - time.monotonic())

    def _watch(self, running: Sequence[Running]) -> Taken:
        """What `_take` gives, as soon as it gives anything; nothing where that is not soon, or a job ends meanwhile."""
        until = time.monotonic() + self.watch_s
        while True:
            self._has_room.wait(min(self._pause_left(running), max(0.0, until - time.monotonic())))
            left = max(0.0, until - time.monotonic())
            if self._pause_left(running) <= 0 and self.store.changed(self._seen, left) != self._seen:
                found = self._take(running)
                if found:
                    return found
            if time.monotonic() >= until or self._has_room.is_set():
                return []

    def _take(self, running: Sequence[Running]) -> Taken:
        started = time.monotonic()
        self._look_at = started + AGAIN_S  # if the store is away
        self._seen = self.store.changed(self._seen, 0)
        # Beside jobs that run, looking costs less than a transaction.
        is_some = not running or self.timing.choose(waiting_in(self.store.queue()), running)[0]
        taken = self._lease(running) if is_some else []
        self._beside = len(running) + len(taken)
        took_s = time.monotonic() - started
        self._look_at = 0.0 if taken else started + pause_s(took_s, is_idle=not running)
        return taken

    def wait(self, timeout_s: float) -> None:
        """Until something changes, for a while."""
        self.store.changed(self._seen, timeout_s)

    def _lease(self, running: Sequence[Running]) -> Taken:
        chosen: list[tuple[FairState, dict[str, QueueEntry]]] = []

        def pick(waiting: Sequence[QueueEntry]) -> Sequence[str]:
            ids, state = self.timing.choose(waiting, running)
            chosen[:] = [(state, {entry.id: entry for entry in waiting})]
            return ids

        claims = self.store.claim(self.worker, pick, self.lease_s)
        if not claims:
            return []
        for claim in claims:
            self.hold(claim)
        state, entries = chosen[0]
        self.timing.state = state
        return [(claim, entries[claim.job.id]) for claim in claims]
