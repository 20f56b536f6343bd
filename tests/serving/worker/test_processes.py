"""A service in processes of its own, whose parts are killed and stopped while a picture is drawn."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.serving.worker.places import Place, open_place
from tests.waiting import until
from undertow.serving.jobs import JobState
from undertow.serving.worker.supervisor import listening

STEPS = 150
LOG = "service.log"


@dataclass
class Service:
    """place: the same data folder, opened by the test."""

    process: "subprocess.Popen[bytes]"
    place: Place
    url: str

    def worker(self):
        """The worker that draws, when there is one."""
        return until(
            lambda: next((one for one in self.place.store.workers.list() if one.state in ("idle", "busy")), None)
        )

    def at_step(self, id: str, step: int) -> int:
        """Waits until a job has come so far."""
        return until(lambda: (now := self.place.store.job(id).progress.step) >= step and now)

    def done(self, id: str):
        return until(lambda: (job := self.place.store.job(id)).state.is_final and job)


def start(place: Place) -> Service:
    with listening("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    settings = Path(place.data, "settings.json")
    chosen = {**place.settings.to_json(), "port": port}
    settings.write_text(json.dumps(chosen))
    command = [sys.executable, "-m", "undertow.serving.worker", "--settings", str(settings)]
    with Path(place.data, LOG).open("wb") as log:
        process = subprocess.Popen(command, start_new_session=True, stderr=log)
    return Service(process, place, f"http://127.0.0.1:{port}")


@pytest.fixture(scope="module")
def service(adapters, catalog, tmp_path_factory):
    place = open_place(tmp_path_factory.mktemp("served"), catalog, lease_s=1.0, grace_s=0.0, attempts=10)
    service = start(place)
    yield service
    if service.process.poll() is None:
        service.process.terminate()
    service.process.wait(30)
    place.store.close()


@pytest.fixture(scope="module")
def undisturbed(catalog, tmp_path_factory):
    """The hash of what a job of so many steps draws where nothing happens."""
    place = open_place(tmp_path_factory.mktemp("undisturbed"), catalog)
    worker = place.worker("first")
    yield place.draw(worker, place.submit(steps=STEPS, rows=2))[0]
    worker.models.close()
    place.store.close()


def test_a_worker_that_is_killed_inside_a_picture_goes_on_there(service, undisturbed):
    id = service.place.submit(steps=STEPS, rows=2)
    service.at_step(id, 20)
    killed = service.worker()
    os.kill(killed.pid, signal.SIGKILL)
    job = service.done(id)
    assert job.result.pictures[0].sha256 == undisturbed
    assert job.result.replayed_steps >= 20
    assert (job.attempt, job.worker != killed.name) == (0, True), "the worker had brought it further"
    (lost,) = (event for event in service.place.store.events(id) if event.kind == "requeued")
    assert lost.data == {"lost": True}
    said = Path(service.place.data, LOG).read_text()
    assert f"INFO {job.worker} " in said, "each line says which process it is from"
    assert "MainProcess" not in said


def stop_outside_a_transaction(store, pid):
    """A process that is stopped inside of one keeps its lock, and with it everybody from writing."""
    while True:
        os.kill(pid, signal.SIGSTOP)
        with suppress(sqlite3.OperationalError), closing(sqlite3.connect(store._database._place, timeout=0.2)) as other:
            other.execute("BEGIN IMMEDIATE")
            return
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.05)


@pytest.mark.slow
def test_a_worker_that_sleeps_past_its_lease_publishes_nothing(service, undisturbed):
    id = service.place.submit(steps=STEPS, rows=2)
    service.at_step(id, 10)
    worker = service.worker()
    stop_outside_a_transaction(service.place.store, worker.pid)
    try:
        time.sleep(1.2)
        service.place.store.expire_leases()
        (claim,) = service.place.store.claim("another", lambda waiting: [id], 60.0)
    finally:
        os.kill(worker.pid, signal.SIGCONT)
    until(lambda: service.worker().state == "idle")
    job = service.place.store.job(id)
    assert (job.state, job.worker, job.fence) == (JobState.RUNNING, "another", claim.fence)
    assert service.place.store.release(claim)
    assert service.done(id).result.pictures[0].sha256 == undisturbed


def test_clients_wait_while_the_api_is_started_again(service):
    assert answer(service, "/health/live")
    pid = next(pid for pid in children(service.process.pid) if pid not in [service.worker().pid])
    os.kill(pid, signal.SIGKILL)
    assert answer(service, "/health/live"), "the socket is the supervisor's: nobody was refused"


def test_children_end_and_give_back_when_the_supervisor_is_killed(service):
    id = service.place.submit(steps=STEPS, rows=2)
    service.at_step(id, 5)
    left = children(service.process.pid)
    assert len(left) == 2
    service.process.kill()
    service.process.wait()
    until(lambda: not any(map(runs, left)), 20)
    job, event = service.place.store.job(id), service.place.store.events(id)[-1]
    assert (job.state, job.attempt, event.data) == (JobState.QUEUED, 0, {"lost": False})


@pytest.mark.slow
def test_a_service_that_is_stopped_gives_back_what_is_not_done_and_goes_on_when_it_starts_again(service, undisturbed):
    (id,) = (job.id for job in service.place.store.jobs(states=[JobState.QUEUED]))
    again = start(service.place)
    try:
        step = again.at_step(id, 20)
        again.process.terminate()
        assert again.process.wait(30) == 0
        job = service.place.store.job(id)
        assert (job.state, job.attempt, job.progress.step >= step) == (JobState.QUEUED, 0, True)
        assert not service.place.store.workers.list(), "it said goodbye"
    finally:
        again.process.kill()
        again.process.wait()
    worker = service.place.worker("here")
    assert service.place.draw(worker, id) == [undisturbed]
    assert service.place.store.job(id).result.replayed_steps >= step


def answer(service, path):
    with urllib.request.urlopen(service.url + path, timeout=60) as found:
        return found.status == 200


def children(pid):
    """Processes that the service started and that run."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(one) for one in found]


def runs(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
