"""The servers that are measured, each started, asked and stopped in the same way."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from benchmarks.serving.outcome import Drawn
from benchmarks.serving.trace import Arrival

ROOT = Path(__file__).parents[2]
LITSERVE = ROOT / "out" / "peers" / "litserve"
START_S = 120.0
PATIENCE_S = 1800.0
STOP_S = 30.0


class Server(ABC):
    """A server in processes of its own. name: in the table."""

    name: str

    @abstractmethod
    def command(self, port: int, folder: Path) -> Sequence[str]:
        """What starts it."""

    @abstractmethod
    async def is_ready(self, client: httpx.AsyncClient) -> bool:
        """Whether it would draw at once."""

    @abstractmethod
    async def draw(self, client: httpx.AsyncClient, arrival: Arrival) -> Drawn:
        """One request, from its arrival to its pictures."""

    def environment(self) -> dict[str, str]:
        """Of its processes."""
        return {**os.environ, "OMP_NUM_THREADS": "1"}

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[httpx.AsyncClient]:
        """A client of it while it runs. Errors: `RuntimeError` when it does not start."""
        with tempfile.TemporaryDirectory(prefix="undertow-load-") as scratch, open(Path(scratch) / "log", "w") as log:
            port = free_port()
            command = self.command(port, Path(scratch))
            process = subprocess.Popen(
                command, cwd=ROOT, env=self.environment(), stdout=log, stderr=log, start_new_session=True
            )
            try:
                limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
                address = f"http://127.0.0.1:{port}"
                async with httpx.AsyncClient(base_url=address, timeout=PATIENCE_S, limits=limits) as client:
                    await self._wait(client, process, Path(scratch) / "log")
                    yield client
            finally:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(STOP_S)
                with contextlib.suppress(ProcessLookupError):  # LitServe leaves its worker behind, which then competes
                    os.killpg(process.pid, signal.SIGKILL)

    async def _wait(self, client: httpx.AsyncClient, process: "subprocess.Popen[bytes]", log: Path) -> None:
        until = time.monotonic() + START_S
        while time.monotonic() < until and process.poll() is None:
            with contextlib.suppress(httpx.HTTPError):
                if await self.is_ready(client):
                    return
            await asyncio.sleep(0.2)
        raise RuntimeError(f"{self.name} did not start:\n{log.read_text()[-2000:]}")


class Undertow(Server):
    """Our service. mode: of its jobs. at_once: jobs that a worker draws together; 1 is one after the other."""

    def __init__(self, name: str, mode: str, at_once: int | None = None):
        self.name = name
        self.mode = mode
        self.at_once = at_once

    def command(self, port: int, folder: Path) -> Sequence[str]:
        serve = [
            sys.executable,
            "-m",
            "undertow",
            "serve",
            "emoji",
            "--port",
            str(port),
            "--data",
            str(folder / "data"),
        ]
        return serve if self.at_once is None else [*serve, "--jobs-at-once", str(self.at_once)]

    async def is_ready(self, client: httpx.AsyncClient) -> bool:
        return (await client.get("/health/ready")).is_success

    async def draw(self, client: httpx.AsyncClient, arrival: Arrival) -> Drawn:
        request = {
            "prompt": arrival.prompt,
            "seed": arrival.seed,
            "steps": arrival.steps,
            "guidance_scale": arrival.guidance_scale,
            "count": arrival.count,
            "adapters": [] if arrival.adapter is None else [arrival.adapter],
        }
        start = time.time()
        answer = await client.post("/v1/jobs", json={**request, "mode": self.mode})
        submitted = time.time() - start
        if answer.is_error:
            return Drawn(steps=arrival.steps, pictures=arrival.count, submitted=submitted)
        job = answer.json()
        promised = job["finish_at"]
        path = f"/v1/jobs/{job['id']}"
        while job["finished_at"] is None:
            job = (await client.get(path, headers={"Prefer": "wait=60"})).json()
        if job["state"] != "succeeded":
            raise RuntimeError(f"{path}: {job['failure']}")
        return Drawn(
            steps=arrival.steps,
            pictures=arrival.count,
            submitted=submitted,
            first_step=None if job["started_at"] is None else job["started_at"] - start,
            done=job["finished_at"] - start,
            promised=None if promised is None else promised - start,
        )


class LitServe(Server):
    """diffusers' pipeline behind LitServe, one request after the other."""

    name = "diffusers behind LitServe"

    def command(self, port: int, folder: Path) -> Sequence[str]:
        del folder
        return [sys.executable, "-m", "benchmarks.serving.litserve_peer", "--port", str(port)]

    def environment(self) -> dict[str, str]:
        path = [os.environ.get("PYTHONPATH", ""), str(ROOT), str(LITSERVE)]
        return {**super().environment(), "PYTHONPATH": os.pathsep.join(filter(None, path))}

    async def is_ready(self, client: httpx.AsyncClient) -> bool:
        return (await client.get("/health")).is_success

    async def draw(self, client: httpx.AsyncClient, arrival: Arrival) -> Drawn:
        start = time.time()
        asked = {
            "prompt": arrival.prompt,
            "seed": arrival.seed,
            "steps": arrival.steps,
            "guidance_scale": arrival.guidance_scale,
            "adapter": arrival.adapter,
            "count": arrival.count,
        }
        answer = await client.post("/predict", json=asked)
        done = time.time() - start
        answer.raise_for_status()
        return Drawn(steps=arrival.steps, pictures=arrival.count, submitted=done, done=done)


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
