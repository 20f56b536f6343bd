"""How a worker comes by jobs: it looks when something changed, and in vain for a small share of the time at most."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from undertow.serving.jobs import Claim
from undertow.serving.schedule import FairState, Running
from undertow.serving.store.records import QueueEntry
from undertow.serving.store.store import Store
from undertow.serving.worker.timing import Timing, waiting_in

LOOK_S, LOOK_SHARE = 0.05, 0.02
"""Between two looks at what waits that found nothing, at least, and the share of time that these may take. After a look
that found jobs, and when one is done, there may be room and more to take at once."""


@dataclass(kw_only=True, eq=False)
class Claiming:
    """worker: the name under which jobs are leased."""

    store: Store
    timing: Timing
    worker: str
    lease_s: float
    _seen: int = -1
    _look_at: float = 0.0
    _beside: int = 0
    """Jobs that ran at the last look."""

    def may_look(self, running: Sequence[Running]) -> bool:
        """Whether there may be a job to take beside those that run."""
        if len(running) >= self._beside and time.monotonic() < self._look_at:
            return False
        return not running or (self.store.changed(self._seen, 0) != self._seen and not self.timing.is_full(running))

    def take(self, running: Sequence[Running]) -> list[tuple[Claim, QueueEntry]]:
        """Leases what the schedule chooses. Errors: `StoreError`."""
        started = time.monotonic()
        self._seen = self.store.changed(self._seen, 0)
        # Beside jobs that run, looking costs less than a transaction.
        is_some = not running or self.timing.choose(waiting_in(self.store.queue()), running)[0]
        taken = self._lease(running) if is_some else []
        self._beside = len(running) + len(taken)
        self._look_at = 0.0 if taken else started + max(LOOK_S, (time.monotonic() - started) / LOOK_SHARE)
        return taken

    def wait(self, timeout_s: float) -> None:
        """Until something changes, for a while."""
        self.store.changed(self._seen, timeout_s)

    def _lease(self, running: Sequence[Running]) -> list[tuple[Claim, QueueEntry]]:
        chosen: list[tuple[FairState, dict[str, QueueEntry]]] = []

        def pick(waiting: Sequence[QueueEntry]) -> Sequence[str]:
            ids, state = self.timing.choose(waiting, running)
            chosen[:] = [(state, {entry.id: entry for entry in waiting})]
            return ids

        claims = self.store.claim(self.worker, pick, self.lease_s)
        if not claims:
            return []
        state, entries = chosen[0]
        self.timing.state = state
        return [(claim, entries[claim.job.id]) for claim in claims]
