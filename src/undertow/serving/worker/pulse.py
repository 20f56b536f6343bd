"""What keeps a worker's jobs its own: leases are extended while its loop goes on, and not a moment longer.

A thread writes, so that a step of ten seconds or the loading of a large model loses no job, and a wish to cancel is
known before the next step. It looks at when the loop last went on: an engine that hangs loses its jobs to another
worker, and its supervisor starts it again.
"""

import logging
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from undertow.serving.jobs import Claim, JobProgress
from undertow.serving.store.records import StoreError, Verdict
from undertow.serving.store.store import Store

logger = logging.getLogger(__name__)

BEAT_S = 0.5
"""Between two extensions of all leases, which are one statement; more often where leases are short."""
LOOK_S = 0.02
"""Between two looks at whether a client wants something, when anything has changed at all."""
UNIT_S = 120.0
"""A unit of work may take so long, or ten times as long as the longest before, or as is expected of the jobs."""
LONGER = 10.0


@dataclass(frozen=True, kw_only=True)
class Held:
    """A job of this worker, and how far it is."""

    claim: Claim
    progress: Callable[[], JobProgress]


class Pulse:
    """The heartbeat of a worker. alive: told that the loop goes on, for the supervisor. about: called at each beat, to
    write what is to be known of the worker itself. times: when jobs will be done, of all that wait and run. unit_s: how
    long a unit of work may take at least. `expected_s`: of the longest unit of the running jobs, as the clock knows."""

    def __init__(
        self,
        store: Store,
        worker: str,
        lease_s: float,
        *,
        alive: Callable[[], None] = lambda: None,
        about: Callable[[], None] = lambda: None,
        times: Callable[[], Mapping[str, float]] = dict,
        unit_s: float = UNIT_S,
        now: Callable[[], float] = time.monotonic,
    ):
        self.store = store
        self.worker = worker
        self.lease_s = lease_s
        self.unit_s = unit_s
        self.interval_s = min(BEAT_S, lease_s / 4)
        self._alive, self._about, self._times, self._now = alive, about, times, now
        self._held: dict[str, Held] = {}
        self._verdicts: dict[str, Verdict] = {}
        self._lock = threading.Lock()
        self._moved_at = now()
        self.expected_s = 0.0
        self._longest_s = 0.0
        self._patience_s: float | None = None
        self._seen = -1
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def hold(self, claim: Claim, progress: Callable[[], JobProgress]) -> None:
        with self._lock:
            self._held[claim.job.id] = Held(claim=claim, progress=progress)

    def drop(self, job: str) -> None:
        with self._lock:
            self._held.pop(job, None)
            self._verdicts.pop(job, None)

    def moved(self) -> None:
        """The loop goes on."""
        now = self._now()
        self._longest_s = max(self._longest_s, now - self._moved_at)
        self._moved_at = now

    @contextmanager
    def patient(self, seconds: float) -> Generator[None]:
        """Something that is known to take long, such as loading a model: the loop has so much time for it."""
        self._moved_at, self._patience_s = self._now(), seconds
        try:
            yield
        finally:
            self._moved_at, self._patience_s = self._now(), None

    @property
    def patience_s(self) -> float:
        """What anything that is done now may take: a step, or what is known to take long."""
        return self._patience_s or max(self.unit_s, LONGER * max(self._longest_s, self.expected_s))

    @property
    def hangs(self) -> bool:
        """Whether the loop has not gone on for longer than anything should take."""
        return self._now() - self._moved_at > self.patience_s

    def verdicts(self) -> list[Verdict]:
        """What has become known of the jobs since the last call."""
        with self._lock:
            found = list(self._verdicts.values())
            self._verdicts.clear()
        return found

    def beat(self) -> None:
        """Extends all leases, and writes how far the jobs are. Errors: `StoreError`."""
        if self.hangs:
            return
        self._alive()
        with self._lock:
            held = list(self._held.values())
        times = self._times()
        if held or times:
            beats = [(one.claim, one.progress()) for one in held]
            self._take(self.store.heartbeat(self.worker, beats, lease_s=self.lease_s, finish_at=times))
        self._about()

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="undertow-pulse", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        due = self._now()
        while not self._stopped.is_set():
            try:
                if self._now() >= due:
                    due = self._now() + self.interval_s
                    self.beat()
                else:
                    self._look(due - self._now())
            except StoreError as error:
                logger.error("leases could not be extended: %s", error)
                self._stopped.wait(self.interval_s)
            except Exception:
                logger.exception("the heartbeat failed, and goes on")
                self._stopped.wait(self.interval_s)

    def _look(self, timeout_s: float) -> None:
        """Learns of wishes between two beats, by reading alone."""
        if not self._held or self.hangs:
            self._stopped.wait(timeout_s)
            return
        version = self.store.changed(self._seen, timeout_s)
        if version != self._seen:
            self._seen = version
            self._take(self.store.verdicts(self._claims()))
            self._stopped.wait(LOOK_S)

    def _claims(self) -> list[Claim]:
        with self._lock:
            return [one.claim for one in self._held.values()]

    def _take(self, found: Iterable[Verdict]) -> None:
        with self._lock:
            self._verdicts |= {one.job: one for one in found if one.job in self._held}
