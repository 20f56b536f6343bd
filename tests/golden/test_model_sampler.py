"""`sampler="model"`: what a diffusers folder's scheduler_config.json draws, beside diffusers with the same file."""

import json
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from tests.few import few
from tests.golden.conftest import largest_difference
from tests.golden.folders import FOLDERS, SEED, SIDE, draw_ours, draw_theirs, service_for
from tests.golden.pipelines import SCHEDULE
from tests.services import copy_pipeline
from undertow import load
from undertow.checkpoints.report import report_on
from undertow.diffusion import SchedulerConfig
from undertow.diffusion.paths import starting_noise
from undertow.diffusion.schedules import FlowSchedule
from undertow.engine.metadata import read_description
from undertow.engine.saving import save_picture
from undertow.errors import ConfigError, InvalidInput
from undertow.sampling.model_levels import model_levels
from undertow.schedulers.model_sampler import SPACINGS
from undertow.schedulers.samplers import read_scheduler

# diffusers' schedulers give torch tensors to NumPy functions; torch has not followed NumPy 2 there.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")


@pytest.mark.parametrize("row", few(FOLDERS, 10))
def test_the_picture_is_diffusers_own(row: str):
    folder = FOLDERS[row]
    (result, found), expected = draw_ours(folder), draw_theirs(folder)
    difference = largest_difference(found.latents, expected.latents)
    levels = np.abs(found.pixels - expected.pixels).max()
    assert difference <= folder.latents
    assert levels <= 1
    assert expected.pixels.std() > 5, "a flat picture compares nothing"
    assert folder.name in " ".join(result.report.decisions)


LEVELS = [
    *((name, spacing, False) for name in ("EulerDiscreteScheduler", "LMSDiscreteScheduler") for spacing in SPACINGS),
    *(("EulerDiscreteScheduler", spacing, True) for spacing in SPACINGS),
    *(("DPMSolverMultistepScheduler", spacing, False) for spacing in SPACINGS),
    *(("UniPCMultistepScheduler", spacing, False) for spacing in SPACINGS),
    *((name, "linspace", True) for name in ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler")),
]


@pytest.mark.parametrize(("name", "spacing", "karras"), LEVELS)
@pytest.mark.parametrize("steps", [1, 4, 7, 20, 30])
def test_every_level_and_the_size_of_the_noise_are_diffusers(name: str, spacing: str, karras: bool, steps: int):
    scheduler = getattr(diffusers, name)(**SCHEDULE, timestep_spacing=spacing, steps_offset=1, use_karras_sigmas=karras)
    scheduler.set_timesteps(steps)
    config = {"_class_name": name, **scheduler.config}
    schedule, sampler = SchedulerConfig.from_diffusers(config).schedule, read_scheduler(config)
    sigmas = model_levels(sampler, schedule, steps)
    assert sigmas == pytest.approx(scheduler.sigmas.tolist(), rel=2e-5)
    noise = torch.ones(1, 4)
    start = starting_noise(schedule.path, noise, sigmas[0], sampler.start)
    in_theirs = 1.0 if sampler.counting == "fractions" else (1 + sigmas[0] ** 2) ** 0.5
    assert start[0, 0].item() == pytest.approx(float(scheduler.init_noise_sigma) * in_theirs, rel=2e-5)


@pytest.mark.parametrize(
    ("fields", "field", "steps"),
    [
        ({"_class_name": "DDPMScheduler"}, "_class_name", 10),
        ({"_class_name": "PNDMScheduler"}, "skip_prk_steps", 10),
        ({"_class_name": "DDIMScheduler"}, "clip_sample", 10),
        ({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"}, "algorithm_type", 10),
        ({"_class_name": "DPMSolverMultistepScheduler", "use_lu_lambdas": True}, "use_lu_lambdas", 10),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "training"}, "timestep_spacing", 10),
        ({"_class_name": "EulerDiscreteScheduler", "sigma_max": 80.0}, "sigma_max", 10),
        ({"_class_name": "UniPCMultistepScheduler", "solver_order": 4}, "solver_order", 10),
    ],
)
def test_what_would_be_another_picture_is_refused_by_name(fields: dict[str, Any], field: str, steps: int):
    with pytest.raises(ConfigError) as refused:
        read_scheduler(fields)
    assert refused.value.field == field


def test_pipelines_of_stable_diffusion_correct_what_their_files_say():
    """StableDiffusionPipeline's constructor sets steps_offset = 1 and clip_sample = False, SDXL's does not."""
    said = {"_class_name": "DDIMScheduler", **SCHEDULE, "clip_sample": True}
    read = read_scheduler(said, "StableDiffusionPipeline")
    assert read.offset == 1
    schedule = SchedulerConfig.from_diffusers(said).schedule
    assert model_levels(read, schedule, 10)[:2] == pytest.approx(schedule.sigmas[[901, 801]].tolist())
    with pytest.raises(ConfigError, match="clip_sample"):
        read_scheduler(said, "StableDiffusionXLPipeline")


def test_more_steps_than_diffusers_takes_are_refused():
    schedule = SchedulerConfig.from_diffusers(FOLDERS["lcm"].config).schedule
    for row, steps, most in [("lcm", 51, 50), ("euler leading", 1001, 1000), ("unipc leading", 1000, 999)]:
        with pytest.raises(InvalidInput, match=f"from 1 to {most}"):
            model_levels(read_scheduler(FOLDERS[row].config), schedule, steps)
    with pytest.raises(InvalidInput, match="fewer, for the first timestep would be 1000 of 1000"):
        model_levels(read_scheduler(FOLDERS["euler leading"].config), schedule, 1000)


def test_a_flow_folder_draws_with_its_shift():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(6)
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", **scheduler.config}
    read = read_scheduler(config)
    assert read.sampler == "euler"
    assert model_levels(read, FlowSchedule(shift=3.0), 6) == pytest.approx(scheduler.sigmas.tolist(), rel=1e-6)


def test_a_folder_is_drawn_with_its_own_sampler_unless_asked_otherwise(tmp_path):
    folder = copy_pipeline("sd1", tmp_path / "lcm")
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(FOLDERS["lcm"].config))
    assert report_on(folder).sampler == "lcm on distilled levels (LCMScheduler)"

    service = load(folder, dtype=torch.float32)
    settings = {"steps": 4, "size": (SIDE, SIDE), "seed": SEED, "guidance_scale": 1.0}
    default = service.generate("red apple", **settings)
    named = service.generate("red apple", **settings, sampler="model")
    expected = service_for(FOLDERS["lcm"]).generate("red apple", **settings)
    other = service.generate("red apple", **settings, sampler="dpmpp_2m")
    along = service.generate("red apple", **settings, schedule="simple")
    assert torch.equal(default.latents, named.latents)
    assert torch.equal(default.latents, expected.latents)
    assert (default.report.sampler, default.report.schedule) == ("lcm", "distilled")
    assert (other.report.sampler, other.report.schedule) == ("dpmpp_2m", "karras")
    assert (along.report.sampler, along.report.schedule) == ("lcm", "simple")
    assert "as the model's folder says" not in " ".join(other.report.decisions)


def test_a_folder_whose_sampler_is_not_known_says_so(tmp_path):
    folder = copy_pipeline("sd1", tmp_path / "lu")
    said = {"_class_name": "DPMSolverMultistepScheduler", **SCHEDULE, "use_lu_lambdas": True}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(said))
    assert "use_lu_lambdas" in str(report_on(folder).sampler)
    result = load(folder, dtype=torch.float32).generate("red apple", steps=2, size=(SIDE, SIDE))
    assert result.report.sampler == "dpmpp_2m"
    assert "use_lu_lambdas" in " ".join(result.report.decisions)


def test_a_picture_repeats_itself_from_its_description(tmp_path):
    """The stored request says "model", and the report what that was."""
    service = service_for(FOLDERS["euler a"])
    result = service.generate("red apple", steps=4, seed=SEED, size=(SIDE, SIDE))
    picture = save_picture(result.images[0], tmp_path / "one.png", result.report)
    again = service.run(read_description(picture).request)
    assert torch.equal(again.latents, result.latents)
    assert (result.report.request.sampler, result.report.sampler) == ("model", "euler_a")
