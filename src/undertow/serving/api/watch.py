"""Waiting for jobs: one thread asks the store whether anything changed, and wakes every client that waits."""

import asyncio
import threading
import time
from collections.abc import Callable

from starlette.concurrency import run_in_threadpool

from undertow.serving.jobs import Job
from undertow.serving.store.store import Store

POLL_S = 1.0
"""The longest that a waiter sleeps: a hint of the store may be lost."""
LULL_S, LULL_EACH_S = 0.02, 0.002
"""Between two wakings, at most and for each that was woken: a busy worker must not make many waiters read the store at
each of its steps, and one need not wait for others."""


class Watch:
    """Wakes coroutines of any event loop when the store changed. Its thread runs while somebody waits."""

    def __init__(self, store: Store):
        self._store = store
        self._lock = threading.Lock()
        self._waiting: set[Callable[[], None]] = set()
        self._thread: threading.Thread | None = None
        self._seen = 0

    @property
    def seen(self) -> int:
        """Counts changes that were noticed. Read it before the store, and give it to `changed`."""
        return self._seen

    async def changed(self, seen: int, timeout_s: float) -> None:
        """Returns when something may have changed since `seen`, and after `timeout_s` at the latest."""
        loop, event = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(event.set)

        with self._lock:
            if seen != self._seen:
                return
            self._waiting.add(wake)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="undertow-watch", daemon=True)
                self._thread.start()
        try:
            await asyncio.wait_for(event.wait(), max(0.0, min(timeout_s, POLL_S)))
        except TimeoutError:
            return
        finally:
            with self._lock:
                self._waiting.discard(wake)

    async def finished(self, job: Job, timeout_s: float) -> Job:
        """The job when it is final, or as it is after `timeout_s`."""
        until = time.monotonic() + timeout_s
        while not job.state.is_final and (left := until - time.monotonic()) > 0:
            seen = self.seen
            job = await run_in_threadpool(self._store.job, job.id)
            if not job.state.is_final:
                await self.changed(seen, left)
        return job if job.state.is_final else await run_in_threadpool(self._store.job, job.id)

    def _run(self) -> None:
        version = -1
        while True:
            try:
                version = self._store.changed(version, POLL_S)
            except Exception:  # the store is away: who waits asks it, and answers with what it says
                time.sleep(POLL_S)
            with self._lock:
                if not self._waiting:
                    self._thread = None
                    return
                waiting, self._waiting = self._waiting, set()
                self._seen += 1
            for wake in waiting:
                wake()
            time.sleep(min(LULL_S, LULL_EACH_S * len(waiting)))
