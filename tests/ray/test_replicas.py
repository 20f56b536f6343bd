"""The service on a Ray of its own on this machine, with two replicas: killed, drained, asked, and ended.

`make test-ray` runs it: Ray is not among what `dev` installs.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest

from tests.waiting import until
from undertow.serving.artifacts import ArtifactFolder
from undertow.serving.jobs import JobState
from undertow.serving.store.store import Store
from undertow.serving.worker.supervisor import listening

STEPS = 150


def free_port() -> int:
    with listening("127.0.0.1", 0) as place:
        return place.getsockname()[1]


class Served:
    """A service that runs, and its store, opened by the test."""

    def __init__(self, folder: Path, *options: str):
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        self.home = folder / "home"
        self.home.mkdir(parents=True)
        self.temporary = Path(tempfile.mkdtemp(prefix="r"))  # a short path, as Ray's sockets want it
        (folder / "undertow.toml").write_text("[serve]\ngrace_s = 1\nlease_s = 5\n")
        command = [sys.executable, "-m", "undertow", "serve", "--port", str(port), "--data", "data", *options]
        paths = os.pathsep.join(str(Path(one).absolute()) for one in sys.path if one)
        environment = os.environ | {"HOME": str(self.home), "PYTHONPATH": paths, "TMPDIR": str(self.temporary)}
        self.process = subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True)
        artifacts = ArtifactFolder(folder / "data" / "artifacts")
        until(self.ready)
        self.store = Store.open(f"sqlite:///{folder / 'data' / 'undertow.db'}", has_file=artifacts.touch)

    def ready(self) -> bool:
        assert self.process.poll() is None
        try:
            with urllib.request.urlopen(f"{self.url}/health/ready", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def submit(self, seed: int) -> str:
        wanted = {"prompt": "red apple", "steps": STEPS, "seed": seed}
        asked = urllib.request.Request(
            f"{self.url}/v1/jobs", json.dumps(wanted).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return json.load(answer)["id"]

    def drawn(self, id: str):
        job = until(lambda: (found := self.store.job(id)).state.is_final and found)
        assert job.state is JobState.SUCCEEDED, job.failure
        return job

    def workers(self):
        return [one for one in self.store.workers.list() if one.state in ("idle", "busy")]

    def holder(self, id: str, step: int):
        """The worker that draws a job, once it has come so far."""
        job = until(lambda: (found := self.store.job(id)).progress.step >= step and found.worker and found)
        return next(one for one in self.store.workers.list() if one.name == job.worker)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(90)
        if self.process.poll() is None:
            self.process.kill()
        self.store.close()
        shutil.rmtree(self.temporary, ignore_errors=True)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    served = Served(tmp_path_factory.mktemp("r"), "--ray", "--min-replicas", "2")
    yield served
    served.end()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The hashes of two pictures, by seed, from a service without Ray."""
    alone = Served(tmp_path_factory.mktemp("a"))
    found = {seed: alone.drawn(alone.submit(seed)).result.pictures[0].sha256 for seed in (1, 2)}
    alone.end()
    return found


def ray_processes() -> set[int]:
    found = set()
    for one in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if b"undertow-ray-" in (one / "cmdline").read_bytes() or b"ray::" in (one / "cmdline").read_bytes():
                found.add(int(one.name))
    return found


def test_a_replica_that_is_killed_inside_a_picture_loses_nothing(served, undisturbed):
    until(lambda: len(served.workers()) == 2)
    jobs = {seed: served.submit(seed) for seed in (1, 2)}
    holder = served.holder(jobs[1], 10)
    os.kill(holder.pid, signal.SIGKILL)
    for seed, id in jobs.items():
        job = served.drawn(id)
        assert job.result.pictures[0].sha256 == undisturbed[seed]
    job = served.store.job(jobs[1])
    assert job.result.replayed_steps >= 5
    assert [one.kind for one in served.store.events(jobs[1]) if one.kind == "requeued"] == ["requeued"]
    until(lambda: len(served.workers()) == 2)
    assert holder.pid not in {one.pid for one in served.workers()}


def test_a_service_that_ends_under_load_gives_its_jobs_back_and_leaves_no_process_and_no_file(served, undisturbed):
    until(lambda: len(served.workers()) == 2)
    before = ray_processes()
    assert before
    job = served.submit(3)
    served.holder(job, 5)
    served.process.send_signal(signal.SIGINT)
    assert served.process.wait(120) == 0
    left = served.store.job(job)
    assert left.state in (JobState.QUEUED, JobState.SUCCEEDED)
    assert left.attempt == 0
    until(lambda: not before & ray_processes(), 30.0)
    assert not list(served.home.iterdir())
    assert not list(served.temporary.glob("undertow-ray-*"))
