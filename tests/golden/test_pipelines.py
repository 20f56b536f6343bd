"""End to end: tiny SD1, SD2-v and SDXL pipelines, drawn by diffusers and by undertow from the same noise."""

from functools import cache

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)

from tests.few import few
from tests.golden.drawn import assert_same, ours, pipeline_of, prediction_of, theirs
from tests.golden.pipelines import SCHEDULE
from tests.services import service_of
from undertow.diffusion.grids import sigma_grid

# diffusers' schedulers give torch tensors to NumPy functions; torch has not followed NumPy 2 there.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

STEPS, SIDE, FACTOR, SEED = 5, 32, 2, 5
LEADING = {"timestep_spacing": "leading", "steps_offset": 1}
SAMPLERS = {
    # ours: (grid, diffusers' scheduler)
    "ddim": ("ddim", lambda **k: DDIMScheduler(**k, **LEADING, clip_sample=False, set_alpha_to_one=True)),
    "ddpm": ("ddim", lambda **k: DDPMScheduler(**k, **LEADING, clip_sample=False)),
    "euler": ("ddim", lambda **k: EulerDiscreteScheduler(**k, **LEADING)),
    "euler_a": ("ddim", lambda **k: EulerAncestralDiscreteScheduler(**k, **LEADING)),
    "heun": ("normal", lambda **k: HeunDiscreteScheduler(**k)),
    # Its "leading" divides the training timesteps by one more than asked for.
    "dpmpp_2m": ("simple", lambda **k: DPMSolverMultistepScheduler(**k, timestep_spacing="trailing")),
}
FAMILIES = ("sd1", "sd2", "sdxl")


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@cache
def draw_both(family, sampler, prompt="red apple", negative="", guidance=5.0):
    """The same picture by undertow and by diffusers."""
    kind, service = StableDiffusionXLPipeline if family == "sdxl" else StableDiffusionPipeline, service_of(family)
    grid, scheduler = SAMPLERS[sampler]
    reference = pipeline_of(kind, family)
    reference.scheduler = scheduler(**SCHEDULE, prediction_type=prediction_of(family))
    generator = torch.Generator().manual_seed(SEED)  # one stream for the start and for what a sampler draws
    noise = torch.randn(1, 4, SIDE // FACTOR, SIDE // FACTOR, generator=generator)
    expected = theirs(
        reference,
        prompt,
        negative_prompt=negative or None,
        height=SIDE,
        width=SIDE,
        num_inference_steps=STEPS,
        guidance_scale=guidance,
        latents=noise * start_scale(reference.scheduler, service, grid),
        generator=generator,
    )
    found = service.generate(
        prompt,
        negative_prompt=negative,
        steps=STEPS,
        guidance_scale=guidance,
        seed=SEED,
        size=(SIDE, SIDE),
        sampler=sampler,
        schedule=grid,
    )
    return ours(found), expected


def start_scale(scheduler, service, grid):
    """diffusers' schedulers that count in sigma may start at sigma noise; undertow at sqrt(1 + sigma^2) noise."""
    scheduler.set_timesteps(STEPS)
    if not hasattr(scheduler, "sigmas") or isinstance(scheduler, DPMSolverMultistepScheduler):
        return 1.0
    sigma = sigma_grid(grid, service.model.schedule, STEPS)[0]
    return (1 + sigma**2) ** 0.5 / float(scheduler.init_noise_sigma)


@pytest.mark.parametrize("sampler", few(SAMPLERS, 4))
def test_pictures_equal_diffusers(family, sampler):
    assert_same(*draw_both(family, sampler))


def test_prompt_and_negative_prompt_act_as_in_diffusers(family):
    plain = draw_both(family, "euler")
    other = draw_both(family, "euler", prompt="blue dog")
    against = draw_both(family, "euler", negative="dark night")

    for changed in (other, against):
        assert_same(*changed)
        assert np.abs(changed[0].pixels - plain[0].pixels).mean() > 2, "the text must change the picture"


def test_guidance_off_equals_diffusers(family):
    assert_same(*draw_both(family, "euler", guidance=1.0))
