"""A setting that cannot act is noted, in one sentence; one that acts is not."""

import pytest
import torch
from PIL import Image

from tests.services import fresh_service, service_of
from undertow import HighResolution, Region, StepForecast, Views
from undertow.engine.events import StepEvent

PICTURE = Image.new("RGB", (32, 32), (200, 30, 30))
MASK = Image.new("L", (32, 32), 255)


def cancel(event: StepEvent) -> None:
    event.cancel()


def notes(family: str = "sd1", prompt: str = "owl", **settings) -> list[str]:
    report = service_of(family).generate(prompt, observe=cancel, **{"steps": 2, "size": 32, **settings}).report
    return [line for line in report.decisions if "no effect" in line or "acts in none" in line]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"strength": 0.5}, "strength has no effect without an image"),
        ({"strength_convention": "a1111"}, "strength_convention has no effect without an image or a second pass"),
        ({"image_guidance_scale": 2.0}, "image_guidance_scale has no effect on a model that edits no pictures"),
        ({"image": PICTURE, "paste": False}, "paste has no effect without a mask"),
        ({"variation_seed": 3}, "variation_seed has no effect with a variation_strength of 0"),
        ({"regions_by": "attention"}, "regions_by has no effect without regions"),
        ({"refiner_switch": 0.5}, "refiner_switch has no effect without a refiner"),
        ({"crop": (8, 0)}, "crop has no effect on a model that is told no sizes"),
        ({"guidance_method": "pag", "guidance_scale": 7.0}, "guidance_scale has no effect with guidance_method 'pag'"),
        (
            {"sigmas": (5.0, 1.0, 0.0), "sampler": "euler", "schedule": "karras", "steps": 7},
            "steps and schedule have no effect beside sigmas",
        ),
        (
            {"sampler": "DPM++ 2M Karras", "schedule": "exponential"},
            "the grid in the sampler's name, karras, has no effect beside schedule 'exponential'",
        ),
        ({"forecast_steps": StepForecast()}, "forecast_steps has no effect: all of 2 steps are computed"),
        ({"views": Views()}, "views have no effect on a picture that fits into one window"),
        (
            {"negative_prompt": "dark", "guidance_scale": 1.0},
            "negative_prompt has no effect: guidance_scale 1 turns guidance off",
        ),
        (
            {"negative_prompt": "dark", "guidance_method": "pag"},
            "negative_prompt has no effect: guidance_method 'pag' asks for none",
        ),
        ({"guidance_method": "apg", "guidance_scale": 1.0},
         "guidance_method 'apg' has no effect with guidance_scale 1"),
        ({"guidance_method": "tangential+rescale", "guidance_scale": 1.0},
         "guidance_method 'tangential' and 'rescale' have no effect with guidance_scale 1"),
        ({"guidance_method": "zero_star(zero_steps=0)", "guidance_scale": 1.0},
         "guidance_method 'zero_star' has no effect with guidance_scale 1"),
        ({"guidance_method": "cfg(start=0.2)", "guidance_scale": 1.0, "steps": 5},
         "guidance_method 'cfg' has no effect with guidance_scale 1"),
        ({"guidance_method": "cfg(start=0.6,end=0.9)"},
         "guidance_method 'cfg' has no effect in 2 steps: no whole one lies from 0.6 to 0.9 of them"),
        ({"guidance_method": "cfg+pag(scale=0)"}, "guidance_method 'pag' has no effect with a scale of 0"),
        ({"guidance_method": "none+rescale"}, "guidance_method 'rescale' has no effect without guidance"),
    ],
)  # fmt: skip
def test_what_cannot_act_is_said(settings, sentence):
    assert notes(**settings) == [sentence]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"image": PICTURE, "strength": 0.5, "strength_convention": "a1111"},
        {"image": PICTURE, "mask": MASK, "paste": False},
        {"high_resolution": HighResolution(), "strength_convention": "comfy"},
        {"variation_seed": 3, "variation_strength": 0.2},
        {"regions": Region(prompt="red", box=(0, 0, 0.5, 1)), "regions_by": "attention"},
        {"guidance_method": "cfg+pag", "guidance_scale": 7.0, "negative_prompt": "dark"},
        {"sigmas": (5.0, 1.0, 0.0), "sampler": "euler", "steps": 2},
        {"guidance_scale": 1.0},
        {"guidance_method": "none"},
        {"guidance_method": "apg+rescale"},
        {"guidance_method": "zero_star", "guidance_scale": 1.0},
        {"guidance_method": "cfg+pag+rescale", "guidance_scale": 1.0},
        {"guidance_method": "cfg+mimic+threshold+free_u", "guidance_scale": 1.0},
        {"guidance_method": "cfg(scale=1|5)"},
        {"sampler": "euler_cfg_pp", "guidance_scale": 1.0, "negative_prompt": "dark"},
        {"sampler": "DPM++ 2M Karras", "schedule": "karras"},
        {"views": Views(), "size": 64},
        {"guidance_method": "apg+rescale", "guidance_scale": 1.0, "image": PICTURE, "strength": 0.0},
    ],
)
def test_what_acts_is_not_noted(settings):
    assert notes(**settings) == []


def test_a_model_that_edits_pictures_takes_the_scale_of_the_picture_in_its_own_guidance_alone():
    request = {"image": PICTURE, "image_guidance_scale": 2.0, "guidance_scale": 1.0}
    assert notes("pix2pix", **request) == []
    assert notes("pix2pix", **request, guidance_method="none") == [
        "guidance_scale and image_guidance_scale have no effect with guidance_method 'none'"
    ]


def test_a_model_that_is_told_sizes_reads_them():
    assert notes("sdxl", crop=(8, 0)) == []


def test_an_embedding_that_no_prompt_names_is_noted_by_one_of_its_names():
    service = fresh_service("sd1")
    text = service.model.require_text()
    vectors = torch.zeros(1, text.width)
    for name in ("<owl-style>", "owlstyle"):  # a token and a file's name, for the same vectors
        text.add_embedding(name, vectors)

    def decisions(prompt: str, dialect: str = "a1111") -> list[str]:
        names = ("<owl-style>", "owlstyle")
        request = {"embeddings": names, "dialect": dialect, "steps": 1, "size": 32}
        report = service.generate(prompt, observe=cancel, **request).report
        return [line for line in report.decisions if "embed" in line]

    assert decisions("an owl") == ["the embedding '<owl-style>' has no effect: no prompt has <owl-style> in it"]
    assert decisions("an owlstyle bird") == []
    assert decisions("a bird, embedding:owlstyle", "comfy") == []
    (line,) = decisions("an owlstyle bird", "comfy")
    assert line.endswith("no prompt has embedding:<owl-style> in it")


def test_an_embedding_in_place_of_a_word_is_noted():
    service = fresh_service("sd1")
    text = service.model.require_text()
    word = next(word for word in ("a", "the", "red", "owl", "b") if len(text.encoders[0].tokenizer.encode(word)) == 1)
    text.add_embedding(word, torch.zeros(1, text.width))
    decisions = service.generate(f"{word} bird", observe=cancel, steps=1, size=32).report.decisions
    assert f"{word!r} in the prompt is the embedding of that name, in place of the word" in decisions
