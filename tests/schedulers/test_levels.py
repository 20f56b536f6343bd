"""What is known of a model's levels without torch, beside the tables that are computed with it."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.services import copy_pipeline, pipeline_folder
from undertow.checkpoints.files.header import read_header
from undertow.checkpoints.identify.opening import open_checkpoint
from undertow.checkpoints.identify.outline import outline
from undertow.checkpoints.write.convert import convert
from undertow.diffusion import FlowSchedule, NoiseSchedule, SchedulerConfig
from undertow.diffusion.paths import path_name
from undertow.diffusion.scheduler_config import schedule_of
from undertow.errors import ConfigError
from undertow.schedulers.betas import TabledBetas
from undertow.schedulers.levels import COMFYUI_ZERO_SNR_ALPHA_CUMPROD, CarriedLevels, DiscreteLevels, read_levels

EXACT = 1e-12
"""Of float64, in which a product of 1,000 factors is rounded in another order."""

CONFIGS = [
    {"_class_name": "DDPMScheduler"},
    {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.02},
    {"_class_name": "LCMScheduler", "num_train_timesteps": 200},
    {"_class_name": "EulerDiscreteScheduler", "beta_schedule": "squaredcos_cap_v2"},
    {"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True},
    {"_class_name": "DDPMScheduler", "trained_betas": [0.1, 0.2, 0.3], "num_train_timesteps": 3},
    {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
    {"_class_name": "EDMEulerScheduler", "sigma_max": 120.0},
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: "-".join(map(str, config.values()))[:60])
def test_what_is_known_of_levels_is_what_their_table_ends_in(config):
    levels, schedule = read_levels(config), SchedulerConfig.from_diffusers(config).schedule
    assert levels.highest() == pytest.approx(schedule.sigma_max, rel=EXACT)
    assert (levels.steps, levels.path) == (len(schedule), path_name(schedule.path))
    assert schedule == schedule_of(levels)
    if isinstance(schedule, NoiseSchedule):
        theirs = replace(schedule, last_alpha_cumprod=COMFYUI_ZERO_SNR_ALPHA_CUMPROD)
        assert levels.highest(comfyui=True) == pytest.approx(theirs.sigma_max, rel=EXACT)
    else:
        assert levels.highest(comfyui=True) == levels.highest()


@pytest.mark.parametrize(
    "config",
    [
        {"_class_name": "DDPMScheduler", "num_train_timesteps": 1},
        {"_class_name": "DDPMScheduler", "beta_end": 1.0},
        {"_class_name": "DDPMScheduler", "trained_betas": [0.1]},
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift_terminal": 0.1},
        {"_class_name": "Another"},
        {},
    ],
)
def test_levels_that_cannot_be_are_refused_without_their_table(config):
    with pytest.raises(ConfigError):
        read_levels(config)


@pytest.mark.parametrize("config", [None, *CONFIGS[:2], CONFIGS[6], {"_class_name": "Another"}])
def test_a_folder_s_levels_are_those_that_it_is_loaded_with(tmp_path, config):
    folder = copy_pipeline("sd1", tmp_path / "model")
    place = folder / "scheduler" / "scheduler_config.json"
    if config is None:
        shutil.rmtree(place.parent)
    else:
        place.write_text(json.dumps(config))
    found = outline(str(folder)).levels
    if config is not None and config["_class_name"] == "Another":
        assert found is None
        return
    assert found is not None
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.schedule == schedule_of(found)


def test_a_file_s_levels_are_those_that_it_is_loaded_with(tmp_path):
    file = tmp_path / "model.safetensors"
    convert(pipeline_folder("sd1"), file, "ldm")
    tensors, metadata = load_file(file), read_header(file).metadata
    usual = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)
    for more, expected in (
        ({}, NoiseSchedule.scaled_linear()),
        ({"ztsnr": torch.zeros(0)}, NoiseSchedule.scaled_linear().rescale_zero_terminal_snr()),
        ({"alphas_cumprod": torch.ones(10)}, NoiseSchedule.scaled_linear()),
        ({"alphas_cumprod": usual.float()}, None),
        ({"alphas_cumprod": (usual**1.1).float()}, None),
    ):
        save_file({**tensors, **more}, file, metadata=metadata)
        with open_checkpoint(file) as checkpoint:
            loaded, found = checkpoint.schedule, outline(str(file)).levels
        if expected is None:  # of which the table would have to be read
            assert found == CarriedLevels(steps=len(loaded))
            assert found.highest() is None
        else:
            assert isinstance(found, DiscreteLevels)
            assert loaded == schedule_of(found) == expected


def test_a_flow_has_one_highest_level_whatever_its_shift():
    assert FlowSchedule(shift=7.0).sigma_max == read_levels(CONFIGS[6]).highest() == 1.0


def test_what_a_scheduler_says_is_known_without_torch():
    code = (
        "import sys\n"
        "import undertow.engine.fitting, undertow.schedulers.samplers, undertow.schedulers.levels\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


def test_betas_of_another_number_are_refused():
    with pytest.raises(ConfigError, match=r"betas.table"):
        DiscreteLevels(betas=TabledBetas((0.1, 0.2)), steps=3)
