"""End to end: tiny SD1, SD2-v and SDXL pipelines, drawn by diffusers and by undertow from the same noise."""

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

import undertow
from tests.golden.pipelines import SCHEDULE, save_pipeline
from undertow.diffusion.grids import sigma_grid

# diffusers' schedulers give torch tensors to NumPy functions; torch has not followed NumPy 2 there.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

STEPS, SIDE, FACTOR = 10, 32, 2
LEVELS = 2
"""Of 255: what the issue asks for. Observed: 0 or 1, where rounding to 8 bits falls the other way."""

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
def pipeline(request, tmp_path_factory):
    """(family, folder, diffusers' pipeline, undertow's service)."""
    folder = save_pipeline(request.param, tmp_path_factory.mktemp(request.param) / "pipeline")
    kind = StableDiffusionXLPipeline if request.param == "sdxl" else StableDiffusionPipeline
    reference = kind.from_pretrained(folder)
    reference.set_progress_bar_config(disable=True)
    return request.param, folder, reference, undertow.load(folder, dtype=torch.float32)


def draw_both(pipeline, sampler, prompt="red apple", negative="", seed=5, guidance=5.0):
    """The same picture by diffusers and by undertow, as arrays of numbers from 0 to 255."""
    family, _, reference, service = pipeline
    grid, scheduler = SAMPLERS[sampler]
    reference.scheduler = scheduler(**SCHEDULE, prediction_type="v_prediction" if family == "sd2" else "epsilon")
    generator = torch.Generator().manual_seed(seed)  # one stream for the start and for what a sampler draws
    noise = torch.randn(1, 4, SIDE // FACTOR, SIDE // FACTOR, generator=generator)
    theirs = reference(
        prompt,
        negative_prompt=negative or None,
        height=SIDE,
        width=SIDE,
        num_inference_steps=STEPS,
        guidance_scale=guidance,
        latents=noise * start_scale(reference.scheduler, service, grid),
        generator=generator,
    ).images[0]
    ours = service.generate(
        prompt,
        negative_prompt=negative,
        steps=STEPS,
        guidance_scale=guidance,
        seed=seed,
        size=(SIDE, SIDE),
        sampler=sampler,
        schedule=grid,
    ).images[0]
    return np.asarray(theirs, dtype=int), np.asarray(ours, dtype=int)


def start_scale(scheduler, service, grid):
    """diffusers' schedulers that count in sigma may start at sigma noise; undertow at sqrt(1 + sigma^2) noise."""
    scheduler.set_timesteps(STEPS)
    if not hasattr(scheduler, "sigmas") or isinstance(scheduler, DPMSolverMultistepScheduler):
        return 1.0
    sigma = sigma_grid(grid, service.model.schedule, STEPS)[0]
    return (1 + sigma**2) ** 0.5 / float(scheduler.init_noise_sigma)


def assert_same_picture(theirs, ours):
    assert np.abs(theirs - ours).max() <= LEVELS
    assert ours.std() > 10, "a flat picture compares nothing"
    assert np.isin(ours, (0, 255)).mean() < 0.2, "a saturated picture hides differences"


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_pictures_equal_diffusers(pipeline, sampler):
    assert_same_picture(*draw_both(pipeline, sampler))


def test_prompt_and_negative_prompt_act_as_in_diffusers(pipeline):
    plain = draw_both(pipeline, "euler")
    other = draw_both(pipeline, "euler", prompt="blue dog")
    against = draw_both(pipeline, "euler", negative="dark night")

    assert_same_picture(*other)
    assert_same_picture(*against)
    for changed in (other, against):
        assert np.abs(changed[1] - plain[1]).mean() > 2, "the text must change the picture"


def test_guidance_off_equals_diffusers(pipeline):
    assert_same_picture(*draw_both(pipeline, "euler", guidance=1.0))
