"""When a worker looks for jobs: at once where it has nothing to do, seldom beside its work."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.waiting import until
from undertow.serving.jobs import JobState
from undertow.serving.worker.claiming import LOOK_S, LOOK_SHARE, pause_s


def test_a_worker_without_work_looks_again_before_a_client_can_notice():
    assert pause_s(0.001, is_idle=True) <= 0.005


@pytest.mark.parametrize("took_s", [0.0001, 0.003, 0.2])
def test_beside_work_looks_take_a_small_share_of_the_time(took_s):
    assert pause_s(took_s, is_idle=False) >= LOOK_S
    assert took_s / pause_s(took_s, is_idle=False) <= LOOK_SHARE


@pytest.fixture
def beside(place):
    """A worker that draws a job, whose helper has leased another one that came meanwhile; the jobs' ids."""
    worker = place.worker()
    worker.claiming.watch_s = 5.0
    with ThreadPoolExecutor(1) as worker.claiming.helper:
        first = place.submit(steps=50)
        while not worker.models.step():
            worker._claim()
            worker._begin()
        worker._claim()  # asks, and from here on the loop does nothing
        second = place.submit(seed=2)
        until(lambda: place.store.job(second).state is JobState.RUNNING)
        yield worker, first, second
    worker.models.close()


def test_a_job_that_comes_during_a_step_is_leased_before_the_step_is_done(place, beside):
    worker, *jobs = beside
    assert [job.state for job in place.finish(worker, *jobs)] == [JobState.SUCCEEDED] * 2


def test_a_worker_that_ends_gives_back_at_once_what_it_has_not_begun(place, beside):
    worker, first, second = beside
    worker.drain(threading.Event())
    (back,) = (event for event in place.store.events(second) if event.kind == "requeued")
    done = place.store.events(first)[-1]
    assert (done.kind, back.at < done.at) == ("succeeded", True)
