"""Replicas come with the load, as Ray Serve's controller decides by our policy, and go under load without loss."""

import os
from dataclasses import replace

import pytest

from tests.waiting import until
from undertow.serving.artifacts import ArtifactFolder
from undertow.serving.cluster.application import NAME, application
from undertow.serving.cluster.running import own_files
from undertow.serving.jobs import JobSpec, JobState, JobWork, NewJob
from undertow.serving.settings import ServerSettings
from undertow.serving.store.store import Store

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own are not ours to mend

STEPS, JOBS = 150, 4


def test_replicas_come_with_the_load_and_go_under_it_without_loss(tmp_path):
    settings = ServerSettings(
        data=tmp_path / "data", min_replicas=1, max_replicas=2, catch_up_s=1.0, grace_s=0.0, jobs_at_once=1
    )
    artifacts = ArtifactFolder(settings.data / "artifacts")
    store = Store.open(settings.database_url, has_file=artifacts.touch, logged=artifacts.logged)
    request = {"prompt": "red apple", "steps": STEPS, "guidance_scale": 5.0, "seed": 1}
    spec = JobSpec(model="emoji", request=request, rows=8)
    new = NewJob(key="key", spec=spec, work=JobWork(cells=64, rows=2, steps=STEPS), cost=2.0 * STEPS, reuse=False)

    def drawing():
        return {one.worker for one in store.queue() if one.state is JobState.RUNNING and one.progress.step > 2}

    with own_files(os.environ):
        import ray  # which reads the environment
        from ray import serve

        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        try:
            serve.start(http_options={"port": 0, "location": "NoServer"})
            serve.run(application(settings), name=NAME)
            ids = [store.submit(new).job.id for _ in range(JOBS)]
            until(lambda: len(drawing()) == 2)  # the second one came by itself
            serve.run(application(replace(settings, max_replicas=1)), name=NAME)
            until(lambda: len(store.workers.list()) == 1)
            jobs = [until(lambda id=id: (job := store.job(id)).state.is_final and job) for id in ids]
        finally:
            serve.shutdown()
            ray.shutdown()
    kinds = [[event.kind for event in store.events(id)] for id in ids]
    store.close()
    assert [job.state for job in jobs] == [JobState.SUCCEEDED] * JOBS
    assert [job.attempt for job in jobs] == [0] * JOBS  # none of them was lost
    assert sum(kind.count("requeued") for kind in kinds) >= 1
    assert max(job.result.replayed_steps for job in jobs) > 0
    assert len({job.result.pictures[0].sha256 for job in jobs}) == 1
