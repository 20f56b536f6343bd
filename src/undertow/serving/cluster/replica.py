"""A worker as a replica of Ray Serve. Imports no Ray, and torch only when a replica starts."""

import logging
import os
import socket
import threading
from collections.abc import Mapping
from typing import Any

from undertow.errors import UndertowError
from undertow.serving.cluster.load import load_of
from undertow.serving.cluster.policy import JOBS, SECONDS
from undertow.serving.settings import ServerSettings

logger = logging.getLogger(__name__)

GIVE_BACK_S = 10.0
"""For giving jobs back when a replica stops, beside the grace of those that run."""


class WorkerLost(UndertowError):
    """The worker of a replica draws no more; the replica is replaced."""


class EngineReplica:
    """The loop of a worker in a thread: it takes its jobs from the store like any other worker, and nobody sends it
    requests. Ray Serve starts it, asks whether it is well and how much there is to draw, and drains it.

    settings: of `ServerSettings`, as JSON. Errors: `StoreError`; `InvalidInput` for a device that is not there.
    """

    def __init__(self, settings: Mapping[str, Any]):
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        from undertow.serving.worker.parts import worker_for  # noqa: PLC0415  # imports torch

        self._stop, self._hurry = threading.Event(), threading.Event()
        self._failure: Exception | None = None
        chosen = ServerSettings.from_json(dict(settings))
        name = f"{socket.gethostname()}.{os.getpid()}.ray"
        self.worker = worker_for(chosen, chosen.devices[0], name=name)
        self._thread = threading.Thread(target=self._work, name="undertow-worker", daemon=True)
        self._thread.start()

    def check_health(self) -> None:
        """Errors: `WorkerLost` where the loop has ended, or does not go on: other replicas have its jobs then."""
        if self._failure is not None:
            raise WorkerLost(f"the worker ended: {self._failure}") from self._failure
        if self.worker.pulse.hangs:
            raise WorkerLost("the worker has ended no unit of work for longer than anything should take")

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What is left to draw for everybody, by the speed of this worker."""
        queue = self.worker.store.queue()
        load = load_of(queue, {model: self.worker.timing.of(model) for model in {one.model for one in queue}})
        return {SECONDS: load.seconds, JOBS: float(load.jobs)}

    def drain(self) -> None:
        """Ends the loop: what runs has the grace to end, and is given back with its log then."""
        self._stop.set()
        self._thread.join()

    def __del__(self) -> None:
        """Called by Ray Serve when the replica is to go."""
        if hasattr(self, "_thread"):
            self.drain()

    def _work(self) -> None:
        try:
            self.worker.run(self._stop, self._hurry)
        except Exception as error:
            logger.exception("the worker ended")
            self._failure = error
        finally:
            self.worker.store.close()
