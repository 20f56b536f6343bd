"""Schedules, grids, denoiser and samplers together, step by step against diffusers' schedulers (case S1)."""

from collections.abc import Callable
from dataclasses import dataclass, field

import diffusers
import pytest
import torch
from torch import Tensor

from undertow.diffusion import (
    Denoiser,
    FlowSchedule,
    NoiseSchedule,
    SchedulerConfig,
    sigma_grid,
)
from undertow.sampling import ModelCall, NoiseSource, Sampler, ddim, ddpm, dpmpp_2m, euler, euler_a, heun

# diffusers mixes NumPy and torch in two ways that NumPy 2 warns about; none of our code calls NumPy here.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
]

# diffusers keeps its tables in float32 and ours are float64; relative to the largest value of the reference's x.
FLOAT32_TABLES = 1e-5
# The same with our float64 tables put into diffusers' scheduler: only the order of operations is left.
FLOAT64_TABLES = 1e-10
# abar after the float32 cumulative product of 1,000 factors, and sigma from 1 - abar, which cancels at timestep 0.
CUMPROD = 2e-5

STEPS = [4, 10, 25]
SEEDS = [7, 8]
STABLE_DIFFUSION = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
PREDICTIONS = ["epsilon", "v_prediction", "sample"]


class Network:
    """A random mixing of channels with a nonlinearity and a time: nothing in it cancels or is zero."""

    def __init__(self):
        self.weight = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)) / 2
        self.timesteps: list[float] = []

    def __call__(self, x: Tensor, timesteps: Tensor, conditioning: None = None) -> Tensor:
        self.timesteps.append(timesteps[0].item())
        time = timesteps.to(x.dtype)[:, None, None, None] / 1000
        mixed = torch.einsum("ij,njhw->nihw", self.weight.to(x.dtype), x)
        return torch.tanh(mixed + torch.sin(3 * time)) + x / 4


def noise(dtype: torch.dtype = torch.float32) -> Tensor:
    return NoiseSource(SEEDS).draw((4, 6, 6)).to(dtype)


def generators() -> list[torch.Generator]:
    """The streams of `NoiseSource(SEEDS)`, as diffusers takes them."""
    return [torch.Generator().manual_seed(seed) for seed in SEEDS]


@dataclass
class Trajectory:
    """x before every evaluation, and after the last step; and the timesteps that the network saw."""

    points: list[Tensor] = field(default_factory=list)
    timesteps: list[float] = field(default_factory=list)


def theirs(scheduler, x: Tensor, **step_options) -> Trajectory:
    network, trajectory = Network(), Trajectory([x])
    for t in scheduler.timesteps:
        x_in = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        prediction = network(x_in, t.expand(len(x)))
        x = scheduler.step(prediction, t, x, **step_options).prev_sample
        trajectory.points.append(x)
    trajectory.timesteps = network.timesteps
    return trajectory


def ours(sampler: Sampler, config: SchedulerConfig, timestep_map="interpolated") -> tuple[Trajectory, list[float]]:
    """Our trajectory, and the sigma of every evaluation."""
    network, trajectory, sigmas = Network(), Trajectory(), []
    denoiser = Denoiser(
        network=network,
        parameterization=config.parameterization,
        schedule=config.schedule,
        timestep_map=timestep_map,
    )

    def denoise(x: Tensor, sigma: float) -> Tensor:
        denoised = denoiser(x, torch.full((len(x),), sigma, dtype=torch.float64), None)
        return denoised if config.clip is None else denoised.clamp(-config.clip, config.clip)

    call: ModelCall = next(sampler)
    while True:
        trajectory.points.append(call.x)
        sigmas.append(call.sigma)
        try:
            call = sampler.send(denoise(call.x, call.sigma))
        except StopIteration as finished:
            trajectory.points.append(finished.value)
            trajectory.timesteps = network.timesteps
            return trajectory, [*sigmas, 0.0]


def assert_same(
    mine: Trajectory, reference: Trajectory, scales: list[float], tolerance: float = FLOAT32_TABLES
) -> None:
    """`scales` turn the reference's variable into ours."""
    assert len(mine.points) == len(reference.points) > 4
    assert mine.timesteps == pytest.approx(reference.timesteps, abs=1e-2)
    for point, expected, scale in zip(mine.points, reference.points, scales, strict=True):
        largest = (scale * expected).abs().max().item()
        assert largest > 0.1
        torch.testing.assert_close(point, scale * expected, rtol=0, atol=tolerance * largest)


def from_ddpm(sigmas: list[float]) -> list[float]:
    """DDPM's variable is ours times sqrt(abar)."""
    return [(1 + sigma**2) ** 0.5 for sigma in sigmas]


def build(name: str, **options):
    """A diffusers scheduler by class name."""
    return getattr(diffusers, name)(**options)


# --- Schedules -------------------------------------------------------------------------------------------------------

SCHEDULER_CLASSES = [
    "DDPMScheduler",
    "DDIMScheduler",
    "PNDMScheduler",
    "LMSDiscreteScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "LCMScheduler",
    "TCDScheduler",
    "DDIMParallelScheduler",
    "DDPMParallelScheduler",
    "SASolverScheduler",
]


def assert_same_abar(schedule: NoiseSchedule, scheduler) -> None:
    torch.testing.assert_close(schedule.alphas_cumprod, scheduler.alphas_cumprod.double(), rtol=CUMPROD, atol=0)


@pytest.mark.parametrize("name", SCHEDULER_CLASSES)
def test_a_config_without_fields_means_the_defaults_of_its_class(name: str):
    scheduler = build(name)
    config = SchedulerConfig.from_diffusers({"_class_name": name})
    assert_same_abar(config.schedule, scheduler)
    assert config.clip == (1.0 if scheduler.config.get("clip_sample", False) else None)
    assert config == SchedulerConfig.from_diffusers({"_class_name": name} | dict(scheduler.config))


@pytest.mark.parametrize(
    "options",
    [
        {},
        STABLE_DIFFUSION,
        {"beta_schedule": "squaredcos_cap_v2"},
        {"num_train_timesteps": 50},
        {"trained_betas": [0.01 * i for i in range(1, 21)], "num_train_timesteps": 20},
    ],
    ids=["linear", "scaled_linear", "cosine", "50 steps", "betas"],
)
def test_abar_is_diffusers_and_our_config_is_read_by_diffusers(options: dict):
    scheduler = build("DDPMScheduler", **options)
    config = SchedulerConfig.from_diffusers({"_class_name": "DDPMScheduler"} | dict(scheduler.config))
    assert_same_abar(config.schedule, scheduler)
    written = diffusers.DDPMScheduler.from_config(config.to_diffusers())
    assert_same_abar(config.schedule, written)
    kept = ("prediction_type", "clip_sample", "clip_sample_range", "rescale_betas_zero_snr", "num_train_timesteps")
    assert {name: written.config[name] for name in kept} == {name: scheduler.config[name] for name in kept}


def test_zero_terminal_snr_is_diffusers():
    scheduler = build("DDPMScheduler", rescale_betas_zero_snr=True, **STABLE_DIFFUSION)
    schedule = NoiseSchedule.scaled_linear().rescale_zero_terminal_snr()
    # Near the end diffusers subtracts nearly equal float32 numbers: compare sqrt(abar) absolutely.
    torch.testing.assert_close(
        schedule.alphas_cumprod.sqrt(), scheduler.alphas_cumprod.double().sqrt(), rtol=0, atol=2e-6
    )


def test_add_noise_is_diffusers():
    scheduler = build("DDPMScheduler", **STABLE_DIFFUSION)
    schedule = NoiseSchedule.scaled_linear()
    timesteps, x0 = torch.tensor([3, 900]), noise().flip(0) / 2
    sigma = schedule.timestep_to_sigma(timesteps)
    x_in = schedule.path.add_noise(x0, noise(), sigma) * schedule.path.input_scale(sigma)[:, None, None, None].float()
    torch.testing.assert_close(x_in, scheduler.add_noise(x0, noise(), timesteps), rtol=0, atol=FLOAT32_TABLES)
    v = SchedulerConfig.from_diffusers({"_class_name": "DDPMScheduler", "prediction_type": "v_prediction"})
    torch.testing.assert_close(
        v.parameterization.target(x0, noise(), sigma),
        scheduler.get_velocity(x0, noise(), timesteps),
        rtol=0,
        atol=FLOAT32_TABLES,
    )


# --- Grids -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(
    ("grid", "options"),
    [
        ("simple", {"timestep_spacing": "trailing"}),
        ("ddim", {"timestep_spacing": "leading", "steps_offset": 1}),
        ("karras", {"use_karras_sigmas": True}),
        ("exponential", {"use_exponential_sigmas": True}),
    ],
)
def test_grids_are_diffusers(grid: str, options: dict, steps: int):
    scheduler = build("EulerDiscreteScheduler", **STABLE_DIFFUSION, **options)
    scheduler.set_timesteps(steps)
    expected = sigma_grid(grid, NoiseSchedule.scaled_linear(), steps)
    assert scheduler.sigmas.tolist() == pytest.approx(expected, rel=CUMPROD)


@pytest.mark.parametrize("steps", [4, 10])  # with 25 the timesteps are fractions, between which diffusers is linear
def test_the_normal_grid_is_diffusers_linspace_at_whole_timesteps(steps: int):
    scheduler = build("EulerDiscreteScheduler", **STABLE_DIFFUSION)
    scheduler.set_timesteps(steps)
    expected = sigma_grid("normal", NoiseSchedule.scaled_linear(), steps)
    assert scheduler.sigmas.tolist() == pytest.approx(expected, rel=CUMPROD)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_normal_grid_of_a_flow_is_diffusers(shift: float, steps: int):
    scheduler = build("FlowMatchEulerDiscreteScheduler", shift=shift)
    scheduler.set_timesteps(steps)
    expected = sigma_grid("normal", FlowSchedule(shift=shift), steps)
    assert scheduler.sigmas.tolist() == pytest.approx(expected, rel=CUMPROD)


# --- Samplers in sigma space -----------------------------------------------------------------------------------------

# (our grid, diffusers' options for the same)
SPACINGS = {
    "trailing": ("simple", {"timestep_spacing": "trailing"}),
    "leading": ("ddim", {"timestep_spacing": "leading", "steps_offset": 1}),
    "karras": ("karras", {"use_karras_sigmas": True}),
    "linspace": ("normal", {"timestep_spacing": "linspace"}),
}
SIGMA_SPACE: dict[str, tuple[Callable[..., Sampler], list[str]]] = {
    "EulerDiscreteScheduler": (euler, PREDICTIONS),
    "EulerAncestralDiscreteScheduler": (euler_a, PREDICTIONS[:2]),  # "sample" is not implemented in diffusers
    "HeunDiscreteScheduler": (heun, PREDICTIONS[:2]),  # likewise
}


def sigma_space_cases():
    for name, (_, predictions) in SIGMA_SPACE.items():
        for prediction in predictions:
            for spacing in SPACINGS:
                for steps in STEPS:
                    if spacing == "linspace" and steps == 25:
                        continue  # see the grids above
                    if spacing == "karras" and name == "EulerAncestralDiscreteScheduler":
                        continue  # diffusers has no such option there
                    yield name, prediction, spacing, steps


@pytest.mark.parametrize(("name", "prediction", "spacing", "steps"), list(sigma_space_cases()))
def test_every_step_is_diffusers(name: str, prediction: str, spacing: str, steps: int):
    grid, options = SPACINGS[spacing]
    scheduler = build(name, prediction_type=prediction, **STABLE_DIFFUSION, **options)
    scheduler.set_timesteps(steps)
    config = SchedulerConfig.from_diffusers({"_class_name": name} | dict(scheduler.config))
    sigmas = sigma_grid(grid, config.schedule, steps)
    x = noise() * sigmas[0]
    algorithm = SIGMA_SPACE[name][0]
    stochastic = algorithm is euler_a
    reference = theirs(scheduler, x, **({"generator": generators()} if stochastic else {}))
    source = NoiseSource(SEEDS) if stochastic else None
    mine, visited = ours(algorithm(x, sigmas, noise=source), config)
    assert_same(mine, reference, [1.0] * len(visited))


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_zero_terminal_snr_from_pure_noise_is_diffusers(prediction: str):
    """The stand-in for the infinite sigma is diffusers'."""
    options = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", **STABLE_DIFFUSION}
    scheduler = build("EulerDiscreteScheduler", prediction_type=prediction, **options)
    scheduler.set_timesteps(10)
    config = SchedulerConfig.from_diffusers({"_class_name": "EulerDiscreteScheduler"} | dict(scheduler.config))
    sigmas = sigma_grid("simple", config.schedule, 10)
    assert sigmas[0] == pytest.approx(scheduler.init_noise_sigma.item(), rel=FLOAT32_TABLES)
    x = noise() * sigmas[0]
    mine, visited = ours(euler(x, sigmas), config)
    # x + (target - sigma) slope in float32 loses 4096 eps of x in diffusers' first step, ours does not.
    assert_same(mine, theirs(scheduler, x), [1.0] * len(visited), tolerance=1e-4)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace", "karras"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_dpmpp_2m_is_diffusers(prediction: str, spacing: str, steps: int):
    options = SPACINGS[spacing][1]
    scheduler = build(
        "DPMSolverMultistepScheduler",
        algorithm_type="dpmsolver++",
        solver_order=2,
        prediction_type=prediction,
        **STABLE_DIFFUSION,
        **options,
    )
    scheduler.set_timesteps(steps)
    config = SchedulerConfig.from_diffusers({"_class_name": "DPMSolverMultistepScheduler"} | dict(scheduler.config))
    if spacing == "karras":
        sigmas = sigma_grid("karras", config.schedule, steps)
    else:  # its spacings leave out the last timestep of one step more; the timesteps are whole
        sigmas = [*config.schedule.timestep_to_sigma(scheduler.timesteps).tolist(), 0.0]
    assert scheduler.sigmas.tolist() == pytest.approx(sigmas, rel=CUMPROD)
    reference = theirs(scheduler, noise())
    start = noise() * (1 + sigmas[0] ** 2) ** 0.5
    mine, visited = ours(dpmpp_2m(start, sigmas), config, "nearest")  # diffusers rounds the timesteps of Karras' sigmas
    assert_same(mine, reference, from_ddpm(visited))


# --- Samplers in DDPM's variable -------------------------------------------------------------------------------------


def ddpm_space(name: str, steps: int, spacing: str, dtype: torch.dtype, **options):
    """A scheduler, our config and grid; in float64 with our tables."""
    scheduler = build(name, **STABLE_DIFFUSION, **SPACINGS[spacing][1], **options)
    scheduler.set_timesteps(steps)
    config = SchedulerConfig.from_diffusers({"_class_name": name} | dict(scheduler.config))
    sigmas = sigma_grid(SPACINGS[spacing][0], config.schedule, steps)
    if dtype == torch.float64:
        scheduler.alphas_cumprod = config.schedule.alphas_cumprod
    return scheduler, config, sigmas, noise(dtype) * (1 + sigmas[0] ** 2) ** 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(
    "spacing", ["trailing", "leading"]
)  # with linspace diffusers does not step to the next timestep
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddim_is_diffusers(prediction: str, spacing: str, steps: int, dtype: torch.dtype):
    options = {"prediction_type": prediction, "clip_sample": False}
    scheduler, config, sigmas, start = ddpm_space("DDIMScheduler", steps, spacing, dtype, **options)
    mine, visited = ours(ddim(start, sigmas), config)
    tolerance = FLOAT64_TABLES if dtype == torch.float64 else FLOAT32_TABLES
    assert_same(mine, theirs(scheduler, noise(dtype)), from_ddpm(visited), tolerance)


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddim_with_eta_is_diffusers(prediction: str, steps: int, eta: float):
    options = {"prediction_type": prediction, "clip_sample": False}
    scheduler, config, sigmas, start = ddpm_space("DDIMScheduler", steps, "trailing", torch.float32, **options)
    mine, visited = ours(ddim(start, sigmas, noise=NoiseSource(SEEDS), eta=eta), config)
    assert_same(mine, theirs(scheduler, noise(), eta=eta, generator=generators()), from_ddpm(visited))


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddpm_is_diffusers(prediction: str, spacing: str, steps: int):
    options = {"prediction_type": prediction, "clip_sample": False}
    scheduler, config, sigmas, start = ddpm_space("DDPMScheduler", steps, spacing, torch.float32, **options)
    mine, visited = ours(ddpm(start, sigmas, noise=NoiseSource(SEEDS)), config)
    assert_same(mine, theirs(scheduler, noise(), generator=generators()), from_ddpm(visited))


@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler"])
def test_clipping_is_diffusers(name: str):
    options = {"clip_sample": True, "clip_sample_range": 0.7}
    scheduler, config, sigmas, start = ddpm_space(name, 10, "trailing", torch.float32, **options)
    assert config.clip == 0.7
    if name == "DDPMScheduler":
        mine, visited = ours(ddpm(start, sigmas, noise=NoiseSource(SEEDS)), config)
        reference = theirs(scheduler, noise(), generator=generators())
    else:
        mine, visited = ours(ddim(start, sigmas), config)
        reference = theirs(scheduler, noise(), use_clipped_model_output=True)
    assert_same(mine, reference, from_ddpm(visited))
    assert mine.points[-1].abs().max() <= 0.7


# --- Flow ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize(
    ("name", "algorithm"), [("FlowMatchEulerDiscreteScheduler", euler), ("FlowMatchHeunDiscreteScheduler", heun)]
)
def test_flow_samplers_are_diffusers(name: str, algorithm: Callable[..., Sampler], shift: float, steps: int):
    scheduler = build(name, shift=shift)
    scheduler.set_timesteps(steps)
    config = SchedulerConfig.from_diffusers({"_class_name": name} | dict(scheduler.config))
    mine, visited = ours(algorithm(noise(), sigma_grid("normal", config.schedule, steps)), config)
    assert_same(mine, theirs(scheduler, noise()), [1.0] * len(visited))
