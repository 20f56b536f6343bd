"""The supervisor over children that are small programs: started again, killed when they hang, ended in order."""

import logging
import subprocess
import sys
import threading
import time

import pytest

from undertow import InvalidInput
from undertow.serving.settings import ServerSettings
from undertow.serving.worker import supervisor as module
from undertow.serving.worker.supervisor import Supervisor, listening

BEATS = "import sys, time\nwhile True: print('.', flush=True); time.sleep(0.05)"
SILENT = "import time; time.sleep(60)"
ENDS = "raise SystemExit(3)"
UNTIL_EOF = "import sys; sys.stdin.read()"


@pytest.fixture
def supervise(tmp_path):
    """Supervisors over programs; what they started is gone at the end."""
    made = []

    def make(program, **settings):
        chosen = ServerSettings(**{"data": tmp_path, "port": 0, "grace_s": 0.0, **settings})
        made.append(Supervisor(chosen, command=(sys.executable, "-S", "-c", program)))
        return made[-1]

    yield make
    for one in made:
        one._end(one.children, 0.0, threading.Event())
        one._selector.close()
        one._socket.close()


def watched(supervisor, reached, timeout_s=20.0):
    until = time.monotonic() + timeout_s
    while not reached():
        assert time.monotonic() < until
        supervisor.watch(0.02)


def test_there_is_an_api_and_a_worker_for_each_device(supervise):
    supervisor = supervise(BEATS, devices=("cpu", "cuda:1"))
    watched(supervisor, lambda: all(child.heard_at for child in supervisor.children))
    assert [child.title for child in supervisor.children] == ["API", "worker on cpu", "worker on cuda:1"]
    assert len({child.name for child in supervisor.children}) == 3
    assert supervisor.address.startswith("http://127.0.0.1:")


def test_a_child_that_ends_is_started_again_after_longer_and_longer_pauses(supervise, monkeypatch, caplog):
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.01)
    supervisor = supervise(ENDS)
    worker = supervisor.children[1]
    pauses, seen = [], 0
    with caplog.at_level(logging.WARNING):
        while worker.failures < 6:
            supervisor.watch(0.005)
            if worker.failures != seen:
                seen = worker.failures
                pauses.append(max(0.0, worker.start_at - time.monotonic()))
    assert pauses[0] == 0.0, "the first time at once"
    assert pauses[1:] == pytest.approx([0.01, 0.02, 0.04, 0.08, 0.16], abs=0.005)
    assert "the worker on cpu has ended 5 times in a row" in caplog.text
    assert "exit status 3" in caplog.text
    assert len(worker.lost) == 6, "the next one may take their jobs at once"


def test_what_a_child_that_has_ended_was_to_be_told_is_dropped(supervise):
    """Closing a pipe writes what waits in its buffer, and nobody is there to read it."""
    supervisor = supervise(ENDS)
    supervisor.watch(0.005)
    worker = supervisor.children[1]
    worker.process.wait()
    worker.process.stdin.write(b"more")
    watched(supervisor, lambda: worker.failures == 1)


def test_a_worker_that_says_nothing_is_killed_and_started_again(supervise, monkeypatch, caplog):
    monkeypatch.setattr(module, "START_S", 0.2)
    supervisor = supervise(SILENT)
    worker = supervisor.children[1]
    with caplog.at_level(logging.WARNING):
        watched(supervisor, lambda: worker.started == 2)
    assert "has said nothing for too long" in caplog.text
    assert "SIGKILL" in caplog.text
    assert supervisor.children[0].started == 1, "the API is not expected to say anything"


def test_a_child_that_was_well_for_a_while_is_started_at_once_again(supervise, monkeypatch):
    supervisor = supervise(BEATS)
    worker = supervisor.children[1]
    watched(supervisor, lambda: worker.heard_at)
    worker.failures, worker.started_at = 7, worker.started_at - module.HEALTHY_S
    worker.process.kill()
    watched(supervisor, lambda: worker.started == 2)
    assert worker.failures == 1


def test_children_end_when_the_service_does(supervise):
    supervisor = supervise(UNTIL_EOF)
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    supervisor.run(stop)
    assert all(child.process is None for child in supervisor.children)


def test_a_port_in_use_is_said_before_anything_is_started(tmp_path):
    with (
        listening("127.0.0.1", 0) as taken,
        pytest.raises(InvalidInput, match=r"serve\.port is .* choose another --port"),
    ):
        Supervisor(ServerSettings(data=tmp_path, port=taken.getsockname()[1]))


def test_the_supervisor_imports_no_torch():
    program = (
        "import sys, undertow.serving.worker.process\n"
        "assert not {'torch', 'sqlalchemy', 'fastapi'} & set(sys.modules), 'imported'"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_on_further_machines_there_are_workers_alone_and_no_port(tmp_path):
    with listening("127.0.0.1", 0) as taken:
        settings = ServerSettings(data=tmp_path, port=taken.getsockname()[1], devices=("cpu", "cuda:1"))
        supervisor = Supervisor(settings, api=False)
    assert [child.title for child in supervisor.children] == ["worker on cpu", "worker on cuda:1"]
    assert supervisor.address == ""
    supervisor._selector.close()
