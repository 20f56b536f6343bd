"""A1111's API: what its clients may say, what they get, and that nothing is shared between keys. Fields and defaults
are those of version 1.10 (modules/api/models.py, modules/processing.py) and of `webuiapi` 0.9.17."""

import base64
import json
import re
import threading
import time
from io import BytesIO

import numpy as np
import pytest
import webuiapi
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from tests.embedded import SIDE
from tests.serving.api.stand_in import open_api, picture_bytes
from undertow import GenerationRequest, InvalidInput
from undertow.checkpoints.files.hashes import model_hash
from undertow.embedded import embedded_models
from undertow.engine.a1111_text import a1111_text
from undertow.engine.report import Report, UsedFiles
from undertow.sampling.catalogue import ALIASES, SAMPLERS
from undertow.sampling.names import read_names
from undertow.serving.api.compatible.a1111 import samplers as a1111_samplers
from undertow.serving.api.compatible.a1111.answers import model_json
from undertow.serving.api.compatible.a1111.options import (
    Options,
    changed,
    model_named,
    options_json,
    options_of,
    title_of,
)
from undertow.serving.api.compatible.a1111.pictures import grown, masked_box, painted_over, pictures_of
from undertow.serving.api.compatible.a1111.prompts import embeddings_in, split_prompt
from undertow.serving.api.compatible.a1111.resize import resized
from undertow.serving.api.compatible.a1111.words import ImageToImage, TextToImage
from undertow.serving.catalog.catalog import Catalog
from undertow.serving.catalog.entries import EMBEDDING, AdapterEntry
from undertow.serving.jobs import JobProgress
from undertow.serving.settings import ServerSettings

TXT2IMG, IMG2IMG = "/sdapi/v1/txt2img", "/sdapi/v1/img2img"
OPTIONS = Options(model="emoji")
PIXELS = 256 * 256

WEBUIAPI = {  # what webuiapi sends in txt2img when nobody says anything
    "enable_hr": False, "hr_scale": 2, "hr_upscaler": "Latent", "hr_second_pass_steps": 0, "hr_resize_x": 0,
    "hr_resize_y": 0, "hr_checkpoint_name": None, "hr_sampler_name": None, "hr_scheduler": None, "hr_prompt": "",
    "hr_negative_prompt": "", "denoising_strength": 0.7, "firstphase_width": 0, "firstphase_height": 0, "prompt": "owl",
    "styles": [], "seed": -1, "subseed": -1, "subseed_strength": 0.0, "seed_resize_from_h": 0, "seed_resize_from_w": 0,
    "batch_size": 1, "n_iter": 1, "steps": 20, "cfg_scale": 7.0, "width": 64, "height": 64, "restore_faces": False,
    "tiling": False, "do_not_save_samples": False, "do_not_save_grid": False, "negative_prompt": "", "eta": 1.0,
    "s_churn": 0, "s_tmax": 0, "s_tmin": 0, "s_noise": 1, "override_settings": {},
    "override_settings_restore_afterwards": True, "sampler_name": "Euler a", "scheduler": "automatic",
    "sampler_index": "Euler a", "script_name": None, "script_args": [], "send_images": True, "save_images": False,
    "alwayson_scripts": {},
}  # fmt: skip


def wanted(**given) -> dict:
    return TextToImage.read({"prompt": "owl", **given}).wanted(OPTIONS, (), random_seed=99)


def text_of(picture: Image.Image) -> str:
    buffer = BytesIO()
    picture.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def opened(text: str) -> Image.Image:
    return Image.open(BytesIO(base64.b64decode(text)))


def test_defaults_are_a1111s():
    assert wanted() == {
        "model": "emoji",
        "format": "png",
        "label": "a1111",
        "prompt": "owl",
        "negative_prompt": "",
        "count": 1,
        "steps": 50,
        "guidance_scale": 7.0,
        "sampler": "Euler",
        "schedule": "automatic",
        "sampler_options": {},
    }


def test_what_webuiapi_always_sends_is_taken():
    asked = wanted(**WEBUIAPI)
    assert asked["size"] == [64, 64]
    assert asked["sampler"] == "Euler a"
    assert "seed" not in asked
    assert asked["sampler_options"] == {"eta": 1.0, "s_noise": 1.0}


def test_a_request_in_our_words():
    asked = wanted(
        prompt="an owl <lora:edges:0.8>",
        negative_prompt="red",
        seed=5,
        batch_size=2,
        n_iter=3,
        width=512,
        height=768,
        sampler_name="DPM++ 2M",
        scheduler="Karras",
        tiling=True,
        force_task_id="task(abc)",
        enable_hr=True,
        hr_scale=1.5,
        hr_upscaler="Lanczos",
        hr_second_pass_steps=7,
        denoising_strength=0.4,
    )
    assert asked["prompt"] == "an owl"
    assert asked["adapters"] == [{"source": "edges", "scale": 0.8}]
    assert (asked["seed"], asked["count"], asked["size"]) == (5, 6, [768, 512])
    assert (asked["sampler"], asked["schedule"], asked["seamless"]) == ("DPM++ 2M", "karras", "both")
    assert asked["label"] == "a1111 task(abc)"
    assert asked["high_resolution"] == {"scale": 1.5, "strength": 0.4, "steps": 7, "upscale": "pixels"}


def test_a_subseed_is_a_variation():
    assert wanted(subseed_strength=0.2, subseed=3)["variation_seed"] == 3
    assert wanted(subseed_strength=0.2)["variation_seed"] == 99  # any
    assert "variation_seed" not in wanted(subseed_strength=0.2, seed_enable_extras=False)
    with pytest.raises(InvalidInput, match=r"^subseed_strength is 0.2, expected 0 for several pictures"):
        wanted(subseed_strength=0.2, batch_size=2)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("styles", ["anime"], "write the style into the prompt"),
        ("restore_faces", True, "nothing is drawn over faces"),
        ("save_images", True, "come in the answer"),
        ("script_name", "X/Y/Z plot", "no scripts"),
        ("alwayson_scripts", {"ADetailer": {"args": [True, {}]}}, "'ADetailer'"),
        ("refiner_checkpoint", "xl", "no refiners"),
        ("firstphase_width", 64, "width"),
        ("seed_resize_from_h", 64, "noise"),
        ("s_min_uncond", 1, "every step"),
        ("sampler_name", "Eulr a", "did you mean"),
        ("scheduler", "Karas", "did you mean 'Karras'"),
        ("eta", 0.5, "Euler does not read it"),
        ("steps", 0, "1"),
        ("denoising_strength", 2, "1"),
        ("cfg_scael", 3, "cfg_scale"),
        ("widht", 3, "width"),
        ("width", 64, "height"),
        ("negative_prompt", "<lora:edges:1>", "in the prompt alone"),
        ("prompt", "<hypernet:x:1>", "<lora:NAME:SCALE>"),
        ("prompt", "<lora:x:much>", "finite numbers"),
    ],
)
def test_what_undertow_does_not_do_is_refused_by_name(field, value, words):
    with pytest.raises(InvalidInput) as refusal:
        wanted(**{field: value})
    assert words in str(refusal.value)


@pytest.mark.parametrize("field", ["hr_resize_x", "hr_prompt", "hr_sampler_name", "hr_upscaler"])
def test_fields_of_a_second_pass_count_only_with_one(field):
    value = 512 if field == "hr_resize_x" else "ESRGAN_4x"
    wanted(**{field: value})
    with pytest.raises(InvalidInput, match=rf"^{field} is "):
        wanted(enable_hr=True, **{field: value})


def test_scripts_that_are_off_are_taken():
    wanted(alwayson_scripts={"ControlNet": {"args": []}, "ADetailer": {"args": [False]}})


@pytest.mark.parametrize(
    ("tag", "adapter"),
    [
        ("<lora:a>", {"source": "a", "scale": 1.0}),
        ("<lora:a:0.5>", {"source": "a", "scale": 0.5}),
        ("<lora:a:0.5:1>", {"source": "a", "scale": 1.0, "text_scale": 0.5}),  # text encoder first
        ("<lora:a:te=0:unet=0.7>", {"source": "a", "scale": 0.7, "text_scale": 0.0}),
        ("<lyco:a:2>", {"source": "a", "scale": 2.0}),
    ],
)
def test_tags_as_a1111_reads_them(tag, adapter):
    """extensions-builtin/Lora/extra_networks_lora.py"""
    assert split_prompt(f"owl {tag}") == ("owl", [adapter])


def test_words_in_a_prompt_are_textual_inversions(tmp_path):
    def entry(name: str, *words: str, kind: str = EMBEDDING) -> AdapterEntry:
        return AdapterEntry(name=name, path=tmp_path, kind=kind, title="", files=(), words=words)

    entries = [entry("bad", "badhands"), entry("cat", "cat-toy"), entry("other", "owl", kind="LoRA"), entry("o", "ow")]
    assert embeddings_in(("an owl, Cat-Toy", "badhands4"), entries) == ["cat"]


def test_the_table_of_samplers_is_the_catalogues():
    catalogue = {
        alias: tuple(option for option in a1111_samplers.NEUTRAL if option in SAMPLERS[name].options)
        for alias, name in ALIASES["A1111"].items()
    }
    assert {name: tuple(sorted(reads)) for name, reads in a1111_samplers.SAMPLERS.items()} == {
        name: tuple(sorted(reads)) for name, reads in catalogue.items()
    }


@pytest.mark.parametrize("sampler", ["Euler a", "euler_a", "EulerAncestralDiscreteScheduler"])
def test_a_sampler_reads_its_numbers_by_whatever_name(sampler):
    assert a1111_samplers.sampler_options(sampler, {"eta": 0.5}) == {"eta": 0.5}
    aliases = {one["name"]: one["aliases"] for one in a1111_samplers.samplers_json()}
    assert aliases["Euler a"] == ["euler_a"]


@pytest.mark.parametrize("label", list(a1111_samplers.SCHEDULERS.values()))
def test_schedulers_by_label_and_by_name(label):
    expected = read_names("Euler", label, tool="A1111")[1]
    for name in (label, label.lower().replace(" ", "_")):
        assert read_names("Euler", a1111_samplers.schedule_of(name))[1] == expected


def test_a_picture_is_drawn_and_described(drawing):
    asked = {**WEBUIAPI, "seed": 300, "n_iter": 2, "steps": 2}
    answer = drawing.client.post(TXT2IMG, json=asked)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    first = opened(found["images"][0])
    assert first.size == (64, 64)
    assert first.getpixel((0, 0)) == (44, 1, 7)
    info = json.loads(found["info"])
    assert info["all_seeds"] == [300, 301]
    assert info["seed"] == 300
    listed = drawing.client.get("/sdapi/v1/sd-models").json()[0]
    assert info["sd_model_hash"] == listed["hash"] == model_hash(embedded_models()["emoji"])
    assert (info["width"], info["steps"], info["sampler_name"], info["sd_model_name"]) == (64, 2, "Euler a", "emoji")
    assert found["parameters"] | asked == found["parameters"]
    assert "images" in found
    assert drawing.client.post(TXT2IMG, json={**asked, "send_images": False}).json()["images"] == []


def test_img2img_starts_from_a_picture(drawing):
    picture = text_of(Image.new("RGB", (32, 64), (200, 10, 10)))
    asked = {"prompt": "owl", "init_images": [f"data:image/png;base64,{picture}"], "width": 64, "height": 64}
    answer = drawing.client.post(IMG2IMG, json={**asked, "denoising_strength": 0.5, "steps": 2})
    assert answer.status_code == 200, answer.text
    (job,) = drawing.store.jobs()
    request = job.spec.request
    assert (request["strength"], request["strength_convention"]) == (0.5, "a1111")
    assert request["size"] == [64, 64]
    assert request["image"]["size"] == [64, 64]
    assert answer.json()["parameters"]["init_images"] is None
    kept = drawing.client.post(IMG2IMG, json={**asked, "steps": 2, "include_init_images": True}).json()["parameters"]
    assert kept["init_images"] == asked["init_images"]


def inpainting(**more):
    mask = Image.new("L", (32, 32))
    mask.paste(255, (8, 8, 16, 16))
    picture = Image.new("RGB", (32, 32), (10, 200, 10))
    picture.paste((250, 0, 0), (8, 8, 16, 16))
    given = {"prompt": "owl", "init_images": [text_of(picture)], "mask": text_of(mask), "mask_blur": 0, **more}
    return pictures_of(ImageToImage.read(given), PIXELS, 64)


def test_a_mask_is_turned_blurred_and_painted_over():
    fields, whole = inpainting(inpaint_full_res=False)
    assert whole is None
    assert fields["size"] == [32, 32]
    picture, mask = np.asarray(opened(fields["image"])), np.asarray(opened(fields["mask"]))
    assert mask[10, 10] == 255
    assert mask[2, 2] == 0
    assert picture[12, 12, 0] < 20
    assert picture[12, 12, 1] > 190
    kept, _ = inpainting(inpaint_full_res=False, inpainting_fill=1)
    assert tuple(np.asarray(opened(kept["image"]))[12, 12]) == (250, 0, 0)
    turned, _ = inpainting(inpaint_full_res=False, inpainting_mask_invert=1)
    assert np.asarray(opened(turned["mask"]))[10, 10] == 0
    soft, _ = inpainting(inpaint_full_res=False, mask_blur_x=4, mask_blur=None)
    assert 0 < np.asarray(opened(soft["mask"]))[10, 6] < 255


def test_only_the_masked_part_is_drawn_and_put_back():
    fields, whole = inpainting(inpaint_full_res_padding=2, width=64, height=64)
    assert whole is not None
    assert fields["size"] == [64, 64]
    assert whole.box == (6, 6, 18, 18)
    drawn = Image.new("RGB", (64, 64), (0, 0, 255))
    result = np.asarray(Image.open(BytesIO(whole.put_back(base64.b64decode(text_of(drawn))))))
    assert result.shape == (32, 32, 3)
    assert tuple(result[10, 10]) == (0, 0, 255)
    assert tuple(result[7, 7]) == (10, 200, 10)


def test_boxes_grow_to_the_proportions_of_the_picture():
    mask = Image.new("L", (100, 50))
    ImageDraw.Draw(mask).rectangle((90, 20, 97, 21), fill=255)
    box = masked_box(mask, 1)
    assert box == (89, 19, 99, 23)
    left, top, right, bottom = grown(box, (64, 64), mask.size)
    assert (right - left, bottom - top) == (10, 10)
    assert top <= 19
    assert bottom >= 23
    assert grown((0, 0, 100, 10), (64, 64), (100, 50)) == (0, 0, 100, 50)  # as far as there is picture


def test_pictures_are_resized_three_ways():
    picture = Image.new("RGB", (20, 10), (0, 0, 0))
    picture.paste((255, 255, 255), (0, 0, 5, 10))
    assert resized(picture, (10, 10), 0).getpixel((1, 5)) == (255, 255, 255)
    assert resized(picture, (10, 10), 1).getpixel((0, 5)) != (255, 255, 255)  # its left quarter is cut off
    filled = resized(picture, (10, 10), 2)
    assert filled.size == (10, 10)
    assert filled.getpixel((0, 0))[0] > 240
    assert painted_over(picture, Image.new("L", picture.size, 255)).size == picture.size  # everything hidden


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("init_images", [], "one"),
        ("init_images", ["a", "b"], "one"),
        ("init_images", ["http://example.org/a.png"], "no URLs"),
        ("init_images", ["bm8gcGljdHVyZQ=="], "init_images[0]"),
        ("resize_mode", 3, "2"),
        ("latent_mask", "x", "give mask"),
        ("mask", text_of(Image.new("L", (8, 8), 255)), "the picture's size"),
        ("width", 8000, "height"),
    ],
)
def test_pictures_that_cannot_be_taken_are_refused(api, field, value, words):
    body = {"prompt": "owl", "init_images": [text_of(Image.new("RGB", (64, 64)))], field: value}
    answer = api.client.post(IMG2IMG, json=body)
    assert answer.status_code == 422, answer.text
    assert words in answer.json()["detail"]


def test_errors_are_in_a1111s_envelope(api):
    answer = api.client.post(TXT2IMG, json={"prompt": "owl", "styles": ["anime"]})
    assert answer.status_code == 422
    found = answer.json()
    assert found.keys() == {"error", "detail", "body", "errors"}
    assert found["detail"].startswith("styles is ['anime'], expected [];")
    answer = api.client.post(TXT2IMG, json={"prompt": "owl", "batch_size": 99})
    assert answer.json()["detail"].startswith("batch_size * n_iter is 99, expected at most 16")
    for path, words in (("lorras", "did you mean 'loras'"), ("extra-single-image", "txt2img")):
        for answer in (api.client.get(f"/sdapi/v1/{path}"), api.client.post(f"/sdapi/v1/{path}", json={})):
            assert answer.status_code == 404
            assert answer.json().keys() == found.keys()
        assert words in api.client.get(f"/sdapi/v1/{path}").text + answer.text
    api.key("somebody")
    answer = api.client.post(TXT2IMG, json={"prompt": "owl"})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Basic")
    assert answer.json().keys() == found.keys()


def basic(headers: dict[str, str]) -> tuple[str, str]:
    """The key as password, as A1111's clients send it."""
    return ("anybody", headers["Authorization"].removeprefix("Bearer "))


def test_settings_belong_to_the_key(tmp_path):
    models = {"emoji": "emoji", "second": "emoji"}
    api = open_api(tmp_path / "data", Catalog(ServerSettings(models=models)), models=models)
    ada, eve = basic(api.key("ada")), basic(api.key("eve"))
    titles = [one["title"] for one in api.client.get("/sdapi/v1/sd-models", auth=ada).json()]
    options = api.client.get("/sdapi/v1/options", auth=ada).json()
    assert options["sd_model_checkpoint"] == titles[0]
    # Open WebUI sends all of them back.
    changed_options = {**options, "sd_model_checkpoint": titles[1], "CLIP_stop_at_last_layers": 2}
    assert api.client.post("/sdapi/v1/options", json=changed_options, auth=ada).status_code == 200
    assert api.client.get("/sdapi/v1/options", auth=ada).json()["sd_model_checkpoint"] == titles[1]
    assert api.client.get("/sdapi/v1/options", auth=eve).json()["sd_model_checkpoint"] == titles[0]
    api.close()


def test_settings_that_there_are_not_are_refused(api):
    catalog = api.app.state.parts.catalog
    for given, words in (
        ({"sd_vae": "x.pt"}, "own autoencoder"),
        ({"samples_format": "gif"}, "png"),
        ({"CLIP_stop_at_last_layers": 0}, "from 1 to 12"),
        ({"sd_model_checkpoint": "emojy"}, "did you mean 'emoji'"),
        ({"sd_model_chekpoint": "emoji"}, "sd_model_checkpoint"),
    ):
        with pytest.raises(InvalidInput) as refusal:
            changed({}, given, catalog)
        assert words in str(refusal.value), given
    kept = changed({}, {"samples_format": "jpg", "CLIP_stop_at_last_layers": 2}, catalog)
    assert options_of(kept, catalog) == Options(model="emoji", clip_skip=2, format="jpeg")
    assert options_of({}, catalog) == OPTIONS


def test_override_settings_act_once_or_stay(drawing):
    body = {"prompt": "owl", "steps": 2, "override_settings": {"samples_format": "jpg"}}
    assert opened(drawing.client.post(TXT2IMG, json=body).json()["images"][0]).format == "JPEG"
    assert drawing.client.get("/sdapi/v1/options").json()["samples_format"] == "png"
    drawing.client.post(TXT2IMG, json={**body, "override_settings_restore_afterwards": False})
    assert drawing.client.get("/sdapi/v1/options").json()["samples_format"] == "jpg"


def test_progress_and_interrupt_are_the_keys_own(api):
    ada, eve = api.key("ada"), api.key("eve")
    answers = {}

    def ask() -> None:
        body = {"prompt": "owl", "steps": 4, "force_task_id": "task(1)"}
        answers["ada"] = api.client.post(TXT2IMG, json=body, auth=basic(ada))

    assert api.client.get("/sdapi/v1/progress", headers=ada).json()["progress"] == 0.0
    asking = threading.Thread(target=ask)
    asking.start()
    while not (claims := api.claim()):
        time.sleep(0.005)
    api.submit(eve)
    api.store.heartbeat("w", [(claims[0], JobProgress(stage="denoising", step=1, steps=4))], lease_s=60)
    api.artifacts.put_preview(claims[0].job.id, picture_bytes())
    now = api.client.get("/sdapi/v1/progress", auth=basic(ada)).json()
    assert now["progress"] == 0.25
    assert now["state"]["sampling_step"] == 1
    assert now["state"]["job_count"] == 1
    assert opened(now["current_image"]).size == (8, 8)
    short = api.client.get("/sdapi/v1/progress?skip_current_image=true", headers=ada).json()
    assert short["current_image"] is None
    assert short["progress"] == 0.25
    assert api.client.get("/sdapi/v1/progress?force_task_id=task(2)", headers=ada).json()["progress"] == 0.0
    task = {"id_task": "task(1)", "id_live_preview": -1}
    page = api.client.post("/internal/progress", json=task, headers=ada).json()
    assert page["active"]
    assert page["progress"] == 0.25
    assert page["live_preview"].startswith("data:image/png;base64,")
    assert not api.client.post("/internal/progress", json=task, headers=eve).json()["active"]
    # The job of the other key is not of this API, and not hers: nothing stops it.
    assert api.client.get("/sdapi/v1/progress", headers=eve).json()["state"]["job_count"] == 0
    for headers, query in ((eve, ""), (ada, "?force_task_id=task(2)")):
        assert api.client.post(f"/sdapi/v1/interrupt{query}", headers=headers).json() == {}
    assert not api.store.job(claims[0].job.id).cancel_requested
    api.client.post("/sdapi/v1/interrupt", headers=ada)
    assert api.store.cancelled(claims[0])
    asking.join()
    stopped = answers["ada"].json()  # as A1111: what there is, in the size that was asked for
    assert (answers["ada"].status_code, len(stopped["images"])) == (200, 1)
    assert opened(stopped["images"][0]).size == (SIDE, SIDE)
    info = json.loads(stopped["info"])
    assert (info["width"], info["seed"]) == (SIDE, claims[0].job.spec.request["seed"])


@pytest.mark.parametrize("ending", ["interrupt", "skip"])
def test_what_is_interrupted_before_there_is_anything_has_no_picture(api, ending):
    """webuiapi's own call of `interrupt`; `skip` leaves what waits."""
    answers = []
    asking = threading.Thread(
        target=lambda: answers.append(api.client.post(TXT2IMG, json={"prompt": "owl", "steps": 4}))
    )
    asking.start()
    while not (claims := api.claim(1)):
        time.sleep(0.005)
    waits = api.submit(label="a1111")["id"]
    assert api.client.post(f"/sdapi/v1/{ending}").json() == {}
    assert api.store.cancelled(claims[0])
    asking.join()
    assert (answers[0].status_code, answers[0].json()["images"]) == (200, [])
    assert json.loads(answers[0].json()["info"])["all_seeds"] == []
    assert api.store.job(waits).state == ("queued" if ending == "skip" else "canceled")


def test_png_info_reads_what_a_file_says(drawing):
    """The settings of an example of A1111's own (modules/infotext_utils.py, `parse_generation_parameters`)."""
    text = "girl with an artist's beret\nNegative prompt: blurry\nSteps: 20, Sampler: Heun, CFG scale: 7, Size: 512x384"
    content = BytesIO()
    told = PngInfo()
    told.add_text("parameters", text)
    Image.new("RGB", (8, 8)).save(content, format="PNG", pnginfo=told)
    image = base64.b64encode(content.getvalue()).decode()
    for given in (image, f"data:image/png;base64,{image}"):
        found = drawing.client.post("/sdapi/v1/png-info", json={"image": given}).json()
        assert (found["info"], found["items"]) == (text, {"parameters": text})
        assert found["parameters"] == {
            "Prompt": "girl with an artist's beret", "Negative prompt": "blurry", "Steps": "20", "Sampler": "Heun",
            "CFG scale": "7", "Size": "512x384", "Size-1": "512", "Size-2": "384",
        }  # fmt: skip
    plain = base64.b64encode(picture_bytes()).decode()
    assert drawing.client.post("/sdapi/v1/png-info", json={"image": plain}).json()["info"] == ""
    for wrong in (None, "", "no base64!", base64.b64encode(b"no picture").decode()):
        refused = drawing.client.post("/sdapi/v1/png-info", json={"image": wrong})
        assert (refused.status_code, refused.json()["detail"].startswith("image is")) == (422, True)


def test_lists_have_the_names_that_requests_take(api):
    def listed(name: str):
        answer = api.client.get(f"/sdapi/v1/{name}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    assert [one["model_name"] for one in listed("sd-models")] == ["emoji", "emoji-turbo"]
    assert "Euler a" in {one["name"] for one in listed("samplers")}
    assert {"karras", "automatic"} <= {one["name"] for one in listed("schedulers")}
    loras = [one["name"] for one in listed("loras")]
    assert "mosaic" in loras
    assert len(loras) == len(set(loras)), "emoji and emoji-turbo come with the same"
    assert listed("scripts") == {"txt2img": [], "img2img": []}
    assert [one["name"] for one in listed("latent-upscale-modes")] == ["Latent"]
    assert listed("hypernetworks") == listed("prompt-styles") == listed("face-restorers") == []
    assert listed("embeddings") == {"loaded": {}, "skipped": {}}
    for name in ("sd-models", "loras"):
        assert "/" not in json.dumps(listed(name))  # no paths
    assert api.client.post("/sdapi/v1/refresh-checkpoints").json() is None


@pytest.mark.parametrize("name", ["emoji", "emoji-turbo"])
def test_a_model_has_the_hash_that_its_pictures_name(name):
    catalog = Catalog(ServerSettings(models={name: name}))
    model = catalog.model(name)
    files = UsedFiles(model=model.path)
    drawn = Report(request=GenerationRequest(prompt=""), model=name, size=(8, 8), sigmas=(), seconds={}, files=files)
    named = re.search("Model hash: ([0-9a-f]{10})", a1111_text(drawn, 0))
    assert named is not None
    listed = model_json(model, title_of(model))
    assert listed["hash"] == named[1] == listed["sha256"][:10]
    assert listed["title"] == f"{name} [{named[1]}]"
    assert options_json({}, catalog)["sd_checkpoint_hash"] == listed["sha256"]
    for said in (named[1], listed["sha256"], listed["title"]):
        assert model_named(said, catalog) is model


def test_units_of_controlnet_are_adapters(drawing):
    """As webuiapi sends them; the map is resized, and img2img's own picture stands in for a missing one."""
    unit = webuiapi.ControlNetUnit(image=Image.new("L", (32, 32), 255), model="edges [0123abcd]", weight=0.7)
    unit.guidance_end, unit.control_mode = 0.5, "My prompt is more important"
    scripts = {"ControlNet": {"args": [unit.to_dict(), {"model": "edges", "enabled": False}]}}
    body = {"prompt": "owl", "steps": 2, "width": 64, "height": 64, "alwayson_scripts": scripts}
    answer = drawing.client.post(TXT2IMG, json=body)
    assert answer.status_code == 200, answer.text
    (adapter,) = drawing.store.jobs()[0].spec.request["adapters"]
    assert (adapter["source"], adapter["scale"], adapter["end"]) == ("edges", 0.7, 0.5)
    assert adapter["control_mode"] == "prompt"
    assert adapter["image"]["size"] == [64, 64]
    own = {"ControlNet": {"args": [{"model": "edges"}]}}
    picture = text_of(Image.new("RGB", (64, 64)))
    asked = {"prompt": "owl", "steps": 2, "init_images": [picture], "alwayson_scripts": own}
    assert drawing.client.post(IMG2IMG, json=asked).status_code == 200
    (adapter,) = drawing.store.jobs()[0].spec.request["adapters"]
    assert adapter["image"]["size"] == [64, 64]
    assert drawing.client.get("/controlnet/model_list").json() == {"model_list": ["edges"]}


@pytest.mark.parametrize(
    ("unit", "words"),
    [
        ({"model": "edges", "image": text_of(Image.new("L", (8, 8))), "module": "canny"}, "undertow preprocess"),
        ({"model": "edges"}, "the control map in base64"),
        ({"model": "edgs", "image": text_of(Image.new("L", (8, 8)))}, "did you mean 'edges'"),
        ({"model": "edges", "image": text_of(Image.new("L", (8, 8))), "control_mode": 7}, "control_mode"),
        ({"model": "edges", "image": "!"}, "controlnet.args[0].image"),
        ({"model": "edges", "wieght": 1}, "weight"),
        ({"image": "x"}, "model"),
    ],
)
def test_units_that_ask_for_more_are_refused(api, unit, words):
    body = {"prompt": "owl", "steps": 2, "alwayson_scripts": {"controlnet": {"args": [unit]}}}
    answer = api.client.post(TXT2IMG, json=body)
    assert answer.status_code == 422, answer.text
    assert words in answer.json()["detail"]
