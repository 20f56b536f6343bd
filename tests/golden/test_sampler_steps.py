"""Case S1 filled up: every x of every step beside diffusers' schedulers, by prediction, spacing and number of steps.

`test_schedulers` compares in float32 with diffusers' own tables; here it is float64 with ours put into diffusers, and
both for UniPC, PNDM, LCM, DDIM's linspace and zero terminal SNR. What diffusers has no peer for:

    sample              EulerAncestralDiscreteScheduler, HeunDiscreteScheduler and PNDMScheduler do not implement it
    PNDM, v             PNDMScheduler takes the mean of v of several levels for one v of this level; ours is of slopes
    PNDM, linspace      its step goes down 1000 // n timesteps, and the next evaluation is elsewhere; so does
                        DDIMScheduler's, whose steps can be taken one by one
    LCM                 LCMScheduler has one spacing, of the timesteps that it was distilled at
    zero terminal SNR   not in HeunDiscreteScheduler and PNDMScheduler; epsilon says nothing about pure noise
"""

from dataclasses import dataclass, field
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from tests.golden.test_schedulers import (
    FLOAT32_TABLES,
    FLOAT64_TABLES,
    PREDICTIONS,
    SEEDS,
    SPACINGS,
    STABLE_DIFFUSION,
    STEPS,
    Trajectory,
    assert_same,
    from_ddpm,
    noise,
    ours,
    theirs,
)
from undertow.diffusion import NoiseSchedule, SchedulerConfig
from undertow.sampling import NoiseSource, start_sampler

# diffusers mixes NumPy and torch in two ways that NumPy 2 warns about; none of our code calls NumPy here.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
]

# abar near zero terminal SNR is a difference of nearly equal numbers, in float32 there.
CANCELLED = 5e-4
# From pure noise: Euler's x + (target - sigma) slope loses 4096 eps of x in diffusers' first step; DDIM's and LCM's
# first level has nothing of the picture there, and sqrt(abar) = 2^-12 of it here, see `schedules`.
FROM_PURE_NOISE = {"euler": 2e-4, "euler_a": 2e-4, "ddim": 2**-11, "lcm": 2**-11}
# SA-Solver's weights are differences of powers of lambda, in float32 there.
POWERS = 1e-4
# Between timesteps diffusers' linspace is linear in sigma and its timesteps are not, ours are linear in log sigma.
FRACTION = 1e-2


class Double(Tensor):
    """float64 that stays so where diffusers writes `sample.to(torch.float32)`."""

    def to(self, *args: Any, **options: Any) -> Tensor:
        return self if torch.float32 in args else super().to(*args, **options)


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A scheduler of diffusers. scaled: its variable is DDPM's, c_in times ours."""

    scheduler: str
    scaled: bool
    predictions: tuple[str, ...] = tuple(PREDICTIONS)
    spacings: tuple[str, ...] = ("leading", "linspace", "trailing")
    options: dict[str, Any] = field(default_factory=dict[str, Any])


PEERS = {
    "euler": Peer(scheduler="EulerDiscreteScheduler", scaled=False, spacings=tuple(SPACINGS)),
    "euler_a": Peer(scheduler="EulerAncestralDiscreteScheduler", scaled=False, predictions=("epsilon", "v_prediction")),
    "heun": Peer(
        scheduler="HeunDiscreteScheduler",
        scaled=False,
        predictions=("epsilon", "v_prediction"),
        spacings=tuple(SPACINGS),
    ),
    "dpmpp_2m": Peer(scheduler="DPMSolverMultistepScheduler", scaled=True, spacings=tuple(SPACINGS)),
    "unipc_bh2": Peer(
        scheduler="UniPCMultistepScheduler", scaled=True, spacings=tuple(SPACINGS), options={"solver_order": 3}
    ),
    "pndm": Peer(
        scheduler="PNDMScheduler",
        scaled=True,
        predictions=("epsilon",),
        spacings=("leading", "trailing"),
        options={"skip_prk_steps": True, "set_alpha_to_one": False},
    ),
    "ddim": Peer(
        scheduler="DDIMScheduler", scaled=True, spacings=("leading", "trailing"), options={"clip_sample": False}
    ),
    # So large a scale of its timesteps leaves nothing of its boundary condition.
    "lcm": Peer(
        scheduler="LCMScheduler",
        scaled=True,
        spacings=("trailing",),
        options={"original_inference_steps": 50, "timestep_scaling": 1e6},
    ),
}

# In float32 these are compared by test_schedulers.py.
BEFORE = ("euler", "euler_a", "heun", "dpmpp_2m", "ddim")


def cases():
    for name, peer in PEERS.items():
        for dtype in (torch.float32, torch.float64):
            if name in BEFORE and dtype == torch.float32:
                continue
            for prediction in peer.predictions:
                for spacing in peer.spacings:
                    for steps in STEPS:
                        yield name, prediction, spacing, steps, dtype


@pytest.fixture
def same_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers draws what `NoiseSource(SEEDS)` draws, also where x is in float64."""
    source = NoiseSource(SEEDS)
    for module in ("scheduling_euler_ancestral_discrete", "scheduling_lcm"):
        monkeypatch.setattr(
            getattr(diffusers.schedulers, module),
            "randn_tensor",
            lambda shape, dtype, **_: source.draw(tuple(shape)[1:]).to(dtype),
        )


def set_up(name: str, prediction: str, spacing: str, steps: int, **options: Any):
    """diffusers' scheduler, our reading of it, and the levels of its timesteps."""
    peer = PEERS[name]
    kind = getattr(diffusers, peer.scheduler)
    fields = {"prediction_type": prediction, **STABLE_DIFFUSION, **SPACINGS[spacing][1], **peer.options, **options}
    scheduler = kind(**fields)
    scheduler.set_timesteps(steps)
    config = SchedulerConfig.from_diffusers({"_class_name": peer.scheduler} | dict(scheduler.config))
    last = config.schedule.sigma_min if name == "pndm" else 0.0  # set_alpha_to_one is off, as in Stable Diffusion
    fractions = bool((scheduler.timesteps % 1 != 0).any())
    if spacing == "karras" or fractions:
        # diffusers' own: between timesteps our grid `normal` is linear in log sigma, their linspace in sigma.
        levels = list(dict.fromkeys(scheduler.sigmas.double().tolist()))[:-1]
    else:
        levels = list(dict.fromkeys(config.schedule.timestep_to_sigma(scheduler.timesteps).tolist()))
    assert len(levels) == steps
    return scheduler, config, [*levels, last]


def use_our_tables(scheduler: Any, schedule: NoiseSchedule, sigmas: list[float]) -> None:
    """Our float64 in place of diffusers' float32."""
    if hasattr(scheduler, "sigmas"):
        exact = torch.tensor(sigmas, dtype=torch.float64)
        places = (scheduler.sigmas.double()[:, None] - exact).abs().argmin(dim=1)
        torch.testing.assert_close(scheduler.sigmas.double(), exact[places], rtol=CANCELLED, atol=0)
        scheduler.sigmas = exact[places]
        if (scheduler.timesteps % 1 != 0).any():  # those of Karras' sigmas, and fractions of linspace
            levels = scheduler.sigmas[: len(scheduler.timesteps)]
            timesteps = schedule.sigma_to_timestep(levels)
            torch.testing.assert_close(timesteps, scheduler.timesteps.double(), rtol=0, atol=FRACTION)
            scheduler.timesteps = timesteps.float()  # as every network gets them
    if hasattr(scheduler, "alphas_cumprod"):
        scheduler.alphas_cumprod = (1 / (1 + schedule.sigmas**2)).double()
    if hasattr(scheduler, "final_alpha_cumprod"):
        scheduler.final_alpha_cumprod = torch.tensor(1 / (1 + sigmas[-1] ** 2), dtype=torch.float64)


def compare(
    name: str, scheduler: Any, config: SchedulerConfig, sigmas: list[float], dtype: torch.dtype, tolerance: float
) -> None:
    peer = PEERS[name]
    if dtype == torch.float64:
        use_our_tables(scheduler, config.schedule, sigmas)
    start = noise(dtype) * ((1 + sigmas[0] ** 2) ** 0.5 if peer.scaled else sigmas[0])
    x = noise(dtype) if peer.scaled else start
    found = theirs(scheduler, x.as_subclass(Double) if dtype == torch.float64 else x)
    reference = Trajectory([point.as_subclass(Tensor) for point in found.points], found.timesteps)
    assert all(point.dtype == dtype for point in reference.points)
    options = {"order": peer.options["solver_order"]} if "solver_order" in peer.options else {}
    path = config.schedule.path
    sampler = start_sampler(name, start, sigmas, path=path, noise=NoiseSource(SEEDS), **options)
    mine, visited = ours(sampler, config, "nearest" if peer.scaled else "interpolated")
    visited[-1] = sigmas[-1]
    assert_same(mine, reference, from_ddpm(visited) if peer.scaled else [1.0] * len(visited), tolerance)


@pytest.mark.usefixtures("same_noise")
@pytest.mark.parametrize(("name", "prediction", "spacing", "steps", "dtype"), list(cases()))
def test_every_step_is_diffusers(name: str, prediction: str, spacing: str, steps: int, dtype: torch.dtype):
    """Leading, linspace, trailing and Karras' levels, as each scheduler spaces them; see above for what is absent."""
    scheduler, config, sigmas = set_up(name, prediction, spacing, steps)
    tolerance = FLOAT64_TABLES if dtype == torch.float64 else FLOAT32_TABLES
    compare(name, scheduler, config, sigmas, dtype, tolerance)


@pytest.mark.usefixtures("same_noise")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(
    ("name", "prediction", "spacing"),
    [
        (name, prediction, spacing)
        for name in ("euler", "euler_a", "dpmpp_2m", "unipc_bh2", "ddim", "lcm")
        for prediction in PEERS[name].predictions
        for spacing in PEERS[name].spacings
        if prediction != "epsilon" and spacing in ("trailing", "linspace")
    ],
)
def test_every_step_from_pure_noise_is_diffusers(
    name: str, prediction: str, spacing: str, steps: int, dtype: torch.dtype
):
    """Zero terminal SNR, where the first level has no picture in it; the spacing `leading` never comes there."""
    scheduler, config, sigmas = set_up(name, prediction, spacing, steps, rescale_betas_zero_snr=True)
    assert sigmas[0] == pytest.approx(4096, rel=1e-3)
    single = FROM_PURE_NOISE.get(name, FLOAT32_TABLES)
    compare(name, scheduler, config, sigmas, dtype, FLOAT64_TABLES if dtype == torch.float64 else single)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_each_step_of_ddim_with_linspace_is_diffusers(prediction: str, steps: int, dtype: torch.dtype):
    """One by one: a step goes down 1000 // n timesteps, and the next takes its x for one at the next timestep."""
    scheduler, config, sigmas = set_up("ddim", prediction, "linspace", steps)
    schedule = config.schedule
    if dtype == torch.float64:
        use_our_tables(scheduler, schedule, sigmas)
    reference = theirs(scheduler, noise(dtype))
    for index, timestep in enumerate(scheduler.timesteps.tolist()):
        down = timestep - 1000 // steps
        target = schedule.sigmas[down].item() if down >= 0 else 0.0
        start = reference.points[index] * (1 + sigmas[index] ** 2) ** 0.5
        step = start_sampler("ddim", start, [sigmas[index], target], path=schedule.path)
        mine, _ = ours(step, config)
        expected = reference.points[index + 1] * (1 + target**2) ** 0.5
        tolerance = FLOAT64_TABLES if dtype == torch.float64 else FLOAT32_TABLES
        torch.testing.assert_close(mine.points[-1], expected, rtol=0, atol=tolerance * expected.abs().max().item())


class Weights(int):
    """An order that diffusers does not take for 2, where it replaces the paper's weights by simpler ones."""

    def __eq__(self, other: object) -> bool:
        return other != 2 and int(self) == other

    __hash__ = int.__hash__


class PapersWeights(diffusers.SASolverScheduler):
    """SA-Solver with the weights of the paper's eq. 14 and 17 at order 2 too."""

    def stochastic_adams_bashforth_update(self, *args: Any, order: int, **options: Any) -> Tensor:
        return super().stochastic_adams_bashforth_update(*args, order=Weights(order), **options)

    def stochastic_adams_moulton_update(self, *args: Any, order: int, **options: Any) -> Tensor:
        return super().stochastic_adams_moulton_update(*args, order=Weights(order), **options)

    def get_coefficients_fn(self, order: int, *args: Any) -> list[Tensor]:
        return super().get_coefficients_fn(int(order), *args)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("predictor", "corrector", "tau", "prediction", "spacing"),
    [
        (1, 1, 1.0, "epsilon", "trailing"),
        (2, 2, 0.4, "epsilon", "trailing"),
        (3, 4, 0.0, "epsilon", "trailing"),
        *(
            (3, 4, 1.0, prediction, spacing)
            for prediction in PREDICTIONS
            for spacing in ("leading", "linspace", "trailing")
        ),
    ],
)
def test_every_step_of_sa_solver_is_diffusers(
    monkeypatch: pytest.MonkeyPatch,
    predictor: int,
    corrector: int,
    tau: float,
    prediction: str,
    spacing: str,
    dtype: torch.dtype,
):
    """Noise in every step: diffusers counts where it begins in timesteps, of a step's start. It ends above 0."""
    scheduler = PapersWeights(
        prediction_type=prediction,
        **STABLE_DIFFUSION,
        **SPACINGS[spacing][1],
        predictor_order=predictor,
        corrector_order=corrector,
        tau_func=lambda _: torch.tensor(tau, dtype=dtype),
        lower_order_final=False,
    )
    scheduler.set_timesteps(10)
    source = NoiseSource(SEEDS)
    monkeypatch.setattr(
        diffusers.schedulers.scheduling_sasolver,
        "randn_tensor",
        lambda shape, dtype, **_: source.draw(tuple(shape)[1:]).to(dtype),
    )
    fields = {**STABLE_DIFFUSION, "prediction_type": prediction, "clip_sample": False}
    config = SchedulerConfig.from_diffusers({"_class_name": "DDIMScheduler", **fields})
    schedule = config.schedule
    sigmas = [*schedule.timestep_to_sigma(scheduler.timesteps).tolist(), schedule.sigma_min]
    if dtype == torch.float64:
        use_our_tables(scheduler, schedule, sigmas)
    reference = theirs(scheduler, noise(dtype))
    sampler = start_sampler(
        "sa_solver",
        noise(dtype) * (1 + sigmas[0] ** 2) ** 0.5,
        sigmas,
        path=schedule.path,
        noise=NoiseSource(SEEDS),
        eta=tau,
        s_tmin=0.0,
        s_tmax=100.0,
        predictor_order=predictor,
        corrector_order=corrector,
    )
    mine, visited = ours(sampler, config, "nearest")
    visited[-1] = sigmas[-1]
    tolerance = FLOAT64_TABLES if dtype == torch.float64 else POWERS
    assert_same(mine, reference, from_ddpm(visited), tolerance)
