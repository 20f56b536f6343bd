"""When a worker looks for jobs: at once where it has nothing to do, seldom beside its work."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from undertow.serving.jobs import JobState
from undertow.serving.worker.claiming import LOOK_S, LOOK_SHARE, pause_s


def test_a_worker_without_work_looks_again_before_a_client_can_notice():
    assert pause_s(0.001, is_idle=True) <= 0.005


@pytest.mark.parametrize("took_s", [0.0001, 0.003, 0.2])
def test_beside_work_looks_take_a_small_share_of_the_time(took_s):
    assert pause_s(took_s, is_idle=False) >= LOOK_S
    assert took_s / pause_s(took_s, is_idle=False) <= LOOK_SHARE


def test_a_job_that_comes_during_a_step_is_leased_before_the_step_is_done(place):
    worker = place.worker()
    worker.claiming.watch_s = 5.0
    with ThreadPoolExecutor(1) as worker.claiming.helper:
        first = place.submit(steps=50)
        while not worker.models.step():
            worker._claim()
            worker._begin()
        worker._claim()  # asks, and from here on the loop does nothing
        second = place.submit(seed=2)
        until = time.monotonic() + 30.0
        while place.store.job(second).state is not JobState.RUNNING:
            assert time.monotonic() < until
            time.sleep(0.01)
        place.finish(worker, first, second)
    worker.models.close()
