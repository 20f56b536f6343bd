"""A service for tests of the page: the real API over a real store, and a worker that draws plain colors, step by step,
as slowly as a test wants."""

import socket
import threading
import time
from io import BytesIO
from pathlib import Path

import uvicorn
from PIL import Image

from tests.serving.api.stand_in import Api, open_api
from undertow.serving.catalog.catalog import Catalog
from undertow.serving.jobs import Claim, JobProgress
from undertow.serving.settings import ServerSettings

STEP_S = 0.02
BUDGET_BYTES = 2**34
"""Whether a job fits must not depend on what else this machine does."""


class Site:
    """A service at an address, which can be stopped and started again. models: beside the embedded one, by name. held:
    no step is made while it is set."""

    def __init__(self, folder: Path, **models: str):
        self.folder = folder
        self.models = {"emoji": "emoji", **models}
        self.catalog = Catalog(ServerSettings(data=folder, models=self.models))
        self.held = threading.Event()
        self.port = 0
        self.start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.api: Api = open_api(self.folder, self.catalog, budget_bytes=BUDGET_BYTES, models=self.models)
        self._over = threading.Event()
        self._place = socket.create_server(("127.0.0.1", self.port))
        self.port = self._place.getsockname()[1]
        config = uvicorn.Config(self.api.app, log_config=None, timeout_graceful_shutdown=0)
        self._server = uvicorn.Server(config)
        serve = threading.Thread(target=self._server.run, kwargs={"sockets": [self._place]})
        self._threads = [threading.Thread(target=self._draw), serve]
        for thread in self._threads:
            thread.start()
        while not self._server.started:
            time.sleep(0.01)

    def stop(self) -> None:
        self._over.set()
        self._server.should_exit = True
        for thread in self._threads:
            thread.join()
        self._place.close()
        self.api.close()

    def _draw(self) -> None:
        while not self._over.wait(0.02):
            for claim in self.api.claim(1):
                if not self._steps(claim):
                    return
                self.api.publish(claim)

    def _steps(self, claim: Claim) -> bool:
        """Whether it came to the end: a service that is stopped gives the job back."""
        steps = claim.job.work.steps
        for step in range(steps):
            while self.held.is_set() and not self._over.is_set() and step > 0:
                time.sleep(0.02)
            if self._over.wait(STEP_S):
                self.api.store.release(claim)
                return False
            self.api.artifacts.put_preview(claim.job.id, _preview(step / steps))
            told = JobProgress(stage="denoising", step=step, steps=steps)
            (verdict,) = self.api.store.heartbeat("stand-in", [(claim, told)], lease_s=60.0)
            if verdict.cancel_requested:
                self.api.store.cancelled(claim)
                return True
        return True


def _preview(share: float) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (8, 8), (40, int(200 * share), 90)).save(buffer, "PNG")
    return buffer.getvalue()
