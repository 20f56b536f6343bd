"""The other samplers of diffusers, step by step (case S1): every x, and the timesteps of every evaluation."""

import diffusers
import pytest
import torch

from tests.golden.test_schedulers import (
    FLOAT32_TABLES,
    SEEDS,
    STABLE_DIFFUSION,
    assert_same,
    from_ddpm,
    generators,
    noise,
    ours,
    theirs,
)
from undertow.diffusion import EDMPrediction, EDMSchedule, SchedulerConfig
from undertow.sampling import NoiseSource, start_sampler

# diffusers mixes NumPy and torch in two ways that NumPy 2 warns about; none of our code calls NumPy here.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
]

LOOSE = 1e-4
"""Weights of solvers of higher order are differences of logarithms, in float32 there."""


def build(name: str, **options):
    return getattr(diffusers, name)(**STABLE_DIFFUSION, **options)


def compare(ours_name: str, scheduler, steps: int, *, scaled: bool, tolerance: float, step=None, **options: float):
    """scaled: diffusers' variable is DDPM's, c_in times ours."""
    scheduler.set_timesteps(steps)
    config = SchedulerConfig.from_diffusers({"_class_name": type(scheduler).__name__} | dict(scheduler.config))
    if hasattr(scheduler, "sigmas") and len(scheduler.sigmas) == steps + 1:
        sigmas = scheduler.sigmas.double().tolist()
    else:
        sigmas = [*config.schedule.timestep_to_sigma(scheduler.timesteps).tolist(), 0.0]
    x = noise()
    reference = theirs(scheduler, x if scaled else x * sigmas[0], **(step or {}))
    start = noise() * ((1 + sigmas[0] ** 2) ** 0.5 if scaled else sigmas[0])
    sampler = start_sampler(ours_name, start, sigmas, path=config.schedule.path, noise=NoiseSource(SEEDS), **options)
    mine, visited = ours(sampler, config, "nearest")
    visited[-1] = sigmas[-1]
    if scheduler.config.get("solver_type") == "bh1":
        assert reference.points[-1].isnan().all()  # there 0 times infinity; ours ends at the estimate
        for points in (mine.points, reference.points, visited):
            del points[-1]
    assert_same(mine, reference, from_ddpm(visited) if scaled else [1.0] * len(visited), tolerance)


@pytest.mark.parametrize("steps", [6, 20])
@pytest.mark.parametrize("kind", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [2, 3])
def test_unipc_is_diffusers(kind: str, order: int, steps: int):
    scheduler = build("UniPCMultistepScheduler", solver_type=kind, solver_order=order, timestep_spacing="trailing")
    name = {"bh1": "unipc", "bh2": "unipc_bh2"}[kind]
    compare(name, scheduler, steps, scaled=True, tolerance=LOOSE, order=order)


@pytest.mark.parametrize("steps", [6, 20])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis_is_diffusers(order: int, steps: int):
    scheduler = build("DEISMultistepScheduler", solver_order=order, timestep_spacing="trailing")
    compare("deis_log_rho", scheduler, steps, scaled=True, tolerance=LOOSE, order=order)


@pytest.mark.parametrize("kind", ["midpoint", "heun"])
def test_both_kinds_of_the_second_order_solver_are_diffusers_without_noise(kind: str):
    scheduler = build(
        "DPMSolverMultistepScheduler",
        algorithm_type="dpmsolver++",
        solver_type=kind,
        lower_order_final=False,
        final_sigmas_type="zero",
        timestep_spacing="trailing",
    )
    name = {"midpoint": "dpmpp_2m_sde", "heun": "dpmpp_2m_sde_heun"}[kind]
    compare(name, scheduler, 12, scaled=True, tolerance=LOOSE, eta=0.0)


@pytest.mark.parametrize("steps", [6, 20])
def test_lms_is_diffusers(steps: int):
    compare("lms", build("LMSDiscreteScheduler", timestep_spacing="trailing"), steps, scaled=False, tolerance=2e-4)


@pytest.mark.parametrize("steps", [4, 10])
def test_lcm_is_diffusers(steps: int):
    """Its boundary condition adds up to 2e-5 of x to the estimate."""
    scheduler = build("LCMScheduler", original_inference_steps=50)
    compare("lcm", scheduler, steps, scaled=True, tolerance=LOOSE, step={"generator": generators()})


@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.8])
def test_tcd_is_diffusers(gamma: float):
    scheduler = build("TCDScheduler", original_inference_steps=50)
    scheduler.set_timesteps(6)
    config = SchedulerConfig.from_diffusers({"_class_name": "DDIMScheduler", **STABLE_DIFFUSION, "clip_sample": False})
    sigmas = [*config.schedule.timestep_to_sigma(scheduler.timesteps).tolist(), 0.0]
    reference = theirs(scheduler, noise(), eta=gamma, generator=generators())
    start = noise() * (1 + sigmas[0] ** 2) ** 0.5
    sampler = start_sampler("tcd", start, sigmas, path=config.schedule.path, noise=NoiseSource(SEEDS), gamma=gamma)
    mine, visited = ours(sampler, config)
    # Its last step goes to the first trained level and calls it clean.
    del mine.points[-1], reference.points[-1], visited[-1]
    assert_same(mine, reference, from_ddpm(visited), LOOSE)


@pytest.mark.parametrize(("name", "order"), [("EDMEulerScheduler", 1), ("EDMDPMSolverMultistepScheduler", 2)])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_edm_samplers_are_diffusers(name: str, order: int, prediction: str):
    scheduler = getattr(diffusers, name)(prediction_type=prediction)
    scheduler.set_timesteps(12)
    config = SchedulerConfig.from_diffusers({"_class_name": name} | dict(scheduler.config))
    assert config.parameterization == EDMPrediction(v=prediction == "v_prediction")
    assert config.schedule == EDMSchedule(sigma_max=scheduler.config["sigma_max"])
    sigmas = scheduler.sigmas.double().tolist()
    reference = theirs(scheduler, noise() * sigmas[0])
    start = noise() * sigmas[0]
    ours_name = {1: "edm_euler", 2: "edm_dpmpp_2m"}[order]
    mine, visited = ours(start_sampler(ours_name, start, sigmas, path=config.schedule.path), config)
    assert_same(mine, reference, [1.0] * len(visited), FLOAT32_TABLES)
    assert diffusers.EDMEulerScheduler.from_config(config.to_diffusers()).config["sigma_max"] == pytest.approx(
        sigmas[0]
    )


def test_ddim_inverse_is_diffusers():
    steps = 10
    scheduler = build("DDIMInverseScheduler", clip_sample=False, timestep_spacing="trailing", set_alpha_to_one=True)
    scheduler.set_timesteps(steps)
    config = SchedulerConfig.from_diffusers({"_class_name": "DDIMScheduler", **STABLE_DIFFUSION, "clip_sample": False})
    upward = config.schedule.timestep_to_sigma(scheduler.timesteps.clamp(min=0)).tolist()
    first = scheduler.timesteps[0] - 1000 // steps
    low = config.schedule.timestep_to_sigma(first.clamp(min=0)[None]).item() if first >= 0 else 0.0
    sigmas = [*reversed(upward), low]
    reference = theirs(scheduler, noise())
    start = noise() * (1 + low**2) ** 0.5
    mine, visited = ours(start_sampler("ddim_inverse", start, sigmas, path=config.schedule.path), config)
    del visited
    # The network sees x as if at the target: compare what it saw, in DDPM's variable.
    for point, expected, sigma in zip(mine.points[:-1], reference.points[:-1], upward, strict=True):
        torch.testing.assert_close(
            point, expected * (1 + sigma**2) ** 0.5, rtol=0, atol=LOOSE * point.abs().max().item()
        )
    assert mine.timesteps == pytest.approx(reference.timesteps, abs=1e-2)


@pytest.mark.parametrize("steps", [6, 20])
def test_pndm_is_diffusers(steps: int):
    scheduler = build("PNDMScheduler", skip_prk_steps=True, steps_offset=1, timestep_spacing="leading")
    scheduler.set_timesteps(steps)
    config = SchedulerConfig.from_diffusers({"_class_name": "PNDMScheduler"} | dict(scheduler.config))
    visited = [timestep for index, timestep in enumerate(scheduler.timesteps.tolist()) if index != 1]
    levels = torch.tensor(visited, dtype=torch.float64)
    # set_alpha_to_one is off: the run ends at the first trained level.
    sigmas = [*config.schedule.timestep_to_sigma(levels).tolist(), config.schedule.sigma_min]
    reference = theirs(scheduler, noise())
    start = noise() * (1 + sigmas[0] ** 2) ** 0.5
    mine, _ = ours(start_sampler("pndm", start, sigmas, path=config.schedule.path), config)
    scale = (1 + sigmas[-1] ** 2) ** 0.5
    expected = reference.points[-1] * scale
    torch.testing.assert_close(mine.points[-1], expected, rtol=0, atol=LOOSE * expected.abs().max().item())
    assert mine.timesteps == pytest.approx(reference.timesteps, abs=1e-2)
