"""The door: what clients ask for becomes jobs in which nothing is open, or is refused with what helps."""

import base64
import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from io import BytesIO

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import undertow
from tests.distilled import distilled_pipeline
from tests.embedded import CELLS, SIDE
from tests.services import copy_pipeline, pipeline_folder, service_of
from undertow import GenerationRequest
from undertow.adapters.adapter import Adapter
from undertow.engine import denoise
from undertow.engine.parts import HighResolution, Region, StepForecast, Views
from undertow.errors import InvalidInput
from undertow.pictures.files import describe_picture
from undertow.serving.admission import SEEDS, Admission
from undertow.serving.amount import pinned_rows, work_of
from undertow.serving.api.compatible.agents_tools import Draw
from undertow.serving.api.compatible.huggingface import TextToImageTask
from undertow.serving.api.compatible.openai_words import ImageGeneration
from undertow.serving.catalog.catalog import Catalog
from undertow.serving.clock.costs import Costs
from undertow.serving.clock.timetable import Timetable
from undertow.serving.failures import FailureCode, Refused, failure_of
from undertow.serving.request_json import request_of, with_pictures, with_sources
from undertow.serving.settings import ServerSettings
from undertow.serving.store.store import Store


class Memory:
    """Artifacts in memory."""

    def __init__(self):
        self.kept: dict[str, bytes] = {}

    def put(self, content: bytes) -> str:
        sha256 = hashlib.sha256(content).hexdigest()
        self.kept[sha256] = content
        return sha256

    def read(self, sha256: str) -> bytes:
        return self.kept[sha256]


def picture(size=(64, 64), form="PNG", shade=1.0) -> bytes:
    buffer = BytesIO()
    Image.linear_gradient("L").resize(size).point(lambda level: level * shade).convert("RGB").save(buffer, format=form)
    return buffer.getvalue()


def text(content: bytes) -> str:
    return base64.b64encode(content).decode()


def unpacked(given: str) -> Image.Image:
    return Image.open(BytesIO(base64.b64decode(given)))


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    reader = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = {f"{reader}.lora_down.weight": torch.ones(2, 768), f"{reader}.lora_up.weight": torch.ones(8, 2)}
    save_file(tensors, folder / "of-sd1.safetensors")
    save_file({"emb_params": torch.ones(2, 192)}, folder / "word.safetensors")
    fitting = {**tensors, f"{reader}.lora_down.weight": torch.ones(2, 192)}
    save_file(fitting, folder / "v1.5.safetensors")
    return folder


@pytest.fixture
def door(shelf):
    settings = ServerSettings(adapters=(shelf,), max_pixels=512 * 512, max_steps=50, max_count=4)
    return Admission(Catalog(settings), Memory(), settings)


def test_what_is_left_open_is_decided(door):
    new = door.admit({"prompt": "red apple", "steps": 8}, "k")
    request = new.spec.request
    assert 0 <= request["seed"] < SEEDS
    assert request["size"] == [SIDE, SIDE]
    assert (new.spec.model, new.spec.mode, new.spec.rows) == ("emoji", "reproducible", 4)
    assert new.spec.files == {"": door.catalog.model("emoji").hash}
    assert (new.work.cells, new.work.rows, new.work.steps, new.cost) == (CELLS**2, 2, 8, 16.0)
    styled = door.admit({"prompt": "a", "count": 3, "adapters": ["mosaic"]}, "k")
    assert (new.work.adapted_rows, styled.work.adapted_rows) == (0, 6), "every row of a job has its adapters"
    assert request_of(new.spec, door.artifacts, door.catalog) == GenerationRequest(
        prompt="red apple", steps=8, seed=request["seed"], size=SIDE
    )
    seeds = {door.admit({"prompt": "a"}, "k").spec.request["seed"] for _ in range(8)}
    assert len(seeds) > 1
    assert door.admit({"prompt": "a", "seed": 7, "guidance_scale": 1}, "k").spec.rows == 4
    assert door.admit({"prompt": "a", "mode": "fast"}, "k").spec.rows is None


@pytest.mark.parametrize(
    ("cells", "rows", "device", "pinned"),
    [
        (256, 2, "cpu", 4),
        (4096, 2, "cpu", 2),  # 512x512 with guidance: no more than one picture has
        (4096, 1, "cpu", 1),
        (4096, 2, "cuda", 16),
        (16384, 2, "cuda", 4),  # 1024x1024
        (16, 2, "cpu", 16),
    ],
)
def test_rows_of_reproducible_jobs_follow_from_the_request_and_the_kind_of_device(cells, rows, device, pinned):
    assert pinned_rows(cells, rows, device) == pinned


def test_a_request_is_the_same_job_before_and_after_a_worker_measured_anything(door, tmp_path):
    """Another number of rows would draw other bytes, and a repeated PUT would be refused."""
    store = Store.open(f"sqlite:///{tmp_path}/undertow.db")
    wanted, costs, specs = {"prompt": "a", "seed": 7, "count": 2}, Costs(), []
    for rows in (None, 4):
        if rows:
            costs.learn("denoise", seconds=1.0, cells=256, rows=rows)
            costs.decide(256)
            store.costs.put("emoji", "cpu", "", costs.to_json())
        times = Timetable(store, door.settings)
        assert times.rows("emoji", 256) == rows
        specs.append(Admission(door.catalog, door.artifacts, door.settings, times=times).admit(wanted, "k").spec)
    store.close()
    assert specs[0] == specs[1]


def test_a_client_that_repeats_a_job_under_its_own_name_means_the_same_job(door):
    wanted = {"prompt": "red apple"}
    once, again = (door.admit(wanted, "k", client_id="mine") for _ in range(2))
    assert once.spec == again.spec
    assert once.body_hash == again.body_hash
    assert door.admit(wanted, "other", client_id="mine").spec != once.spec
    assert door.admit(wanted, "k", idempotency_key="other").spec != once.spec


def test_pictures_become_artifacts_and_pictures_again(door):
    image, control = picture(), picture((32, 32), "WEBP")
    wanted = {
        "prompt": "a",
        "image": text(image),
        "mask": {"png": text(image)},
        "adapters": [{"name": "edges", "image": f"data:image/webp;base64,{text(control)}"}, "mosaic"],
    }
    new = door.admit(wanted, "k")
    assert {one.sha256 for one in new.inputs} == set(door.artifacts.kept)
    assert {one.media_type for one in new.inputs} == {"image/png", "image/webp"}
    assert new.spec.request["image"] == {"artifact": hashlib.sha256(image).hexdigest(), "size": [64, 64]}
    request = request_of(new.spec, door.artifacts, door.catalog)
    assert describe_picture(request.image) == describe_picture(Image.open(BytesIO(image)))
    edges, mosaic = request.adapters
    assert describe_picture(edges.images()[0]) == describe_picture(Image.open(BytesIO(control)))
    assert mosaic == Adapter("mosaic", name="mosaic")
    repeated = {**wanted, "image": {"artifact": hashlib.sha256(image).hexdigest()}, "seed": 1}
    assert door.admit(repeated, "k").spec.request["image"] == new.spec.request["image"]


def test_an_artifact_of_another_key_is_none(door):
    sha256 = door.artifacts.put(picture())
    door = Admission(door.catalog, door.artifacts, door.settings, readable=lambda sha256, key: {}[key])
    with pytest.raises(InvalidInput, match=r"image is '.*', expected the hash of a picture that is there"):
        door.admit({"prompt": "a", "image": {"artifact": sha256}}, "k")


def test_nothing_is_kept_of_what_is_refused(door):
    with pytest.raises(InvalidInput):
        door.admit({"prompt": "a", "image": text(picture()), "steps": 5000}, "k")
    assert not door.artifacts.kept


def test_adapters_are_named_wherever_they_stand(door, shelf):
    wanted = {
        "prompt": "a word",
        "adapters": {"adapters": ["v1.5.safetensors", {"name": "mosaic", "scale": 0.5}], "off": ["v1.5"]},
        "regions": [{"prompt": "b", "box": [0, 0, 0.5, 1], "adapters": ["line-drawing"]}],
        "embeddings": ["word"],
    }
    new = door.admit(wanted, "k")
    assert new.spec.files.keys() == {"", "v1.5", "mosaic", "line-drawing", "word"}
    request = request_of(new.spec, door.artifacts, door.catalog)
    assert [one.source for one in request.adapters] == ["mosaic"]  # of the model; the other one is off
    assert {str(one.source) for one in request.adapters.adapters} == {"mosaic", str(shelf / "v1.5.safetensors")}
    assert request.embeddings == ("word",)
    assert str(shelf) not in str(new.spec.request)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({}, "prompt is missing"),
        ({"prompt": "a", "smapler": "euler"}, "did you mean 'sampler'"),
        ({"prompt": "a", "sampler": "eulr"}, "did you mean 'euler'"),
        ({"prompt": "a", "schedule": "karas"}, "did you mean 'karras'"),
        ({"prompt": "a", "dialect": "a11"}, "did you mean 'a1111'"),
        ({"prompt": "a", "model": "emojis"}, "did you mean 'emoji'"),
        ({"prompt": "a", "model": "/models/x"}, "a model of this service"),
        ({"prompt": '("a", "b").blend(1)', "dialect": "compel"}, "the prompt at character 17 is '1'"),
        ({"prompt": "a", "size": 65}, "the nearest is 64x64"),
        ({"prompt": "a", "size": 1024}, "size is a picture of 1024x1024, expected at most 262,144 pixels"),
        ({"prompt": "a", "size": 400, "high_resolution": {"scale": 2}}, "high_resolution.scale is"),
        ({"prompt": "a", "steps": 51}, "steps is 51, expected at most 50"),
        ({"prompt": "a", "sigmas": [*map(float, range(59, -1, -1))]}, "steps is 60"),
        ({"prompt": "a", "count": 5}, "count is 5, expected at most 4"),
        ({"prompt": "a", "priority": 11}, "priority"),
        ({"prompt": "a", "label": "x" * 1025}, "label"),
        ({"prompt": "a", "webhook": "http://host"}, "this service calls no webhooks"),
        ({"prompt": "a", "adapters": ["mosaic", "mosaic"]}, "mosaic twice"),
        ({"prompt": "a", "adapters": [{"name": "mosaic", "scale": 1e308}]}, "from -1,000,000 to 1,000,000"),
        ({"prompt": "a", "mask": text(picture())}, "mask is given, expected nothing without an image"),
        ({"prompt": "a", "image": "/etc/passwd"}, "opens no paths"),
        ({"prompt": "a", "image": {"file": "/etc/passwd"}}, "opens no paths"),
        ({"prompt": "a", "image": "https://host/a.png"}, "opens no paths"),
        ({"prompt": "a", "image": {"artifact": "../../x"}}, "upload it again"),
        ({"prompt": "a", "image": text(b"no picture")}, "expected a picture"),
        ({"prompt": "a", "image": text(picture(form="GIF"))}, "a GIF picture, expected PNG, JPEG or WebP"),
        ({"prompt": "a", "image": text(picture((600, 600)))}, "600x600 pixels, expected at most 262,144"),
        ({"prompt": "a", "image": text(picture()[:-40])}, "damaged|not readable"),
        ({"prompt": "a", "adapters": ["../mosaic"]}, r"adapters\[0\].name is '../mosaic'"),
        ({"prompt": "a", "adapters": ["mosiac"]}, "did you mean 'mosaic'"),
        ({"prompt": "a", "adapters": ["of-sd1"]}, "768 wide"),
        ({"prompt": "a", "adapters": ["word"]}, "name it in embeddings"),
        ({"prompt": "a", "embeddings": ["mosaic"]}, "name it in adapters"),
        ({"prompt": "a", "adapters": ["edges"]}, "one control map for this ControlNet"),
        ({"prompt": "a", "adapters": [{"name": "mosaic", "image": text(picture())}]}, "nothing for a LoRA"),
        ({"prompt": "a", "adapters": [{"name": "mosaic", "encoder": "/x"}]}, "expected nothing: the service finds it"),
        ({"prompt": "a", "adapters": [{"scale": 1}]}, r"adapters\[0\].name"),
        ({"prompt": "a", "adapters": [3]}, r"adapters\[0\] is 3"),
        ({"prompt": "a", "adapters": 3}, "adapters is 3"),
        ({"prompt": "a", "regions": 3}, "regions is 3"),
    ],
)
def test_what_is_wrong_is_refused_at_once(door, wanted, words):
    with pytest.raises(InvalidInput, match=words):
        door.admit(wanted, "k")


def guided(method: str, **more) -> dict:
    return {"guidance_method": method, **more}


@pytest.fixture(scope="module")
def embedded():
    return undertow.load("emoji", dtype=torch.float32)


BLACK = text(picture(shade=0))

HALF = [{"prompt": "b", "box": [0, 0, 0.5, 1]}]
STYLED = [{**HALF[0], "adapters": ["mosaic"]}]


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"sampler": "ddim_inverse"}, "expected one that ends in a picture"),
        (
            {"sampler": "DPM++ 2M", "sampler_options": {"eta": 1}},
            "expected no option for dpmpp_2m",
        ),
        ({"sampler": "euler_a", "sampler_options": {"eta": -3}}, "eta is -3.0, expected a finite number, at least 0"),
        ({"sampler": "lms", "sampler_options": {"order": 1.5}}, "order is 1.5, expected a whole number from 1 to 4"),
        ({"sampler": "edm_euler"}, "one for VariancePreserving; take ddpm, ddim, euler"),
        ({"sampler": "FlowMatchHeunDiscreteScheduler"}, "one for VariancePreserving"),
        ({"regions": HALF, "regions_by": "attention", "views": {}}, "windows do not move regions"),
        ({"regions": HALF, "regions_by": "attention", "seamless": "x"}, "windows do not move regions"),
        ({"regions": STYLED, "regions_by": "attention"}, "attention asks once for all"),
        ({"guidance_method": "cfg+sag", "views": {}}, "its attention map is of one window"),
        ({"views": {"window": 7}}, "views.window is 7, expected a multiple of 8 pixels"),
        ({"depth": text(picture())}, "depth is given, expected nothing"),
        ({"clip_skip": 13}, "clip_skip is 13, expected at most 3"),
        (
            {"image": text(picture()), "strength": 1e-7, "strength_convention": "comfy"},
            "strength is 1e-07 of 20 steps, the end of a grid of 2e",
        ),
        ({"sampler_options": {"eta": 1}}, "sampler option is 'eta', expected no option for dpmpp_2m"),
        (
            {"sigmas": [100.0, 1.0, 0.0]},
            r"sigmas\[0\] is 100.0, expected a number from 0 to 65.9287; use levels",
        ),
        (guided("pag(sigma=2)"), "option of pag is sigma, expected one of scale, layers, start, end"),
        (guided("pag(scale)"), "'scale', expected NAME=VALUE"),
        (guided("pag(scale=2, scale=3)"), "scale once; it is given twice"),
        (guided("cfg(scale=x)"), "option scale of cfg is x, expected a number"),
        (guided("cfg(scale=1e7)"), "guidance scale is 10000000.0, expected a number from -1,000,000 to 1,000,000"),
        (guided("cfg(scale=inf)"), "guidance scale is inf, expected a finite number"),
        (guided("cfg(start=0.5,end=0.2)"), "interval is 0.5 to 0.2, expected a start before the end"),
        (guided("cfg(start=soon)"), "option start of cfg is soon, expected a number"),
        (guided("apg(momentum=1)"), "momentum is 1.0, expected a number between -1 and 1"),
        (guided("apg(space=pixels)"), "option space of apg is 'pixels', expected one of denoised, prediction, v"),
        (guided("seg(blur=0)"), "sigma is 0.0, expected a number above 0"),
        (guided("pag(layers=nowhere)"), "layers is 'nowhere', expected a part of"),
        (guided("cfg+apg"), r"guidance_method is cfg \(base\), apg \(base\), expected at most one base"),
        (guided("rescale+pag"), r"guidance_method is rescale \(finish\), pag \(term\), expected"),
        (guided("free_u(start=0.5)"), "option of free_u is start, expected one of b1, b2, s1, s2, keyed, version$"),
        (guided("free_u+free_u"), "free_u twice, expected free_u once"),
        (guided("cfg(scale=7|5)"), "guidance scale is 2 numbers, expected one for each of 20 steps"),
        (
            guided("cfg(scale=7|5)", steps=2, high_resolution={"steps": 5}),
            "2 numbers, expected one for each of 3 steps",
        ),
        (
            guided("cfg(scale=7|5|3)", steps=3, image=text(picture()), strength=0.5),
            "3 numbers, expected one for each of 1 steps",
        ),
        (guided("zero_star(zero_steps=2)", steps=2), "zero_steps is 2, expected fewer than the 2 steps of the run"),
        (guided("cfg+sag", size=32), r"latents is \[4, 4\], expected at least 5 cells a side"),
        ({"guidance_scale": 1e30}, "guidance_scale is 1e\\+30, expected a number from -1,000,000 to 1,000,000"),
    ],
    ids=lambda given: "-".join(map(str, given.values()))[:60] if isinstance(given, dict) else "",
)
def test_what_the_engine_would_refuse_of_a_model_is_refused_by_its_headers(door, wanted, words):
    with pytest.raises(InvalidInput, match=words):
        door.admit({"prompt": "owl", **wanted}, "k")
    service = service_of("sd1")
    if not {"clip_skip", "views", "size"} & set(wanted):  # whose sizes are another model's
        request = {name: Image.new("RGB", (64, 64)) if name in ("image", "depth") else v for name, v in wanted.items()}
        with pytest.raises(InvalidInput):
            service.run(GenerationRequest.from_json({"prompt": "owl", **request}))


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (
            {"steps": 1001, "schedule": "simple"},
            "steps is 1001, expected at most 1000 on simple: the network has 1000 tr",
        ),
        (
            {"steps": 1000, "schedule": "DDIM", "sampler": "dpm2"},
            "at most 999 on ddim_comfyui: .*, of which it leaves one",
        ),
        ({"steps": 1001, "schedule": "Align Your Steps"}, "at most 1000 on ays_sd15"),
        (
            {"schedule": "turbo", "high_resolution": {"steps": 1001}},
            "high_resolution.steps is 1001, expected at most 1000 on turbo",
        ),
        (
            {
                "schedule": "ddim",
                "image": text(picture()),
                "steps": 600,
                "strength": 0.5,
                "strength_convention": "comfy",
            },
            "steps of the whole grid, whose end a strength of 0.5 leaves is 1200, expected at most 1000 on ddim",
        ),
    ],
    ids=lambda given: "-".join(map(str, given.values()))[:60] if isinstance(given, dict) else "",
)
def test_a_grid_has_no_more_steps_than_its_network_has_timesteps(wanted, words):
    settings = ServerSettings(max_steps=5000)
    door = Admission(Catalog(settings), Memory(), settings)
    with pytest.raises(InvalidInput, match=words):
        door.admit({"prompt": "owl", **wanted}, "k")
    given = {name: Image.new("RGB", (64, 64)) if name == "image" else value for name, value in wanted.items()}
    with pytest.raises(InvalidInput, match=words):
        service_of("sd1").run(GenerationRequest.from_json({"prompt": "owl", **given}))
    for fits in ({"steps": 1000, "schedule": "simple"}, {"steps": 1001, "schedule": "karras"}):
        door.admit({"prompt": "owl", **fits}, "k")


@pytest.mark.parametrize(
    ("scheduler", "wanted", "words"),
    [
        ({"_class_name": "EulerDiscreteScheduler"}, {"sampler_options": {"eta": 1}}, "'eta', expected one of s_churn"),
        ({"_class_name": "EulerDiscreteScheduler"}, {"sampler_options": {"s_churn": -1}}, "s_churn is -1.0, expected"),
        (
            {"_class_name": "EulerDiscreteScheduler"},
            {"sampler_options": {"eta": 1}, "schedule": "karras"},
            "'eta', expected one of s_churn",
        ),
        (
            {"_class_name": "UniPCMultistepScheduler", "timestep_spacing": "leading"},
            {"steps": 1000},
            "steps is 1000, expected from 1 to 999, the network's training timesteps",
        ),
        (
            {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading", "steps_offset": 1},
            {"steps": 1000},
            "the first timestep would be 1000 of 1000",
        ),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, {"sigmas": [1.00005, 0.0]}, "a number from 0 to 1;"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, {"schedule": "ays_sd15"}, "a grid for the flow path"),
        (
            {"_class_name": "DDIMScheduler", "clip_sample": False, "rescale_betas_zero_snr": True},
            {"sigmas": [4100.0, 0.0]},
            "a number from 0 to 4096",
        ),
    ],
    ids=lambda given: "-".join(map(str, given.values()))[:60] if isinstance(given, dict) else "",
)
def test_what_a_models_own_scheduler_has_no_room_for_is_refused_by_both(tmp_path, scheduler, wanted, words):
    folder = copy_pipeline("sd1", tmp_path / "model")
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    settings = ServerSettings(models={"own": str(folder)}, max_steps=5000)
    door = Admission(Catalog(settings), Memory(), settings)
    with pytest.raises(InvalidInput, match=words):
        door.admit({"prompt": "owl", **wanted}, "k")
    with pytest.raises(InvalidInput, match=words):
        undertow.load(folder, dtype=torch.float32).run(GenerationRequest.from_json({"prompt": "owl", **wanted}))
    door.admit({"prompt": "owl", "noise_convention": "comfy"}, "k")


def of(name: str, **fields) -> dict:
    return {"adapters": [{"name": name, **fields}]}


MAP = {"image": text(picture())}


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (of("mosaic", mask=text(picture())), "mask of mosaic is given, expected nothing for a LoRA"),
        (
            of("mosaic", blocks={"input_blocks.*": 1}),
            r"blocks of mosaic is 'input_blocks.\*', expected a pattern of",
        ),
        (of("edges", **MAP, blocks={"up_blocks.*": 1}), r"blocks of edges is 'up_blocks.\*', .* e.g. skips.0, skips.1"),
        (
            of("references", **MAP, blocks={"middle": 1}),
            "blocks of references is 'middle', expected a pattern of",
        ),
        (of("edges", **MAP, text_scale=1), "text_scale of edges is 1.0, expected nothing for a ControlNet"),
        (of("edges", **MAP, mask=[text(picture())] * 2), "mask of edges is 2 masks, expected at most one"),
        (
            of("references", **MAP, mask=[text(picture())] * 2),
            "mask of references is 2 masks, expected 1, one for each",
        ),
        (
            of("edges", image=text(picture((96, 64)))),
            "image of edges is 96x64, expected the shape of the picture to draw, 128x128",
        ),
        ({**of("edges", **MAP), "size": [64, 128]}, "image of edges is 64x64, expected the shape .* 128x64"),
        (of("edges", **MAP, mask=text(picture((96, 64)))), "mask of edges is 96x64, expected the shape"),
        (of("references", **MAP, mask=text(picture((96, 64)))), "mask of references is 96x64, expected the shape"),
        (of("references", **MAP, mask=BLACK), "mask of references is black everywhere, expected white where it acts"),
        (
            {"regions": [{"prompt": "b", "box": [0, 0, 1, 1], **of("mosaic", mask=text(picture()))}]},
            "mask of mosaic is given",
        ),
        (
            {"adapters": {"adapters": ["mosaic"], "strategy": "weighted", "weights": {"mosaic": 1e300}}},
            r"stack.weights\['mosaic'\] is 1e\+300, expected a number from -1,000,000 to 1,000,000",
        ),
        (
            {"regions": [{"prompt": "b", "box": [0, 0, 1, 1], "weight": 1e300}]},
            "expected a finite number above 0 and at m",
        ),
        ({"prompt": "(a:1e30)", "dialect": "comfy"}, "'1e30', expected a number from -1,000,000 to 1,000,000, such as"),
        ({"prompt": '("a", "b").blend(0, 0)', "dialect": "compel"}, "expected a sum other than 0"),
    ],
    ids=lambda given: "-".join(map(str, given.values()))[:60] if isinstance(given, dict) else "",
)
def test_what_adapters_cannot_be_given_is_refused_by_both(door, embedded, wanted, words):
    with pytest.raises(InvalidInput, match=words):
        door.admit({"prompt": "owl", **wanted}, "k")
    opened = with_pictures(with_sources({"prompt": "owl", "steps": 1, **wanted}), lambda place, given: unpacked(given))
    with pytest.raises(InvalidInput, match=words):
        embedded.run(GenerationRequest.from_json(opened))


def test_what_a_model_edits_is_asked_for_at_the_door(tmp_path):
    model = {"edits": str(pipeline_folder("pix2pix"))}
    door = Admission(Catalog(ServerSettings(models=model)), Memory(), ServerSettings(models=model))
    with pytest.raises(InvalidInput, match="image is missing, expected the picture to edit"):
        door.admit({"prompt": "owl"}, "k")
    with pytest.raises(InvalidInput, match="it edits the whole picture"):
        door.admit({"prompt": "owl", "image": text(picture()), "mask": text(picture())}, "k")
    door.admit({"prompt": "owl", "image": text(picture())}, "k")


def test_a_file_that_changed_is_not_drawn_with(door, shelf):
    new = door.admit({"prompt": "a", "adapters": ["v1.5"]}, "k")
    other = replace(new.spec, files={**new.spec.files, "v1.5": "0" * 64})
    with pytest.raises(Refused, match=r"v1.5 is not the file .*its bytes are others now") as refusal:
        request_of(other, door.artifacts, door.catalog)
    assert failure_of(refusal.value).code == FailureCode.FILE_CHANGED
    assert failure_of(refusal.value).may_retry


def test_what_can_never_run_here_is_refused_with_what_would(shelf):
    settings = ServerSettings(budget_bytes=700 * 2**20)
    door = Admission(Catalog(settings), Memory(), settings)
    with pytest.raises(Refused, match="a picture of 2048x2048 needs at least") as refusal:
        door.admit({"prompt": "a", "size": 2048}, "k")
    numbers = refusal.value.numbers
    assert refusal.value.code == FailureCode.EXCEEDS_CAPACITY
    assert numbers["needed_bytes"] > numbers["budget_bytes"] == 700 * 2**20
    nearest = numbers["nearest"]["size"]
    assert SIDE < nearest[0] < 2048
    door.admit({"prompt": "a", "size": nearest}, "k")


def test_a_deadline_that_cannot_be_kept_is_refused_with_the_number(door, tmp_path):
    store = Store.open(f"sqlite:///{tmp_path / 'jobs.db'}", clock=lambda: 1000.0)
    store.costs.put("emoji", "cpu", "", {"forward": {"256": {"2": [0.5, 9]}}})
    door = Admission(door.catalog, Memory(), door.settings, times=Timetable(store, door.settings), clock=store.clock)
    wanted = {"prompt": "a", "steps": 8, "deadline_s": 5.0, "mode": "fast"}
    new = door.admit(wanted, "k")
    assert (new.finish_at, new.deadline_at) == (1004.0, 1005.0)
    with pytest.raises(Refused, match=r"deadline_s is 5, and the job will be done in 8.0 s: give it more") as refusal:
        door.admit(wanted, "k")
    assert refusal.value.code == FailureCode.DEADLINE_PASSED
    assert refusal.value.numbers == {"finish_s": 8.0, "deadline_s": 5.0, "finish_at": 1008.0}
    with pytest.raises(Refused, match=r"deadline_s is 0.01, and the job will be done in 1.0 s"):
        door.admit({**wanted, "steps": 2, "deadline_s": 0.01}, "k")
    for never in (0, -1, float("nan"), float("inf")):
        with pytest.raises(InvalidInput, match=r"deadline_s is .*, expected a finite number above 0; seconds from now"):
            door.admit({**wanted, "deadline_s": never}, "k")
    # The refused ones take no time.
    assert door.admit({"prompt": "a", "steps": 2, "mode": "fast"}, "k").finish_at == 1005.0
    store.close()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"guidance_scale": 1.0},
        {"sampler": "heun"},
        {"sampler": "seeds_3"},
        {"sampler": "euler_cfg_pp", "guidance_scale": 1.0},
        {"count": 2},
        {"guidance_method": "cfg+pag"},
        {"prompt": "a AND b"},
        {"regions": (Region(prompt="b", box=(0, 0, 0.5, 1)),)},
        {"size": 64, "views": Views()},
        {"steps": 4, "high_resolution": HighResolution(scale=2.0, strength=0.5)},
        {"image": Image.new("RGB", (32, 32)), "strength": 0.5, "strength_convention": "a1111"},
        {"image": Image.new("RGB", (32, 32)), "sigmas": (9.0, 3.0, 1.0, 0.5, 0.0), "strength": 0.5},
        {"seamless": "x"},
        {"steps": 7, "forecast_steps": StepForecast(every=3, first=2)},
        {"steps": 7, "forecast_steps": StepForecast(first=2), "sampler": "heun"},
    ],
    ids=lambda settings: "-".join(settings) or "plain",  # a picture has no name that two processes agree on
)
def test_work_is_counted_as_the_engine_does_it(monkeypatch, settings):
    """Rows of forwards times cells, against those that the engine evaluates."""
    seen: list[int] = []
    evaluate = denoise.forward

    def counted(rows, *rest):
        seen.extend(row.latents.shape[2] * row.latents.shape[3] for row in rows)
        return evaluate(rows, *rest)

    monkeypatch.setattr(denoise, "forward", counted)
    model = Catalog(ServerSettings(models={"tiny": str(pipeline_folder("sd1"))})).model()
    request = GenerationRequest(**{"prompt": "a", "steps": 3, **settings})
    service_of("sd1").run(request)
    work = work_of(request, model)
    assert work.rows * work.steps * work.cells == sum(seen)


def test_the_door_imports_no_torch(tmp_path):
    code = (
        "import sys\n"
        "from undertow.serving.admission import Admission\n"
        "from undertow.serving.catalog.catalog import Catalog\n"
        "from undertow.serving.clock.timetable import Timetable\n"
        "from undertow.serving.settings import ServerSettings\n"
        "import undertow.serving.schedule\n"
        "settings = ServerSettings()\n"
        "class Kept:\n"
        "    def put(self, content): return ''\n"
        "    def read(self, sha256): return b''\n"
        "new = Admission(Catalog(settings), Kept(), settings).admit({'prompt': 'a', 'adapters': ['mosaic']}, 'k')\n"
        "print(new.spec.model, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["emoji", "False"]


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """A door whose only model was distilled to few steps."""
    folder = tmp_path_factory.mktemp("models")
    settings = ServerSettings(models={"turbo": str(distilled_pipeline(folder / "turbo"))}, data=folder / "data")
    return Admission(Catalog(settings), Memory(), settings)


OPEN = {
    "native": {"prompt": "owl"},
    "OpenAI": ImageGeneration.read({"prompt": "owl"}).wanted(),
    "Hugging Face": TextToImageTask.from_json({"inputs": "owl"}).wanted(None, "png"),
    "an agent": Draw.from_json({"prompt": "owl"}).wanted(),
}
"""What clients of each API ask for who say nothing of steps and guidance."""


@pytest.mark.parametrize("api", OPEN)
def test_what_a_client_leaves_open_is_as_the_model_suggests(quick, door, api):
    few, usual = (one.admit(OPEN[api], "k") for one in (quick, door))
    assert (few.spec.request["steps"], few.spec.request["guidance_scale"]) == (4, 1.0)
    assert (few.work.steps, few.work.rows) == (4, 1)  # what it costs is told of what is drawn
    assert (usual.spec.request["steps"], usual.spec.request["guidance_scale"]) == (20, 5.0)


def test_what_a_client_says_counts_more_than_what_a_model_suggests(quick):
    both = quick.admit({"prompt": "owl", "steps": 20, "guidance_scale": 5}, "k").spec.request
    assert (both["steps"], both["guidance_scale"]) == (20, 5.0)
    along = quick.admit({"prompt": "owl", "sigmas": [9.0, 1.0, 0.0]}, "k").spec.request
    assert (along["sigmas"], along["guidance_scale"]) == ([9.0, 1.0, 0.0], 1.0)
    for nothing in (0, None):
        with pytest.raises(InvalidInput, match="steps"):
            quick.admit({"prompt": "owl", "steps": nothing}, "k")


LEVELS = "the steps that the model was distilled at"


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"steps": 51}, f"steps is 51, expected from 1 to 50, {LEVELS}"),
        (
            {"high_resolution": {"scale": 2, "steps": 60}},
            f"high_resolution.steps is 60, expected from 1 to 50, {LEVELS}",
        ),
        (
            {"image": text(picture()), "steps": 6, "strength": 0.1, "strength_convention": "comfy"},
            "steps of the whole grid, whose end a strength of 0.1 leaves is 60, expected from 1 to 50",
        ),
    ],
    ids=["steps", "high resolution", "ComfyUI's strength"],
)
def test_a_model_in_few_steps_has_no_more_levels_of_its_own_than_it_was_distilled_at(quick, wanted, words):
    with pytest.raises(InvalidInput, match=words):
        quick.admit({"prompt": "owl", **wanted}, "k")
    given = {name: Image.new("RGB", (64, 64)) if name == "image" else value for name, value in wanted.items()}
    with pytest.raises(InvalidInput, match=LEVELS):
        undertow.load(quick.catalog.model().path, dtype=torch.float32).run(
            GenerationRequest.from_json({"prompt": "owl", "steps": 4, **given})
        )
    quick.admit({"prompt": "owl", "steps": 50}, "k")
    for other in ({"sampler": "lcm"}, {"schedule": "karras"}):
        quick.admit({"prompt": "owl", "steps": 51, **other}, "k")
