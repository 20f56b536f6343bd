"""Another program holds the database: nobody can write, and what is being drawn goes on."""

import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing

import pytest

from undertow.serving.jobs import JobState


@pytest.mark.slow
def test_drawing_goes_on_while_the_store_is_locked(place):
    worker, first = place.worker(), place.submit(steps=100)
    worker.claiming.helper = ThreadPoolExecutor(1)
    place.run_until(worker, first, 2)
    second = place.submit(steps=2, seed=2)
    with closing(sqlite3.connect(place.store._database._place)) as other:
        other.execute("BEGIN IMMEDIATE")
        before, started = worker._drawings[first].progress().step, time.monotonic()
        while worker._drawings[first].progress().step < before + 10 or not worker.claiming.is_asking:
            worker.run_once()
            assert worker._drawings, "done before a look at the queue was due"
        assert time.monotonic() - started < 5.0, "the store waits for ten seconds"
        assert worker.claiming.is_asking
        assert place.store.job(second).state is JobState.QUEUED
    assert len(place.draw(worker, first, second)) == 2
    worker.claiming.helper.shutdown()


def test_what_was_leased_when_a_worker_is_stopped_is_given_back(place):
    """The loop had not come to it."""
    worker, first = place.worker(), place.submit(steps=30)
    place.run_until(worker, first, 1)
    second = place.submit(steps=2, seed=2)
    worker.claiming.helper = ThreadPoolExecutor(1)
    worker.claiming.watch_s = 10.0  # on a fast machine the pause behind the last look is not over yet
    gate = threading.Event()
    worker.claiming.helper.submit(gate.wait)
    assert worker.claiming.take(worker._running()) == []
    gate.set()
    wait([worker.claiming._asked])
    assert place.store.job(second).state is JobState.RUNNING
    assert {claim.job.id for claim in worker.pulse._claims()} == {first, second}, "its lease is extended"
    hurry = threading.Event()
    hurry.set()
    worker.drain(hurry)
    found = [place.store.job(id) for id in (first, second)]
    assert [(job.state, job.attempt) for job in found] == [(JobState.QUEUED, 0)] * 2
    worker.claiming.helper.shutdown()
