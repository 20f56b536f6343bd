"""InvokeAI's metadata, as its pictures carry it, read into requests.

The names of the fields are those of `CoreMetadataInvocation` (InvokeAI's invocations/metadata.py); the schedulers those
of its table, which names diffusers' classes.
"""

import json

import pytest

from undertow import GenerationRequest
from undertow.infotext.invoke import SAMPLERS, read_invoke
from undertow.infotext.picture import read_description_of_others
from undertow.infotext.reading import NamedFile
from undertow.sampling.catalogue import SAMPLERS as OURS

MODERN = {
    "generation_mode": "sdxl_txt2img",
    "positive_prompt": "red apple++",
    "negative_prompt": "dark",
    "positive_style_prompt": "",
    "width": 832,
    "height": 1216,
    "seed": 4004004,
    "rand_device": "cpu",
    "cfg_scale": 6.5,
    "cfg_rescale_multiplier": 0,
    "steps": 28,
    "scheduler": "dpmpp_2m_k",
    "seamless_x": True,
    "clip_skip": 1,
    "model": {"key": "1b", "hash": "blake3:00", "name": "Juggernaut XL", "base": "sdxl", "type": "main"},
    "loras": [{"model": {"name": "film", "base": "sdxl", "type": "lora"}, "weight": 0.75}],
    "controlnets": [],
    "ipAdapters": [{"image": {"image_name": "a.png"}}],
    "vae": {"name": "sdxl-fp16-fix"},
    "refiner_model": {"name": "xl_refiner"},
    "refiner_start": 0.8,
    "refiner_cfg_scale": 6,
    "app_version": "6.10.0",
}


def test_modern_metadata_become_a_request():
    found = read_invoke(json.dumps(MODERN))
    assert found is not None
    assert (found.program, found.version) == ("InvokeAI", "6.10.0")
    assert found.request == {
        "dialect": "compel",
        "prompt": "red apple++",
        "negative_prompt": "dark",
        "seed": 4004004,
        "steps": 28,
        "guidance_scale": 6.5,
        "refiner_switch": 0.8,
        "sampler": "dpmpp_2m",
        "schedule": "karras",
        "size": [1216, 832],
        "clip_skip": 2,
        "seamless": "x",
    }
    GenerationRequest.from_json(found.request)
    assert list(found.files) == [
        NamedFile(kind="model", name="Juggernaut XL", option="--model"),
        NamedFile(kind="refiner", name="xl_refiner", option="--refiner"),
        NamedFile(kind="LoRA", name="film", option="--lora", scale=0.75),
    ]
    assert {one.name: one.why for one in found.not_understood} == {
        "ipAdapters": "give them by --adapter NAME=PICTURE",
        "vae": "the model's own autoencoder is taken",
        "refiner_cfg_scale": "undertow has no such setting",
    }


def test_a_picture_of_version_3_that_was_started_from_another():
    old = {
        "generation_mode": "img2img",
        "positive_prompt": "owl",
        "model": {"model_name": "stable-diffusion-v1-5", "base_model": "sd-1", "model_type": "main"},
        "loras": [{"lora": {"model_name": "ink", "base_model": "sd-1"}, "weight": 1}],
        "strength": 0.6,
        "init_image": "photo.png",
        "scheduler": "unipc",
        "rand_device": "cuda",
    }
    found = read_invoke(json.dumps(old))
    assert found is not None
    assert (found.request["strength"], found.request["strength_convention"]) == (0.6, "diffusers")
    assert (found.request["sampler"], found.request["schedule"]) == ("unipc_bh2", "ddim")  # diffusers' "leading"
    assert [(file.kind, file.name) for file in found.files] == [
        ("picture", "photo.png"),
        ("model", "stable-diffusion-v1-5"),
        ("LoRA", "ink"),
    ]
    assert [one.name for one in found.not_understood] == ["rand_device"]


def test_every_scheduler_is_one_of_our_samplers():
    assert not set(SAMPLERS.values()) - set(OURS)


@pytest.mark.parametrize(
    ("changes", "listed"),
    [
        ({"scheduler": "magic_k"}, "scheduler"),
        ({"seed": "many"}, "seed"),
        ({"generation_mode": "sdxl_inpaint"}, "generation_mode"),
        ({"controlnets": [{"control_weight": 1}]}, "controlnets"),
        ({"hrf_enabled": True}, "hrf_enabled"),
        ({"new in version 9": {"x": 1}}, "new in version 9"),
    ],
)
def test_what_has_no_part_in_the_request_is_listed(changes, listed):
    found = read_invoke(json.dumps(MODERN | changes))
    assert found is not None
    assert listed in [one.name for one in found.not_understood]


@pytest.mark.parametrize("wrong", [{"loras": 5}, {"loras": ["x", None]}, {"model": []}, {"positive_prompt": 3},
                                   {"clip_skip": "x"}, {"width": "8"}, {"app_version": None}])  # fmt: skip
def test_values_of_other_kinds_do_no_harm(wrong):
    assert read_invoke(json.dumps(MODERN | wrong)) is not None


def test_what_is_no_metadata_is_nobody_s():
    for text in ("", "[1]", "{}", "5", "[" * 100_000, "nonsense"):
        assert read_invoke(text) is None
        assert read_description_of_others({"invokeai_metadata": text}) is None
