"""A service that was told what computes its models' U-Nets, and how their weights are quantized."""

from dataclasses import replace

import pytest

from tests.services import pipeline_folder
from tests.serving.worker.places import open_place, tiny_settings
from undertow.checkpoints.write.convert import convert
from undertow.errors import InvalidInput
from undertow.nn.quantized import quantized_layers
from undertow.quantization import as_quantization
from undertow.serving.catalog.catalog import Catalog
from undertow.serving.jobs import JobState
from undertow.serving.settings import GRAPH_S, ServerSettings
from undertow.serving.worker.models import needed_bytes
from undertow.unet.runner import OpenVINORunner


@pytest.fixture
def make(adapters, tmp_path):
    """Opens places in one data folder, each with settings of its own."""
    made = []

    def make(**settings):
        catalog = Catalog(tiny_settings(adapters, **settings))
        made.append(open_place(tmp_path / "data", catalog))
        return made[-1]

    yield make
    for place in made:
        place.close()


def test_weights_are_quantized_when_they_are_loaded_and_forecast_so(make):
    plain, place = make(), make(quantize="int8-weights")
    loaded = place.worker().models.take("tiny")
    assert set(quantized_layers(loaded.service.unet).values()) == {"int8-weights"}
    assert needed_bytes(loaded.entry, slots=False) < needed_bytes(plain.catalog.model(), slots=False)


def test_pictures_of_quantized_weights_are_not_the_results_of_plain_ones(make):
    plain, place = make(), make(quantize="int8-weights")
    first = plain.submit(reuse=True)
    drawn = plain.draw(plain.worker(), first)
    second = place.submit(reuse=True)
    assert place.store.job(second).state is JobState.QUEUED
    assert place.draw(place.worker("second"), second) != drawn
    assert place.store.job(place.submit(reuse=True)).state is JobState.SUCCEEDED


@pytest.mark.parametrize(
    "wanted",
    [
        {"adapters": ["large"]},
        {"adapters": [{"name": "one", "residency": "merged"}]},
        {"adapters": ["one", "two", "three"]},
    ],
    ids=["rank", "asked", "count"],
)
def test_lora_that_slots_have_no_room_for_are_refused_before_anything_is_merged_into_quantized_weights(make, wanted):
    place = make(quantize="int8-weights")
    with pytest.raises(
        InvalidInput, match=r"LoRA in slots, since tiny has quantized weights: at most 2, of rank 16 or less"
    ):
        place.submit(**wanted)
    assert make().submit(**wanted)


def test_quantized_weights_have_slots_for_lora_that_come_later(make, adapters):
    """Over HTTP, say, to a service that was started with none."""
    settings = ServerSettings(models={"tiny": str(pipeline_folder("sd1"))}, quantize="int8-weights")
    place = open_place(make().data / "alone", Catalog(settings))
    assert place.worker().models.take("tiny").service.adapters.capacity is not None
    place.close()


@pytest.mark.parametrize(
    ("backend", "mode", "said"),
    [
        ("eager", "fast", None),
        ("background", "fast", "background"),
        ("background", "reproducible", None),
        ("compile", "reproducible", "compile"),
        ("openvino", "fast", "openvino"),
    ],
)
def test_a_job_says_what_computes_it_where_its_bits_depend_on_that(make, backend, mode, said):
    place = make(backend=backend)
    found = place.store.job(place.submit(mode=mode))
    assert found.spec.backend == said


def test_a_reproducible_job_has_the_same_bytes_beside_graphs_that_are_made_in_the_background(make):
    plain, place = make(), make(backend="background")
    drawn = place.draw(place.worker(), place.submit())
    assert plain.draw(plain.worker("second"), plain.submit()) == drawn


def test_openvino_computes_what_it_is_told_to(make):
    place = make(backend="openvino")
    worker = place.worker()
    first, second = (place.draw(worker, place.submit(rows=1, guidance_scale=1.0)) for _ in range(2))
    assert first == second, "reproducible"
    runner = worker.models.take("tiny").service.runner
    assert isinstance(runner, OpenVINORunner)
    assert sum(map(len, runner.graphs._made.values())) == 1, "the trial made what jobs take"


def test_a_forward_whose_graph_is_made_first_is_no_stall():
    assert ServerSettings(stall_s=60).unit_s == 60
    assert ServerSettings(stall_s=60, backend="background").unit_s == 60
    assert ServerSettings(stall_s=60, backend="compile").unit_s == GRAPH_S
    assert ServerSettings(stall_s=2 * GRAPH_S, backend="openvino").unit_s == 2 * GRAPH_S


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"backend": "auto"}, "backend"),
        ({"backend": "openvino", "quantize": "int8-weights"}, "whose products OpenVINO has none of"),
        ({"backend": "openvino", "devices": ["cuda:1"]}, "'compile' on cuda:1; it computes on CPUs"),
        ({"backend": "packed", "devices": ["cuda:1"]}, "'compile' on cuda:1; it computes on CPUs"),
        ({"quantize": "int4"}, "int8-dynamic, float8, none"),
    ],
)
def test_what_cannot_be_computed_so_is_refused(settings, words):
    with pytest.raises(InvalidInput, match=words):
        ServerSettings.from_json(settings)


def test_a_model_that_was_written_quantized_is_not_offered_by_openvino(make, tmp_path):
    folder = tmp_path / "quantized"
    convert(pipeline_folder("sd1"), folder, "diffusers", quantization=as_quantization("int8-weights"))
    settings = ServerSettings(models={"tiny": str(folder)})
    assert Catalog(settings).models
    found = Catalog(replace(settings, backend="openvino"))
    assert not found.models
    assert "OpenVINO has none of" in found.skipped[0].reason
