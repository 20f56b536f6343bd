"""A replica without Ray: the loop of a worker that is asked how it is, drained, and replaced inside a picture."""

import pytest

from tests.serving.worker.places import open_place
from tests.waiting import until
from undertow.serving.cluster.policy import JOBS, SECONDS
from undertow.serving.cluster.replica import EngineReplica, WorkerLost
from undertow.serving.jobs import JobState

STEPS = 60


@pytest.fixture
def served(catalog, tmp_path):
    place = open_place(tmp_path / "data", catalog, grace_s=0.0)
    yield place
    place.store.close()


@pytest.mark.slow
def test_a_replica_that_is_drained_gives_its_job_back_and_the_next_one_goes_on_inside_the_picture(served, make_place):
    undisturbed = make_place()
    worker = undisturbed.worker("alone")
    (wanted,) = undisturbed.finish(worker, undisturbed.submit(seed=5, steps=STEPS))

    job = served.submit(seed=5, steps=STEPS)
    first = EngineReplica(served.settings.to_json())
    until(lambda: served.store.job(job).progress.step >= 3)
    first.check_health()
    figures = first.record_autoscaling_stats()
    assert figures[JOBS] == 1.0
    assert figures[SECONDS] > 0.0
    first.__del__()
    assert served.store.job(job).state is JobState.QUEUED
    assert not served.store.workers.list()

    second = EngineReplica(served.settings.to_json())
    done = until(lambda: (found := served.store.job(job)).state.is_final and found)
    second.drain()
    assert done.state is JobState.SUCCEEDED
    assert done.attempt == 0
    assert done.result.replayed_steps >= 3
    assert done.result.pictures[0].sha256 == wanted.result.pictures[0].sha256


def test_a_replica_whose_worker_ended_or_hangs_is_not_well(served, monkeypatch):
    replica = EngineReplica(served.settings.to_json())
    until(lambda: replica.worker.about.state == "idle")
    monkeypatch.setattr(type(replica.worker.pulse), "hangs", True)
    with pytest.raises(WorkerLost, match="no unit of work"):
        replica.check_health()
    monkeypatch.undo()
    monkeypatch.setattr(replica.worker, "run_once", lambda: 1 / 0)
    until(lambda: not replica._thread.is_alive())
    with pytest.raises(WorkerLost, match="division"):
        replica.check_health()
