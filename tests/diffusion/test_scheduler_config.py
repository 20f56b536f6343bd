import pytest

from undertow.diffusion import (
    EDMPrediction,
    EDMSchedule,
    Epsilon,
    FlowSchedule,
    NoiseSchedule,
    RectifiedFlow,
    SchedulerConfig,
    Velocity,
    VPrediction,
    XPrediction,
)
from undertow.errors import ConfigError
from undertow.schedulers.betas import TabledBetas

STABLE_DIFFUSION_2 = {
    "_class_name": "DDIMScheduler",
    "_diffusers_version": "0.8.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}


def test_the_file_of_stable_diffusion_2_is_read():
    config = SchedulerConfig.from_diffusers(STABLE_DIFFUSION_2)
    assert config == SchedulerConfig(schedule=NoiseSchedule.scaled_linear(), parameterization=VPrediction())


def test_a_flow_file_is_read():
    config = SchedulerConfig.from_diffusers(
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3}
    )
    assert config == SchedulerConfig(schedule=FlowSchedule(shift=3.0), parameterization=Velocity())


def test_flow_and_edm_files_without_fields_mean_the_defaults_of_their_classes():
    flow = SchedulerConfig.from_diffusers({"_class_name": "FlowMatchHeunDiscreteScheduler"})
    assert flow == SchedulerConfig(schedule=FlowSchedule(shift=1.0, steps=1000), parameterization=Velocity())
    edm = SchedulerConfig.from_diffusers({"_class_name": "EDMEulerScheduler"})
    schedule = EDMSchedule(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5, steps=1000)
    assert edm == SchedulerConfig(schedule=schedule, parameterization=EDMPrediction(path=schedule.path, v=False))


def test_a_pixel_models_file_says_how_far_it_clips():
    """DDPM's own scheduler clips at 1 unless it is told otherwise; latents are never clipped."""
    assert SchedulerConfig.from_diffusers({"_class_name": "DDPMScheduler"}).clip == 1.0
    assert SchedulerConfig.from_diffusers({"_class_name": "PNDMScheduler"}).clip is None
    given = {"_class_name": "DDIMScheduler", "clip_sample_range": 2.5}
    assert SchedulerConfig.from_diffusers(given).clip == 2.5
    assert SchedulerConfig.from_diffusers(given | {"clip_sample": False}).clip is None


def test_what_we_write_is_diffusers_words():
    latents = SchedulerConfig(schedule=NoiseSchedule.scaled_linear(), parameterization=VPrediction())
    assert latents.to_diffusers() == {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": 1000,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "rescale_betas_zero_snr": False,
        "prediction_type": "v_prediction",
        "clip_sample": False,
        "clip_sample_range": 1.0,
        "timestep_spacing": "leading",
    }
    rescaled = SchedulerConfig(
        schedule=NoiseSchedule.cosine().rescale_zero_terminal_snr(), parameterization=XPrediction(), clip=2.0
    )
    assert rescaled.to_diffusers() == {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": 1000,
        "beta_schedule": "squaredcos_cap_v2",
        "rescale_betas_zero_snr": True,
        "prediction_type": "sample",
        "clip_sample": True,
        "clip_sample_range": 2.0,
        "timestep_spacing": "trailing",
    }


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_train_timesteps", 10.5, "a whole number"),
        ("beta_start", "small", "a number"),
        ("beta_end", None, "a number"),
    ],
)
def test_what_is_no_number_is_refused_with_what_was_expected(field: str, value: object, message: str):
    with pytest.raises(ConfigError, match=f"must be {message}$"):
        SchedulerConfig.from_diffusers(STABLE_DIFFUSION_2 | {field: value})


@pytest.mark.parametrize(
    "config",
    [
        SchedulerConfig(schedule=NoiseSchedule.linear(), parameterization=Epsilon(), clip=1.0),
        SchedulerConfig(schedule=NoiseSchedule.scaled_linear(), parameterization=VPrediction()),
        SchedulerConfig(
            schedule=NoiseSchedule.scaled_linear().rescale_zero_terminal_snr(), parameterization=VPrediction()
        ),
        SchedulerConfig(schedule=NoiseSchedule.cosine(steps=50), parameterization=XPrediction(), clip=2.5),
        SchedulerConfig(schedule=NoiseSchedule(betas=TabledBetas((0.1, 0.2)), steps=2), parameterization=Epsilon()),
        SchedulerConfig(schedule=FlowSchedule(shift=3.0, steps=500), parameterization=Velocity()),
    ],
    ids=lambda config: type(config.schedule).__name__,
)
def test_what_we_write_we_read_back(config: SchedulerConfig):
    assert SchedulerConfig.from_diffusers(config.to_diffusers()) == config


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("_class_name", "ScoreSdeVeScheduler"),
        ("_class_name", None),
        ("beta_schedule", "sigmoid"),
        ("prediction_type", "flow_prediction"),
        ("num_train_timesteps", "1000"),
        ("num_train_timesteps", 10.5),
        ("num_train_timesteps", True),
        ("beta_start", None),
        ("thresholding", True),
        ("variance_type", "learned_range"),
        ("timestep_type", "continuous"),
        ("use_flow_sigmas", True),
    ],
)
def test_fields_that_we_cannot_honor_are_refused_by_name(field: str, value: object):
    with pytest.raises(ConfigError) as refused:
        SchedulerConfig.from_diffusers(STABLE_DIFFUSION_2 | {field: value})
    assert (refused.value.field, refused.value.value) == (field, value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("shift", "3"),
        ("use_dynamic_shifting", True),
        ("invert_sigmas", True),
        ("shift_terminal", 0.1),
        ("stochastic_sampling", True),
    ],
)
def test_flow_fields_that_we_cannot_honor_are_refused_by_name(field: str, value: object):
    with pytest.raises(ConfigError) as refused:
        SchedulerConfig.from_diffusers({"_class_name": "FlowMatchEulerDiscreteScheduler", field: value})
    assert refused.value.field == field


def test_a_file_without_a_class_is_refused():
    with pytest.raises(ConfigError, match="_class_name"):
        SchedulerConfig.from_diffusers({"beta_start": 0.1})


@pytest.mark.parametrize(
    ("schedule", "parameterization"),
    [(FlowSchedule(), XPrediction(path=RectifiedFlow())), (NoiseSchedule.linear(), Velocity())],
)
def test_what_diffusers_has_no_word_for_is_refused(schedule, parameterization):
    with pytest.raises(ConfigError, match="parameterization"):
        SchedulerConfig(schedule=schedule, parameterization=parameterization).to_diffusers()


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_edm_configs_are_read_and_written(prediction: str):
    given = {"_class_name": "EDMDPMSolverMultistepScheduler", "sigma_max": 120.0, "prediction_type": prediction}
    config = SchedulerConfig.from_diffusers(given)
    assert config.schedule.sigma_max == 120
    written = config.to_diffusers()
    assert written["_class_name"] == "EDMEulerScheduler"
    assert written["prediction_type"] == prediction
    assert SchedulerConfig.from_diffusers(written) == config


def test_an_edm_config_with_another_prediction_is_refused():
    with pytest.raises(ConfigError, match="epsilon or v_prediction"):
        SchedulerConfig.from_diffusers({"_class_name": "EDMEulerScheduler", "prediction_type": "sample"})
