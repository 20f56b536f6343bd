"""A service that was told which type models compute in."""

from dataclasses import replace

import pytest
import torch

from tests.serving.worker.places import open_place, tiny_settings
from undertow.serving.catalog.catalog import Catalog
from undertow.serving.jobs import JobState
from undertow.serving.settings import ServerSettings
from undertow.serving.worker.timing import Timing


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


@pytest.mark.parametrize("changed", [{"precision": "f16"}, {"threads": 1}])
def test_what_was_measured_otherwise_is_not_taken_up(place, changed):
    """How many rows pay is decided once: a decision of float32 would hold for ever."""

    def timing(settings: ServerSettings) -> Timing:
        return Timing(store=place.store, device="cpu", computing=settings.computing)

    before, after = ServerSettings(), ServerSettings(**changed)
    assert timing(before).of("tiny").known
    changed_one = timing(after)
    assert not changed_one.of("tiny").known
    assert place.store.costs.get("tiny", "cpu") is None, "nor by those who tell clients times"
    changed_one.of("tiny").learn("denoise", seconds=0.5, cells=64, rows=2)
    changed_one.save(now=True)
    assert timing(after).of("tiny").forward_s(64, 2) == 0.5
    assert not timing(before).of("tiny").known
