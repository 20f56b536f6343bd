"""Waiting for a change: a hint that saves looking, never a reason to believe anything."""

import threading
import time
from collections.abc import Callable


class Watch:
    """One thread that waits for changes of other processes, while somebody waits for it, however many do.

    poll: waits a moment, and says whether another process changed the database since it was last called.
    """

    def __init__(self, poll: Callable[[], bool]):
        self._poll = poll
        self._condition = threading.Condition()
        self._waiting = 0
        self._thread: threading.Thread | None = None
        self._count = 0

    def tell(self) -> None:
        """Something changed."""
        with self._condition:
            self._count += 1
            self._condition.notify_all()

    def wait(self, since: int, timeout_s: float) -> int:
        """The number of changes that were noticed, as soon as it is not `since`, which is an earlier answer."""
        until = time.monotonic() + timeout_s
        with self._condition:
            self._waiting += 1
            if self._thread is None and timeout_s > 0:
                self._thread = threading.Thread(target=self._look, name="undertow-store-watch", daemon=True)
                self._thread.start()
            try:
                while self._count == since and (left := until - time.monotonic()) > 0:
                    self._condition.wait(left)
            finally:
                self._waiting -= 1
            return self._count

    def close(self) -> None:
        """Waits until nobody looks any more."""
        with self._condition:
            thread, self._waiting = self._thread, -(10**9)
            self._count += 1
            self._condition.notify_all()
        if thread is not None:
            thread.join()

    def _look(self) -> None:
        while True:
            with self._condition:
                if self._waiting <= 0:
                    self._thread = None
                    return
            if self._poll():
                self.tell()
