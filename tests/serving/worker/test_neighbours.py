"""What a worker that starts must know of others."""

import os
import subprocess
import sys

import pytest

from undertow import InvalidInput
from undertow.serving.store.records import WorkerInfo
from undertow.serving.worker.neighbours import dead, folder_id, place, require_same_folder


def info(name, pid, **data):
    return WorkerInfo(name=name, device="cpu", pid=pid, data=data)


@pytest.fixture
def ended():
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.skipif(not place(), reason="no /proc here")
def test_a_process_that_ended_here_is_dead_and_nobody_is_elsewhere(ended):
    others = [
        info("mine", os.getpid(), place=place()),
        info("ended", ended, place=place()),
        info("elsewhere", ended, place="another machine"),
        info("older", ended),
    ]
    assert dead(others) == ["ended"]


def test_a_worker_takes_back_at_once_what_a_dead_one_held(make_place, ended):
    place_of = make_place(lease_s=600.0)
    job = place_of.submit(steps=2)
    first = place_of.worker("first")
    place_of.run_until(first, job, 1)
    found = place_of.store.workers.list()[0]
    place_of.store.workers.beat(WorkerInfo(**{**vars(found), "pid": ended}))
    first.models.close()
    second = place_of.worker("second")
    second.start()
    assert [one.name for one in place_of.store.workers.list()] == ["second"]
    place_of.finish(second, job)


def test_folders_are_known_by_what_lies_in_them(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    mine = folder_id(tmp_path / "a")
    assert folder_id(tmp_path / "a") == mine
    require_same_folder(tmp_path / "a", [info("x", 1, folder=mine), info("older", 1)])
    with pytest.raises(InvalidInput, match=r"the folder that worker x has.*mount it here"):
        require_same_folder(tmp_path / "b", [info("x", 1, folder=mine)])
