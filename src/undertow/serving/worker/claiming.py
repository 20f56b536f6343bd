"""How a worker comes by jobs: it looks when something changed, and in vain for a small share of the time at most. It
looks beside the work, which goes on when the store keeps it waiting."""

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

IDLE_SHARE = 0.2
"""Of the time of a worker that has nothing to do: the next job comes a moment after the last one was answered."""


def pause_s(took_s: float, *, is_idle: bool) -> float:
    """From the beginning of a look that found nothing to the next one. took_s: how long it was. is_idle: nothing runs
    beside it."""
    return took_s / IDLE_SHARE if is_idle else max(LOOK_S, took_s / LOOK_SHARE)


@dataclass(kw_only=True, eq=False)
class Claiming:
    """worker: the name under which jobs are leased. hold: extends the lease of a job from now on, whenever the loop
    comes to it. helper: does what waits for the store."""

    store: Store
    timing: Timing
    worker: str
    lease_s: float
    hold: Callable[[Claim], None] = lambda claim: None
    helper: Executor = field(default_factory=Inline)
    _asked: "Future[Taken] | None" = None
    _seen: int = -1
    _look_at: float = 0.0
    _beside: int = 0
    """Jobs that ran at the last look."""

    def may_look(self, running: Sequence[Running]) -> bool:
        """Whether there may be a job to take beside those that run."""
        if len(running) >= self._beside and time.monotonic() < self._look_at:
            return False
        return not running or (self.store.changed(self._seen, 0) != self._seen and not self.timing.is_full(running))

    @property
    def is_asking(self) -> bool:
        """Whether jobs may have been leased that nobody has taken yet."""
        return self._asked is not None

    def take(self, running: Sequence[Running]) -> Taken:
        """What the schedule chose and was leased; nothing as long as it is being asked beside jobs that run. Errors:
        `StoreError`."""
        if self._asked is None:
            self._asked = self.helper.submit(self._take, tuple(running))
        return [] if running and not self._asked.done() else self.taken()

    def taken(self) -> Taken:
        """The end of what was asked. Errors: `StoreError`."""
        asked, self._asked = self._asked, None
        return [] if asked is None else asked.result()

    def _take(self, running: Sequence[Running]) -> Taken:
        started = time.monotonic()
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
