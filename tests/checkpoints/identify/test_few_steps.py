"""Which models are drawn in few steps, told by a header alone and by what was loaded, and what they suggest."""

from dataclasses import replace

import pytest

import undertow
from tests.distilled import distilled_pipeline
from tests.services import pipeline_folder, service_of
from undertow import GenerationRequest
from undertow.checkpoints.identify.few_steps import (
    FEW_STEP_SCHEDULERS,
    left_to_model,
    suggested_fields,
    why_few_steps,
)
from undertow.checkpoints.identify.outline import outline
from undertow.errors import InvalidInput
from undertow.schedulers.samplers import read_scheduler
from undertow.unet.config import UNetConfig

FEW = {"steps": 4, "guidance_scale": 1.0}


def test_the_bound_of_steps_is_that_of_the_sampler_that_draws():
    for config, most in (
        ({}, 50),
        ({"original_inference_steps": 20}, 20),
    ):
        for name in FEW_STEP_SCHEDULERS:
            sampler = read_scheduler({"_class_name": name, "clip_sample": False, **config})
            sampler.timesteps(1000, most)
            with pytest.raises(InvalidInput, match=f"from 1 to {most}"):
                sampler.timesteps(1000, most + 1)


@pytest.mark.parametrize("scheduler", ["LCMScheduler", "TCDScheduler"])
def test_a_folder_that_draws_with_a_consistency_model_s_scheduler_suggests_few_steps(scheduler):
    assert scheduler in why_few_steps(UNetConfig.sd15(), scheduler)
    assert suggested_fields(UNetConfig.sd15(), scheduler) == FEW


@pytest.mark.parametrize("scheduler", [None, "EulerDiscreteScheduler", "DDIMScheduler"])
def test_other_folders_suggest_nothing(scheduler):
    assert why_few_steps(UNetConfig.sd15(), scheduler) == ""
    assert suggested_fields(UNetConfig.sd15(), scheduler) == {}


def test_a_network_that_is_told_its_guidance_keeps_the_usual_scale():
    assert suggested_fields(replace(UNetConfig.sd15(), guidance_dim=256), "LCMScheduler") == {"steps": 4}


def test_what_is_given_counts_more_and_sigmas_take_the_place_of_steps():
    assert left_to_model(FEW, {"prompt"}) == FEW
    assert left_to_model(FEW, {"steps"}) == {"guidance_scale": 1.0}
    assert left_to_model(FEW, {"guidance_scale"}) == {"steps": 4}
    assert left_to_model(FEW, {"sigmas"}) == {"guidance_scale": 1.0}


def test_header_and_loaded_model_agree_and_methods_of_a_service_draw_with_it(tmp_path):
    folder = distilled_pipeline(tmp_path / "turbo")
    found = outline(str(folder))
    service = undertow.load(folder)
    assert suggested_fields(found.unet, found.scheduler) == service.model.suggested == FEW
    plain = outline(str(pipeline_folder("sd1")))
    assert suggested_fields(plain.unet, plain.scheduler) == service_of("sd1").model.suggested == {}

    named = service.generate("red apple", seed=3)
    assert (named.report.request.steps, named.report.request.guidance_scale) == (4, 1.0)
    alone, whole = service.generate_many(["red apple", GenerationRequest(prompt="red apple", steps=1)])
    assert (alone.report.request.steps, alone.report.request.guidance_scale) == (4, 1.0)
    assert (whole.report.request.steps, whole.report.request.guidance_scale) == (
        1,
        5.0,
    )  # a request says all of its fields
    assert service.generate("red apple", steps=2).report.request.steps == 2
    with pytest.raises(InvalidInput, match="steps"):
        service.generate("red apple", steps=0)
