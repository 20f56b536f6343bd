"""What a request is by default, what it refuses, and how it goes through JSON."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from undertow import (
    Adapter,
    AdapterStack,
    GenerationRequest,
    HighResolution,
    InvalidInput,
    Region,
    StepForecast,
    Views,
)
from undertow.engine.report import Report
from undertow.engine.request import MAX_SEED

PICTURE = Image.new("RGB", (32, 16), (10, 20, 30))
MASK = Image.new("L", (32, 16), 255)

DEFAULTS = {
    "prompt": "",
    "negative_prompt": "",
    "steps": 20,
    "guidance_scale": 5.0,
    "guidance_method": "cfg",
    "seed": 0,
    "count": 1,
    "size": None,
    "sampler": "model",
    "sampler_options": {},
    "schedule": None,
    "sigmas": None,
    "discard_penultimate": None,
    "dialect": "a1111",
    "clip_skip": None,
    "original_size": None,
    "crop": [0, 0],
    "target_size": None,
    "timestep_map": "interpolated",
    "noise_convention": "variance",
    "forecast_steps": None,
    "image": None,
    "strength": 0.8,
    "strength_convention": "diffusers",
    "mask": None,
    "depth": None,
    "paste": True,
    "image_guidance_scale": 1.5,
    "regions": [],
    "regions_by": "estimates",
    "high_resolution": None,
    "views": None,
    "seamless": "none",
    "variation_seed": None,
    "variation_strength": 0.0,
    "refiner_switch": 0.8,
    "adapters": [],
    "embeddings": [],
}


def test_what_is_not_said_is_what_other_tools_do():
    """Pictures are repeated from what a user said: a default that moves would draw another one."""
    assert GenerationRequest(prompt="").to_json() == DEFAULTS
    assert GenerationRequest.from_json({"prompt": ""}) == GenerationRequest(prompt="")


def test_the_defaults_of_parts():
    region = Region(prompt="a", box=(0, 0, 1, 1))
    assert (region.weight, region.adapters) == (1.0, ())
    high = HighResolution()
    assert (high.scale, high.strength, high.steps, high.upscale) == (2.0, 0.6, None, "pixels")
    assert (Views().window, Views().overlap) == (None, 0.5)
    forecast = StepForecast()
    assert (forecast.every, forecast.first, forecast.last) == (2, 4, 0.1)


@pytest.mark.parametrize(
    ("settings", "argument", "message"),
    [
        ({"prompt": None}, "prompt", "expected text"),
        ({"negative_prompt": 3}, "negative_prompt", "expected text"),
        ({"steps": 0}, "steps", "at least 1"),
        ({"count": 0}, "count", "at least 1"),
        ({"seed": -1}, "seed", r"from 0 to 2\^64 - 1"),
        ({"seed": MAX_SEED + 1}, "seed", r"from 0 to 2\^64 - 1"),
        ({"seed": MAX_SEED, "count": 2}, "seed", r"from 0 to 2\^64 - 2"),
        ({"guidance_scale": math.nan}, "guidance_scale", "a finite number"),
        ({"guidance_scale": -math.inf}, "guidance_scale", "a finite number"),
        ({"image_guidance_scale": math.inf}, "image_guidance_scale", "a finite number"),
        ({"clip_skip": 0}, "clip_skip", "at least 1; layer of the text encoder to read, .* 1 is the last"),
        ({"image": "a.png"}, "image", "str, expected a PIL image"),
        ({"depth": "a.png"}, "depth", "str, expected a PIL image"),
        ({"image": PICTURE, "mask": 3}, "mask", "int, expected a PIL image"),
        ({"mask": MASK}, "mask", "nothing without an image"),
        ({"image": PICTURE, "mask": MASK.resize((16, 32))}, "mask", "16x32, expected 32x16, the image's size"),
        ({"seamless": "z"}, "seamless", "one of none, x, y, both"),
        ({"strength_convention": "forge"}, "strength_convention", "one of diffusers, comfy, a1111"),
        ({"regions_by": "latents"}, "regions_by", "one of estimates, attention"),
        ({"strength": -0.1}, "strength", "from 0"),
        ({"strength": 1.1}, "strength", "from 0"),
        ({"strength": math.nan}, "strength", "from 0"),
        ({"variation_strength": 1.1, "variation_seed": 1}, "variation_strength", "from 0"),
        ({"variation_strength": 0.1}, "variation_strength", "0 without a variation_seed"),
        ({"original_size": (-1, 0)}, "original_size", r"is \(-1, 0\), expected a pair of whole numbers of at least 1"),
        ({"target_size": (512, 0)}, "target_size", "of at least 1"),
        ({"crop": (0, -1)}, "crop", "of at least 0"),
        ({"refiner_switch": -0.1}, "refiner_switch", "from 0"),
        ({"refiner_switch": 1.1}, "refiner_switch", "from 0"),
    ],
)
def test_what_cannot_be_is_refused_by_name_with_what_was_expected(settings, argument, message):
    """Types are checked while tests run, but not where users give them: the fields are put in behind that check."""
    request = GenerationRequest(prompt="a")
    for name, value in settings.items():
        object.__setattr__(request, name, value)
    with pytest.raises(InvalidInput, match=message) as refusal:
        request.__post_init__()
    assert refusal.value.argument == argument


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 1, "count": 1, "clip_skip": 1},
        {"seed": MAX_SEED},
        {"seed": MAX_SEED - 1, "count": 2},
        {"strength": 0.0, "refiner_switch": 0.0},
        {"strength": 1.0, "refiner_switch": 1.0, "variation_strength": 1.0, "variation_seed": 0},
        {"guidance_scale": -3.0, "image_guidance_scale": 0.0},
        {"image": PICTURE, "mask": MASK, "depth": MASK},
        {"seamless": "both", "strength_convention": "a1111", "regions_by": "attention"},
    ],
)
def test_what_lies_on_the_border_is_allowed(settings):
    GenerationRequest(prompt="", **settings)


@pytest.mark.parametrize("sigmas", [(), (1.0,), (1.0, 2.0, 0.0), (1.0, 1.0), (2.0, -1.0), (float("nan"), 0.0)])
def test_levels_that_no_sampler_walks_along_are_refused_when_they_are_asked_for(sigmas):
    with pytest.raises(InvalidInput, match=r"sigmas.*strictly decreasing"):
        GenerationRequest(prompt="", sigmas=sigmas)


def test_the_pictures_of_a_request_have_seeds_in_a_row():
    assert GenerationRequest(prompt="", seed=7, count=3).seeds == [7, 8, 9]


def everything() -> GenerationRequest:
    adapter = Adapter("a.safetensors", scale=(0.0, 1.0), start=0.1, end=0.9)
    return GenerationRequest(
        prompt="red",
        negative_prompt="dark",
        size=(32, 48),
        sigmas=(3.0, 1.0, 0.0),
        sampler_options={"eta": 0.5},
        crop=(1, 2),
        image=PICTURE,
        mask=MASK,
        depth=MASK,
        regions=(Region(prompt="b", box=(0, 0, 0.5, 1), weight=2.0, adapters=(adapter,)),),
        high_resolution=HighResolution(scale=1.5, steps=3),
        views=Views(window=64),
        variation_seed=3,
        variation_strength=0.2,
        adapters=(adapter,),
    )


def test_a_request_is_the_same_after_json():
    request = everything()
    text = json.dumps(request.to_json())
    again = GenerationRequest.from_json(json.loads(text))
    assert again == request
    assert json.dumps(again.to_json()) == text


def test_pictures_of_which_only_the_hash_is_stored_are_given_again():
    text = json.dumps(everything().to_json(embed=False))
    again = GenerationRequest.from_json(json.loads(text), image=PICTURE, mask=MASK, depth=MASK)
    assert again == everything()
    assert len(text) < len(json.dumps(again.to_json()))


def test_a_stack_of_adapters_is_the_same_after_json():
    stack = AdapterStack((Adapter("a.safetensors"), Adapter("b.safetensors")), strategy="priority")
    request = GenerationRequest(prompt="", adapters=stack)
    again = GenerationRequest.from_json(json.loads(json.dumps(request.to_json())))
    assert again == request


def test_adapters_and_parts_may_be_given_as_they_are():
    request = everything()
    kept = {"regions": request.regions, "views": request.views, "adapters": request.adapters}
    assert GenerationRequest.from_json({"prompt": "", **kept}) == GenerationRequest(prompt="", **kept)
    stack = AdapterStack((Adapter("a.safetensors"),))
    assert GenerationRequest.from_json({"prompt": "", "adapters": stack}).adapters == stack


def test_lists_are_written_as_the_tuples_that_they_stand_for():
    """Types are checked while tests run, but not where users give them: the fields are put in behind that check."""
    adapter = Adapter("a.safetensors", image=PICTURE)
    region = Region(prompt="b", box=(0, 0, 0.5, 1), adapters=(adapter,))
    given = GenerationRequest(prompt="", size=(64, 64), regions=(region,), adapters=(adapter,))
    plain = given.to_json()
    object.__setattr__(region, "adapters", [adapter])
    for name in ("size", "regions", "adapters"):
        object.__setattr__(given, name, list(getattr(given, name)))
    object.__setattr__(given, "steps", np.int64(20))
    assert given.to_json() == plain
    object.__setattr__(given, "steps", "many")
    with pytest.raises(InvalidInput, match="steps is 'many', expected a number, which text is not"):
        given.to_json()


@pytest.mark.parametrize(
    ("json", "pictures", "argument", "message"),
    [
        ({}, {}, "prompt", "missing, expected a value; what to draw"),
        (
            {"prompt": "", "cfg": 7},
            {},
            "cfg",
            "7, expected a field of GenerationRequest; here it is called 'guidance_scale'",
        ),
        (
            {"prompt": "", "cups": 7},
            {},
            "cups",
            "7, expected a field of GenerationRequest; it has prompt, negative_prompt",
        ),
        ({"prompt": "", "step": 7}, {}, "step", "did you mean 'steps'"),
        (
            {"prompt": "", "steps": "many"},
            {},
            "steps",
            "'many', expected a number, which text is not; number of sampling steps",
        ),
        ({"prompt": "", "steps": 0}, {}, "steps", "expected at least 1; number of sampling steps"),
        ({"prompt": "", "count": None}, {}, "count", "None, expected a valid integer"),
        ({"prompt": "", "seed": 2**64}, {}, "seed", "expected from 0 to"),
        ({"prompt": "", "guidance_scale": math.nan}, {}, "guidance_scale", "expected a finite number"),
        ({"prompt": "", "size": [1, 2, 3]}, {}, "size", "expected a pair of height and width"),
        ({"prompt": "", "sampler_options": {"eta": "x"}}, {}, "sampler_options.eta", "a number, which text is not"),
        ({"prompt": "", "seamless": "z"}, {}, "seamless", "'z', expected one of none, x, y, both; axes along which"),
        ({"prompt": ""}, {"image": PICTURE}, "image", "made without one"),
        ({"prompt": "", "image": {"size": [1, 1], "sha256": "x"}}, {}, "image", "--image"),
        ({"prompt": "", "image": {"size": [1, 1], "sha256": "x"}}, {"image": PICTURE}, "image", "32x16"),
        (
            {"prompt": "", "regions": [{"prompt": "a", "box": [0, 0, 1, 1], "size": 3}]},
            {},
            "regions.0.size",
            "a field of Region",
        ),
        ({"prompt": "", "regions": [{"box": [0, 0, 1, 1]}]}, {}, "regions.0.prompt", "missing"),
        ({"prompt": "", "regions": [{"prompt": "a", "box": [0, 0, 0, 1]}]}, {}, "region.box", "left < right"),
        ({"prompt": "", "views": {"windows": 3}}, {}, "views.windows", "did you mean 'window'"),
        ({"prompt": "", "high_resolution": {"scale": 1}}, {}, "high_resolution.scale", "a finite number above 1"),
        (
            {"prompt": "", "adapters": [{"source": "a", "scale": "x"}]},
            {},
            "adapters.0.scale",
            "a number, which text is not",
        ),
        ({"prompt": "", "adapters": [{"sauce": "a"}]}, {}, "adapters.0.sauce", "did you mean 'source'"),
        (
            {"prompt": "", "adapters": {"stategy": "sum"}},
            {},
            "adapters.stategy",
            "a field of AdapterStack; did you mean",
        ),
        ({"prompt": "", "adapters": {"strategy": "x"}}, {}, "adapters.strategy", "one of sum, normalised"),
        ({"prompt": "", "image": 3}, {}, "image", "int, expected a PIL image"),
        ({"prompt": "", "image": {"png": "!"}}, {}, "image", "a PNG file in base64"),
        ({"prompt": "", "image": {"jpg": "!"}}, {}, "image", "'jpg', expected a picture's file or png"),
        ({"prompt": "", "image": {"file": "gone.png"}}, {}, "image", "gone.png, .*--image"),
        (
            {"prompt": "", "adapters": [{"source": "a", "mask": {"file": "gone.png"}}]},
            {},
            "adapters.0.mask",
            "gone.png",
        ),
    ],
)
def test_json_that_is_no_request_is_refused_by_name(json, pictures, argument, message):
    with pytest.raises(InvalidInput, match=message) as refusal:
        GenerationRequest.from_json(json, **pictures)
    assert refusal.value.argument == argument


def test_the_defaults_of_a_report():
    report = Report(request=GenerationRequest(prompt=""), model="m", size=(1, 2), sigmas=(), seconds={})
    assert (report.rows, report.cancelled, report.decisions, report.debug) == (0, False, (), ())
