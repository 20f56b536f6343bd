"""How many steps a pass has is known before its levels are: what a list of scales, one for each, is compared with."""

import pytest

from undertow.diffusion import FlowSchedule, NoiseSchedule
from undertow.diffusion.grids import GRIDS, sigma_grid
from undertow.engine.chosen_sampler import known_levels
from undertow.engine.named_sampler import NamedSampler
from undertow.known_names import TABLED_GRIDS
from undertow.sampling.model_levels import model_levels
from undertow.schedulers.samplers import read_scheduler

STEPS = (1, 2, 3, 7, 20, 30, 300, 999)

UNKNOWN = ("beta_comfyui",)
"""Whose levels are rounded to trained ones, each once."""


@pytest.mark.parametrize("schedule", [NoiseSchedule.scaled_linear(), FlowSchedule(shift=3.0)], ids=["noise", "flow"])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("discards", [False, True])
def test_steps_of_a_grid_are_counted_as_it_makes_them(grid, schedule, discards):
    if grid in TABLED_GRIDS and isinstance(schedule, FlowSchedule):
        return
    named, levels = NamedSampler(name="euler", schedule=grid, discards=discards), known_levels(schedule)
    for steps in STEPS:
        made = len(sigma_grid(grid, schedule, steps, discard_penultimate=discards)) - 1
        assert named.count(steps, levels) == (None if grid in UNKNOWN else made), steps


SPACINGS = ("leading", "trailing", "linspace")


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(
    "fields",
    [
        {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "timestep_spacing": "leading"},
        {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "timestep_spacing": "leading", "steps_offset": 1},
        {"_class_name": "DDIMScheduler", "clip_sample": False},
        {"_class_name": "DDIMScheduler", "clip_sample": False, "set_alpha_to_one": False},
        {"_class_name": "EulerDiscreteScheduler", "final_sigmas_type": "sigma_min"},
        {"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True},
        {"_class_name": "DEISMultistepScheduler"},
        {"_class_name": "UniPCMultistepScheduler"},
        {"_class_name": "TCDScheduler", "clip_sample": False},
        {"_class_name": "LCMScheduler", "clip_sample": False},
    ],
    ids=lambda fields: "-".join(map(str, fields.values())),
)
def test_steps_of_a_folders_own_sampler_are_counted_as_it_makes_them(fields, spacing):
    schedule = NoiseSchedule.scaled_linear()
    own = read_scheduler({"timestep_spacing": spacing, **fields})
    named = NamedSampler(name=own.sampler, schedule=own.grid, own=own)
    for steps in (one for one in STEPS if one <= (own.original_steps if own.spacing == "distilled" else 998)):
        assert named.count(steps, known_levels(schedule)) == len(model_levels(own, schedule, steps)) - 1, steps


def test_steps_that_only_the_levels_tell_are_not_counted():
    karras = {"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True, "final_sigmas_type": "sigma_min"}
    own = read_scheduler(karras)
    named = NamedSampler(name=own.sampler, schedule=own.grid, own=own)
    assert named.count(20, known_levels(NoiseSchedule.scaled_linear())) is None
