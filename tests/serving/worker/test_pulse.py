"""The heartbeat: leases live as long as the loop goes on."""

import threading
import time
from dataclasses import replace

import pytest

from undertow.serving.jobs import JobProgress, JobSpec, JobState, NewJob
from undertow.serving.store.records import StoreError
from undertow.serving.worker.pulse import Pulse

LEASE_S = 10.0


class Seconds:
    """A clock that stands until it is told, for `Pulse.now`."""

    def __init__(self):
        self.at = 0.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def seconds():
    return Seconds()


@pytest.fixture
def claim(store):
    store.submit(NewJob(key="key", spec=JobSpec(model="tiny", request={"prompt": "a"})))
    (claim,) = store.claim("first", lambda waiting: [one.id for one in waiting], LEASE_S)
    return claim


def test_leases_are_extended_while_the_loop_goes_on_and_lost_when_it_hangs(store, claim, clock, seconds):
    beats = []
    pulse = Pulse(store, "first", LEASE_S, alive=lambda: beats.append(seconds.at), unit_s=30.0, now=seconds)
    pulse.hold(claim, JobProgress)
    for _ in range(10):  # a unit of 25 s: longer than the lease, shorter than anything should take
        seconds.at, clock.now = seconds.at + 2.5, clock.now + 2.5
        pulse.beat()
        assert not store.expire_leases()
    pulse.moved()
    assert len(beats) == 10
    seconds.at += 10 * 25 + 1
    assert pulse.hangs
    pulse.beat()
    assert len(beats) == 10, "the supervisor hears no more either"
    clock.jump(LEASE_S + 1)
    assert [job.id for job in store.expire_leases()] == [claim.job.id]


def test_units_that_were_long_before_may_be_long_again(store, seconds):
    pulse = Pulse(store, "first", LEASE_S, unit_s=1.0, now=seconds)
    seconds.at = 60.0  # the first unit
    pulse.moved()
    seconds.at += 599
    assert not pulse.hangs
    seconds.at += 2
    assert pulse.hangs


def test_a_unit_that_the_clock_expects_to_be_long_may_be(store, seconds):
    pulse = Pulse(store, "first", LEASE_S, unit_s=1.0, now=seconds)
    pulse.expected_s = 85.0
    seconds.at = 849.0
    assert not pulse.hangs
    seconds.at = 851.0
    assert pulse.hangs


def test_loading_a_model_may_take_longer_than_a_unit_but_not_for_ever(store, seconds):
    pulse = Pulse(store, "first", LEASE_S, unit_s=1.0, now=seconds)
    with pulse.patient(100.0):
        seconds.at = 99.0
        assert not pulse.hangs
        seconds.at = 101.0
        assert pulse.hangs
    assert not pulse.hangs
    pulse.moved()
    assert not pulse.hangs
    seconds.at += 1.5
    assert pulse.hangs, "what was known to be long counts for nothing else"


def test_a_wish_to_cancel_is_known_long_before_the_next_beat(store, claim):
    pulse = Pulse(store, "first", lease_s=1000.0)
    pulse.interval_s = 60.0
    pulse.hold(claim, JobProgress)
    pulse.start()
    try:
        time.sleep(0.05)
        pulse.verdicts()
        asked = time.monotonic()
        store.cancel(claim.job.id)
        while not any(one.cancel_requested for one in pulse.verdicts()):
            assert time.monotonic() - asked < 5
            time.sleep(0.005)
    finally:
        pulse._stopped.set()
        store._watch.tell()
        pulse.stop()


def test_a_store_that_cannot_be_written_ends_no_heartbeat(store, claim, monkeypatch):
    pulse, failed, heard = Pulse(store, "first", lease_s=1.0), threading.Event(), threading.Event()
    pulse.interval_s = 0.01
    heartbeat = store.heartbeat

    def sometimes(*given, **named):
        if not failed.is_set():
            failed.set()
            raise StoreError("here", "locked", "another process has locked it", "wait")
        heard.set()
        return heartbeat(*given, **named)

    monkeypatch.setattr(store, "heartbeat", sometimes)
    pulse.hold(claim, JobProgress)
    pulse.start()
    try:
        assert heard.wait(5)
    finally:
        pulse.stop()
    assert store.job(claim.job.id).state is JobState.RUNNING


def test_what_is_said_of_a_job_is_how_far_it_is(store, claim):
    pulse = Pulse(store, "first", LEASE_S)
    progress = JobProgress(stage="denoising", step=3, steps=9)
    pulse.hold(claim, lambda: progress)
    pulse.beat()
    assert store.job(claim.job.id).progress == progress
    pulse.drop(claim.job.id)
    pulse.hold(replace(claim, fence=claim.fence - 1), lambda: replace(progress, step=9))
    pulse.beat()
    assert store.job(claim.job.id).progress == progress
    assert [one.alive for one in pulse.verdicts()] == [False]
