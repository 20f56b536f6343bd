"""A service whose processes are killed, stopped and locked out of their database while it draws."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from benchmarks.serving.hosts import Postgresql, fill, is_mount
from benchmarks.serving.servers import free_port
from undertow.serving.settings import ServerSettings
from undertow.serving.store.store import Store

LEASE_S = 3.0
LOCKED_S, FULL_S = 12.0, 5.0
KINDS = {"worker": 64, "API": 14, "sleep": 8, "supervisor": 4, "lock": 4, "full": 3, "database": 3}
"""What is done, by how often: kill -9 of a process, SIGSTOP past the lease, a transaction that is held open for longer
than the service waits for it, a disk that is full for a while, a server of PostgreSQL that is killed and started again.
What there is none of in a run, a disk of its own or a server, is left out."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What the processes of a service hold. Bytes of memory and open files by part."""

    at: float
    rss: dict[str, int]
    files: dict[str, int]
    wal: int


@dataclass(kw_only=True)
class Service:
    """A service in a folder, and a store that looks at it from outside. log: what its processes say. database: SQLite
    when `None`. done: disturbances by kind. killed_at: when a worker was killed."""

    data: Path
    log: Path
    database: Postgresql | None = None
    settings: ServerSettings = field(init=False)
    store: Store = field(init=False)
    process: "subprocess.Popen[bytes] | None" = None
    done: Counter[str] = field(default_factory=Counter[str])
    samples: list[Sample] = field(default_factory=list[Sample])
    killed_at: list[float] = field(default_factory=list[float])

    def __post_init__(self) -> None:
        self.data.mkdir(parents=True, exist_ok=True)
        url = None if self.database is None else self.database.url
        self.settings = ServerSettings(data=self.data, port=free_port(), lease_s=LEASE_S, grace_s=0.0, database=url)
        self.store = Store.open(self.settings.database_url, patience_s=60.0)
        (self.data / "settings.json").write_text(json.dumps(self.settings.to_json()))

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.settings.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "undertow.serving.worker", "--settings", str(self.data / "settings.json")]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True
            )

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(120)
        self.store.close()

    def disturb(self, chance: random.Random) -> str:
        """One disturbance; what it was."""
        acts: dict[str, Callable[[], bool]] = {
            "worker": lambda: self._signal("worker", signal.SIGKILL),
            "API": lambda: self._signal("API", signal.SIGKILL),
            "sleep": self._sleep,
            "supervisor": self._kill_supervisor,
            "lock": self._lock,
            **({"full": self._fill} if is_mount(self.data) else {}),
            **({"database": self._restart} if self.database is not None else {}),
        }
        (kind,) = chance.choices(list(acts), weights=[KINDS[one] for one in acts])
        if acts[kind]():
            self.done[kind] += 1
        return kind

    def sample(self) -> None:
        """Notes what the processes hold now."""
        found = {"supervisor": self.process.pid if self.process else 0, **self._children()}
        rss, files = {}, {}
        for part, pid in found.items():
            with suppress(OSError, StopIteration, ValueError):
                status = Path(f"/proc/{pid}/status").read_text().splitlines()
                line = next(line for line in status if line.startswith("VmRSS"))
                rss[part] = int(line.split()[1]) * 1024
                files[part] = len(os.listdir(f"/proc/{pid}/fd"))
        wal = self.data / "undertow.db-wal"
        size = wal.stat().st_size if wal.exists() else 0
        self.samples.append(Sample(at=time.monotonic(), rss=rss, files=files, wal=size))

    def _children(self) -> dict[str, int]:
        """Processes of the parts by name."""
        if self.process is None:
            return {}
        with suppress(OSError):
            listed = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
            workers = {one.pid for one in self.store.workers.list()}
            return {("worker" if int(pid) in workers else "API"): int(pid) for pid in listed}
        return {}

    def _signal(self, part: str, number: int) -> bool:
        pid = self._children().get(part)
        with suppress(ProcessLookupError):
            if pid is not None:
                os.kill(pid, number)
                self.killed_at += [time.time()] if part == "worker" else []
                return True
        return False

    def _sleep(self) -> bool:
        pid = self._children().get("worker")
        if pid is None:
            return False
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(LEASE_S + 0.5)
            os.kill(pid, signal.SIGCONT)
        return True

    def _kill_supervisor(self) -> bool:
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        time.sleep(1.0)  # its children notice, and the port is free
        self.start()
        return True

    def _fill(self) -> bool:
        with fill(self.data):
            time.sleep(FULL_S)
        return True

    def _restart(self) -> bool:
        assert self.database is not None
        self.database.restart()
        return True

    def _lock(self) -> bool:
        if self.database is not None:
            self.database.lock(LOCKED_S)
            return True
        connection = sqlite3.connect(self.data / "undertow.db", isolation_level=None)
        try:
            connection.execute("BEGIN IMMEDIATE")
            time.sleep(LOCKED_S)
            connection.execute("ROLLBACK")
        except sqlite3.OperationalError:
            return False
        finally:
            connection.close()
        return True


def put(client: httpx.Client, name: str, body: dict[str, object], until: float) -> None:
    """Submits a job under a name, again and again until it is accepted, as a client does whose server comes and goes.
    Errors: `RuntimeError` for a refusal that no retry helps, and when it takes for ever."""
    while time.monotonic() < until:
        with suppress(httpx.HTTPError):
            answer = client.put(f"/v1/jobs/{name}", json=body)
            if answer.status_code in (200, 201, 202):
                return
            if answer.status_code not in (429, 500, 503):
                raise RuntimeError(f"{name} was refused: {answer.text}")
        time.sleep(0.2)
    raise RuntimeError(f"{name} was never accepted")
