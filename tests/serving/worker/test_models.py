"""The models of a worker: within its memory, and knowing nothing of other jobs."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.services import copy_pipeline, pipeline_folder, service_of
from tests.serving.worker.places import FAMILY, open_place, tiny_settings
from undertow.serving.catalog.catalog import Catalog
from undertow.serving.clock.costs import Costs
from undertow.serving.jobs import JobState
from undertow.serving.worker.drawing import placed
from undertow.serving.worker.models import CAPACITY, Models, loaded, needed_bytes
from undertow.serving.worker.trial import faults
from undertow.serving.worker.warm_up import warm_up


@pytest.fixture
def two(adapters, tmp_path):
    """A catalog of two models of one size."""
    models = {"tiny": str(pipeline_folder(FAMILY)), "other": str(copy_pipeline(FAMILY, tmp_path / "other"))}
    return Catalog(replace(tiny_settings(adapters), models=models), refresh_s=0.0)


def test_models_are_loaded_on_demand_and_the_idle_one_makes_room(two):
    one = needed_bytes(two.model("tiny"), slots=False)
    models = Models(two, "cpu", budget_bytes=int(1.5 * one), adapters=False)
    tiny = models.take("tiny")
    assert models.take("tiny") is tiny
    handle = tiny.engine.submit("red apple")
    assert not models.fits_now("other"), "the other is drawing"
    handle.cancel()
    assert models.fits_now("other")
    models.take("other")
    assert models.names == ("other",)
    roomy = Models(two, "cpu", budget_bytes=3 * one, adapters=False)
    roomy.take("tiny")
    roomy.take("other")
    assert roomy.names == ("tiny", "other")


def test_a_model_whose_files_changed_is_loaded_again(two, tmp_path):
    models = Models(two, "cpu", budget_bytes=None, adapters=False)
    before = models.take("other")
    (weights,) = (tmp_path / "other" / "unet").glob("*.safetensors")
    weights.touch()
    assert models.take("other") is not before


def test_a_job_of_another_model_waits_for_its_turn_and_gets_it(two, tmp_path):
    place = open_place(tmp_path / "data", two, budget_bytes=None)
    for (_, *where), measured in place.store.costs.all().items():
        place.store.costs.put("other", *where, measured)
    ids = [place.submit(seed=1), place.submit(seed=1, model="other"), place.submit(seed=2)]
    worker = place.worker()
    assert [job.state for job in place.finish(worker, *ids)] == [JobState.SUCCEEDED] * 3
    worker.models.close()
    place.store.close()


def test_which_words_stand_for_an_embedding_does_not_depend_on_other_jobs(adapters, tmp_path):
    """Once its file is known, a prompt that has its word by chance means it; a job that did not ask must not see it."""
    folder = tmp_path / "embeddings"
    folder.mkdir()
    width = service_of(FAMILY).model.text.encoders[0].config.width
    save_file({"emb_params": torch.randn(2, width)}, folder / "apple.safetensors")
    settings = replace(tiny_settings(adapters), adapters=(adapters, folder))
    place = open_place(tmp_path / "data", Catalog(settings))
    worker = place.worker()
    plain = place.draw(worker, place.submit(prompt="an apple"))
    asked = place.draw(worker, place.submit(prompt="an apple", embeddings=["apple"]))
    assert plain != asked
    assert place.draw(worker, place.submit(prompt="an apple")) == plain
    both = [place.submit(prompt="an apple", embeddings=["apple"]), place.submit(prompt="an apple")]
    assert place.draw(worker, *both) == [*asked, *plain]
    worker.models.close()
    place.store.close()


def test_more_lora_than_a_row_has_slots_for_are_merged_by_the_request_alone(catalog, place):
    def request(count):
        from undertow.serving.request_json import request_of

        names = ["one", "two", "three"][:count]
        id = place.submit(adapters=[{"source": name} for name in names])
        return request_of(place.store.job(id).spec, place.artifacts, catalog)

    loras = frozenset(str(entry.path) for entry in catalog.adapters())
    two, three = request(2), request(3)
    assert placed(two, loras, CAPACITY.per_row) is two
    assert [one.residency for one in placed(three, loras, CAPACITY.per_row).adapters] == ["merged"] * 3
    assert placed(three, frozenset(), CAPACITY.per_row) is three, "what is no LoRA takes no slot"


def test_forwards_are_measured_until_more_rows_draw_no_more_a_second(catalog):
    from undertow.serving.clock.costs import Learner
    from undertow.serving.worker.models import Loaded

    entry = catalog.model("tiny")
    model = Loaded(entry=entry, service=loaded(entry, "cpu", False), needed_bytes=0)
    costs = Costs()
    model.engine.watchers.append(Learner(costs).observe)
    warm_up(model, costs, budget_s=0.5)
    (cells,) = costs.forward
    assert cells == 16 * 16
    assert 1 in costs.forward[cells]
    assert costs.decode_s(cells) > 0
    measured = {rows: mean.count for rows, mean in costs.forward[cells].items()}
    warm_up(model, costs)
    assert {rows: mean.count for rows, mean in costs.forward[cells].items()} == measured, "it is known already"


def test_a_model_whose_numbers_leave_their_range_is_said_when_it_is_loaded_and_by_check(adapters, tmp_path):
    """Its weights are finite, so that it loads."""
    folder = copy_pipeline(FAMILY, tmp_path / "broken")
    (weights,) = (folder / "unet").glob("*.safetensors")
    tensors = load_file(weights)
    save_file({**tensors, "conv_in.weight": tensors["conv_in.weight"] * 1e38}, weights)
    settings = replace(tiny_settings(adapters), models={"broken": str(folder)})
    place = open_place(tmp_path / "data", Catalog(settings))
    worker = place.worker()
    assert "infinit" in worker.models.faults["broken"] or "finite" in worker.models.faults["broken"]
    worker.say(now=True)
    (info,) = place.store.workers.list()
    assert info.data["faults"] == worker.models.faults
    worker.models.close()
    place.store.close()
    assert faults(settings) == info.data["faults"]
    assert faults(tiny_settings(adapters)) == {}
