"""A service that was told which type models compute in."""

from dataclasses import replace

import pytest
import torch

from tests.serving.worker.places import open_place, tiny_settings
from undertow.attention.measurement import Machine
from undertow.serving.catalog.catalog import Catalog
from undertow.serving.clock.timetable import COMPUTING, Timetable
from undertow.serving.jobs import JobSpec, JobState, JobWork, NewJob
from undertow.serving.settings import ServerSettings
from undertow.serving.store.records import WorkerInfo
from undertow.serving.worker.timing import Timing, computing_of
from undertow.serving.worker.worker import Worker


@pytest.fixture
def place(adapters, tmp_path):
    made = open_place(tmp_path / "data", Catalog(replace(tiny_settings(adapters), precision="f16")))
    yield made
    made.store.close()


def test_its_models_are_loaded_in_that_type_and_forecast_so(place):
    worker = place.worker()
    loaded = worker.models.take("tiny")
    assert loaded.service.unet.dtype is torch.float16
    assert loaded.entry.dtype == "float16"
    report = loaded.service.generate("red apple", steps=1).report
    assert report.computing.chosen() == {"precision": "f16"}, "which its pictures carry"
    worker.models.close()


def test_a_picture_of_another_type_is_not_the_result_of_the_same_request(place, adapters):
    plain = open_place(place.data, Catalog(tiny_settings(adapters)))
    worker = plain.worker()
    first = plain.submit(reuse=True)
    plain.draw(worker, first)
    assert plain.store.job(plain.submit(reuse=True)).state is JobState.SUCCEEDED
    assert place.store.job(place.submit(reuse=True)).state is JobState.QUEUED
    worker.models.close()
    plain.store.close()


def test_a_picture_of_a_job_that_waited_for_another_type_is_no_result_of_its_request(place, adapters):
    """Accepted in float32, and drawn after the service was started in float16."""
    plain = open_place(place.data, Catalog(tiny_settings(adapters)))
    waited = plain.submit(reuse=True)
    worker = place.worker()
    place.draw(worker, waited)
    assert plain.store.job(plain.submit(reuse=True)).state is JobState.QUEUED
    assert place.store.job(place.submit(reuse=True)).state is JobState.SUCCEEDED
    worker.models.close()
    plain.store.close()


def test_a_type_that_is_computed_anyway_is_none_of_its_own(adapters):
    settings = tiny_settings(adapters)
    assert Catalog(replace(settings, precision="f32")).model().precision is None
    assert Catalog(replace(settings, precision="f16")).model().precision == "f16"


@pytest.fixture
def timing(place):
    """Makes what a worker on a CPU keeps of time, by its settings and its threads."""

    def make(threads: int = 2, **settings) -> Timing:
        machine = replace(Machine.here("cpu"), threads=threads)
        return Timing(store=place.store, device="cpu", computing=computing_of(ServerSettings(**settings), machine))

    return make


OTHERWISE = [{"precision": "f16"}, {"threads": 1}]


@pytest.mark.parametrize("changed", OTHERWISE)
def test_what_was_measured_otherwise_is_not_taken_up(timing, changed):
    """How many rows pay is decided once: a decision of float32 would hold for ever."""
    learn(timing(), 0.25)
    assert not timing(**changed).of("tiny").known


@pytest.mark.parametrize("changed", OTHERWISE)
def test_workers_that_compute_otherwise_forget_and_overwrite_nothing_of_each_other(timing, changed):
    learn(timing(), 0.25)
    learn(timing(**changed), 0.5)
    assert timing().of("tiny").forward_s(64, 2) == 0.25
    assert timing(**changed).of("tiny").forward_s(64, 2) == 0.5


def test_a_worker_counts_the_threads_that_it_really_has(place, monkeypatch):
    """Where no option says a number, the environment or PyTorch does."""
    computing = []
    for threads in (3, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        computing.append(Worker(place.store, place.artifacts, place.catalog, place.settings, name="w").timing.computing)
    assert computing[0] == computing[1].replace(" 5 threads", " 3 threads") != computing[1]


def test_clients_are_told_times_by_the_costs_of_workers_that_are_there(place, timing):
    slow, fast = timing(threads=1), timing(threads=2)
    learn(fast, 0.25)
    learn(slow, 0.5)

    def told_s() -> float:
        new = NewJob(
            key="key",
            spec=JobSpec(model="tiny", request={}, mode="fast"),
            work=JobWork(cells=64, rows=2, steps=4),
            cost=8.0,
        )
        return Timetable(place.store, place.settings).promise(new) - place.store.clock()

    assert told_s() == pytest.approx(2.0, abs=0.2), "where none is there, as they computed last"
    for costs, seconds in ((fast, 1.0), (slow, 2.0)):
        data = {COMPUTING: costs.computing}
        info = place.store.workers.hello(WorkerInfo(name="w", device="cpu", pid=1, models=("tiny",), data=data))
        assert told_s() == pytest.approx(seconds, abs=0.2)
        place.store.workers.goodbye(info.name)


def test_a_worker_tells_times_by_the_costs_of_the_others_too(place, timing):
    """Of two jobs each worker draws one."""
    fast, slow = timing(threads=2), timing(threads=1)
    learn(fast, 0.25)
    learn(slow, 0.5)
    for seed in range(2):
        place.submit(seed=seed, mode="fast", guidance_scale=1.0, count=2)
    told_s = []
    for beside in (fast, slow):
        for name, one in (("a", fast), ("b", beside)):
            data = {COMPUTING: one.computing}
            place.store.workers.hello(WorkerInfo(name=name, device="cpu", pid=1, models=("tiny",), data=data))
        fast._say_at = 0.0
        told_s.append(max(fast.finish_times("a", ()).values()) - place.store.clock())
    assert told_s[1] == pytest.approx(2 * told_s[0], rel=0.1)


def learn(timing: Timing, seconds: float) -> None:
    timing.of("tiny").learn("denoise", seconds=seconds, cells=64, rows=2)
    timing.save(now=True)
