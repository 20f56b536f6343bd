"""Each algorithm against an exactly solvable problem, and against its kin."""

import pytest
import torch
from torch import Tensor

from tests.sampling.problem import FORWARD, SPREAD, best_denoiser, path_of, run, smooth
from undertow.diffusion import (
    Denoiser,
    EDMPrediction,
    EDMSchedule,
    Epsilon,
    FlowSchedule,
    NoiseSchedule,
    Parameterization,
    RectifiedFlow,
    Schedule,
    VarianceExploding,
    VariancePreserving,
    Velocity,
    VPrediction,
    XPrediction,
    sigma_grid,
)
from undertow.sampling import (
    SAMPLERS,
    NoiseSource,
    ddim,
    ddim_inverse,
    ddpm,
    dpm2,
    dpm2_a,
    dpmpp_2m,
    dpmpp_2s,
    dpmpp_2s_a,
    drive,
    euler,
    euler_a,
    heun,
    ipndm,
    lms,
)
from undertow.sampling.consistency import lcm, tcd
from undertow.sampling.dpm_solver_sde import dpmpp_2m_sde, dpmpp_3m_sde, dpmpp_sde
from undertow.sampling.euler import ancestral_split
from undertow.sampling.gradient_estimation import gradient_estimation
from undertow.sampling.res_multistep import res_multistep, res_multistep_a
from undertow.sampling.seeds import seeds_2

EXACT = {"rtol": 1e-12, "atol": 1e-12}

STABLE_DIFFUSION = NoiseSchedule.scaled_linear()
SIGMAS = sigma_grid("karras", STABLE_DIFFUSION, 8)
FLOAT32 = {"rtol": 1e-6, "atol": 1e-6}  # the noise is drawn in float32


ENDS_ABOVE = ("dpm_fast_comfyui", "dpm_adaptive_comfyui")
"""Leave the noise of the last level above 0."""


@pytest.mark.parametrize("name", [name for name in FORWARD if name not in ENDS_ABOVE])
def test_a_perfect_denoiser_of_one_image_is_reached_exactly(name: str):
    """With denoised known, the last step to sigma 0 lands on it, whatever the noise drawn before."""
    image = torch.randn(1, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64).repeat(2, 1)
    sigmas = [0.99, 0.7, 0.2, 0.0]
    x = image + sigmas[0] * torch.ones(2, 3, dtype=torch.float64)
    end = run(name, x, sigmas, lambda x, sigma: image[: len(x)])
    torch.testing.assert_close(end, image, **EXACT)


@pytest.mark.parametrize("name", FORWARD)
def test_evaluations_per_step_are_as_the_catalogue_says(name: str):
    calls: list[float] = []

    def denoise(x: Tensor, sigma: float) -> Tensor:
        calls.append(sigma)
        return x / 2

    sigmas = [0.99, 0.8, 0.6, 0.4, 0.3, 0.2, 0.15, 0.1]
    run(name, torch.ones(1, 2), sigmas, denoise)
    expected = SAMPLERS[name].evaluations
    if expected is None:
        assert name.startswith("dpm_adaptive"), "every other sampler has a number that a planner can rely on"
        assert len(calls) > 0
    else:
        # pndm begins with one more, heunpp2 has fewer slopes in its last two steps, PECE's first step has no correction
        besides = {"pndm": 1, "heunpp2": -3, "sa_solver_pece": -1}.get(name, 0)
        assert len(calls) == 7 * expected + besides
    assert min(calls) >= 0.1 * (1 - 1e-12)
    assert max(calls) <= 0.99 * (1 + 1e-12)


def start(batch: int = 2) -> Tensor:
    return 14.6 * NoiseSource(range(100, 100 + batch)).draw((3, 4)).double()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        # The same algorithm in three papers' letters: with EDM's scaling they coincide term by term.
        (lambda n: ddim(start(), SIGMAS), lambda n: euler(start(), SIGMAS)),
        (lambda n: euler_a(start(), SIGMAS, noise=n, eta=0.0), lambda n: euler(start(), SIGMAS)),
        (lambda n: ddim(start(), SIGMAS, noise=n, eta=1.0), lambda n: ddpm(start(), SIGMAS, noise=n)),
        (lambda n: ddim(start(), SIGMAS, noise=n, eta=1.0), lambda n: euler_a(start(), SIGMAS, noise=n)),
        (lambda n: ddim(start(), SIGMAS, noise=n, eta=0.4), lambda n: euler_a(start(), SIGMAS, noise=n, eta=0.4)),
        (lambda n: lms(start(), SIGMAS, order=1), lambda n: euler(start(), SIGMAS)),
        (lambda n: ipndm(start(), SIGMAS, order=1), lambda n: euler(start(), SIGMAS)),
        (lambda n: gradient_estimation(start(), SIGMAS, ge_gamma=1.0), lambda n: euler(start(), SIGMAS)),
        (lambda n: dpm2_a(start(), SIGMAS, noise=n, eta=0.0), lambda n: dpm2(start(), SIGMAS)),
        (lambda n: dpmpp_2s_a(start(), SIGMAS, noise=n, eta=0.0), lambda n: dpmpp_2s(start(), SIGMAS)),
        (lambda n: dpmpp_sde(start(), SIGMAS, noise=n, eta=0.0), lambda n: dpmpp_2s(start(), SIGMAS)),
        (lambda n: seeds_2(start(), SIGMAS, noise=n, eta=0.0), lambda n: dpmpp_2s(start(), SIGMAS)),
        (lambda n: dpmpp_2m_sde(start(), SIGMAS, noise=n, eta=0.0), lambda n: dpmpp_2m(start(), SIGMAS)),
        (lambda n: res_multistep_a(start(), SIGMAS, noise=n, eta=0.0), lambda n: res_multistep(start(), SIGMAS)),
        (lambda n: tcd(start(), SIGMAS, noise=n, gamma=0.0), lambda n: ddim(start(), SIGMAS)),
    ],
    ids=[
        "ddim 0 = euler",
        "euler_a 0 = euler",
        "ddim 1 = ddpm",
        "ddim 1 = euler_a",
        "ddim 0.4 = euler_a 0.4",
        "lms 1 = euler",
        "ipndm 1 = euler",
        "gradient_estimation 1 = euler",
        "dpm2_a 0 = dpm2",
        "dpmpp_2s_a 0 = dpmpp_2s",
        "dpmpp_sde 0 = dpmpp_2s",
        "seeds_2 0 = dpmpp_2s",
        "dpmpp_2m_sde 0 = dpmpp_2m",
        "res_multistep_a 0 = res_multistep",
        "tcd 0 = ddim",
    ],
)
def test_kin_agree(one, other):
    first, second = drive(one(NoiseSource([1, 2])), smooth), drive(other(NoiseSource([1, 2])), smooth)
    torch.testing.assert_close(first, second, **EXACT)


def test_ancestral_noise_restores_the_variance_that_the_step_gave_up():
    for eta in (0.0, 0.3, 1.0):
        down, up = ancestral_split(5.0, 3.0, eta)
        assert down**2 + up**2 == pytest.approx(9.0)
        assert up == pytest.approx(eta * 3.0 * 4.0 / 5.0)
    assert ancestral_split(5.0, 0.0, 1.0) == (0.0, 0.0)


def test_s_noise_scales_the_fresh_noise():
    sigmas = [2.0, 1.0, 0.5]  # ends above 0, so that the last noise stays
    runs = {
        s: drive(euler_a(start(), sigmas, noise=NoiseSource([1, 2]), s_noise=s), lambda x, sigma: 0 * x)
        for s in (0.0, 1.0, 2.0)
    }
    torch.testing.assert_close(runs[2.0] - runs[0.0], 2 * (runs[1.0] - runs[0.0]), **EXACT)
    assert (runs[1.0] - runs[0.0]).abs().max() > 0.1


def test_full_strategic_noise_is_lcm_at_the_first_trained_level():
    """TCD's gamma = 1 steps down to timestep 0, whose sigma is not 0: it keeps that much of the direction."""
    first = STABLE_DIFFUSION.sigma_min
    noise, other = NoiseSource([1, 2]), NoiseSource([1, 2])
    sigmas = [5.0, 2.0]
    kept = drive(tcd(start(), sigmas, noise=noise, gamma=1.0), smooth)
    whole = drive(lcm(start(), sigmas, noise=other), smooth)
    assert (kept - whole).abs().max() < 2 * first * (start() / 5).abs().max()


def test_ddim_inverse_finds_the_noise_that_ddim_takes_back():
    x = start() / 14.6
    sigmas = sigma_grid("karras", STABLE_DIFFUSION, 400)
    denoise = best_denoiser(VariancePreserving())
    noise = drive(ddim_inverse(x, sigmas), denoise)
    back = drive(ddim(noise, sigmas), denoise)
    assert noise.std() > 10
    assert (back - x).norm() / x.norm() < 0.05  # both are of first order


@pytest.mark.parametrize("name", ["euler", "heun", "dpm2", "heunpp2"])
def test_churn_keeps_the_distribution_and_draws_only_where_it_may(name: str):
    x = 14.6 * torch.randn(1, 20_000, generator=torch.Generator().manual_seed(1)).double()
    sigmas = sigma_grid("karras", STABLE_DIFFUSION, 100)
    options = {"s_churn": 40.0, "s_tmin": 0.05, "s_tmax": 10.0}
    end = run(name, x, sigmas, best_denoiser(VariancePreserving()), **options)
    tolerance = 0.12 if SAMPLERS[name].order == 1 else 0.03  # of 100 steps
    assert end.std().item() == pytest.approx(SPREAD, rel=tolerance)
    untouched = run(name, x, sigmas, best_denoiser(VariancePreserving()), s_churn=40.0, s_tmin=20.0)
    assert torch.equal(untouched, run(name, x, sigmas, best_denoiser(VariancePreserving())))
    assert not torch.equal(end, untouched)


@pytest.mark.parametrize("name", ["euler", "heun", "dpm2", "heunpp2"])
def test_churn_without_seeds_is_refused_at_its_first_draw(name: str):
    with pytest.raises(Exception, match="s_churn > 0 draws noise"):
        drive(SAMPLERS[name].function(start(), SIGMAS, s_churn=10.0), smooth)


@pytest.mark.parametrize("function", [dpmpp_sde, dpmpp_2m_sde, dpmpp_3m_sde])
def test_brownian_noise_makes_more_steps_converge_to_the_same_picture(function):
    """What distinguishes a Brownian path from fresh draws: the same seed, more steps, nearly the same result."""

    def end(steps: int) -> Tensor:
        sigmas = [8.0 * (0.05 / 8.0) ** (index / steps) for index in range(steps + 1)]
        denoise = best_denoiser(VariancePreserving())
        return drive(function(start(), sigmas, noise=NoiseSource([1, 2])), denoise)

    finest = end(64)
    misses = [(end(steps) - finest).norm().item() for steps in (2, 8, 32)]
    assert misses[2] < misses[1] / 2 < misses[0] / 4


MODELS: dict[str, tuple[Parameterization, Schedule]] = {
    "epsilon": (Epsilon(), STABLE_DIFFUSION),
    "v": (VPrediction(), STABLE_DIFFUSION),
    "x0": (XPrediction(), STABLE_DIFFUSION),
    "zero snr v": (VPrediction(), STABLE_DIFFUSION.rescale_zero_terminal_snr()),
    "edm": (EDMPrediction(), EDMSchedule()),
    "edm v": (EDMPrediction(v=True), EDMSchedule()),
    "velocity": (Velocity(), FlowSchedule()),
    "velocity shifted": (Velocity(), FlowSchedule(shift=3.0)),
    "flow x0": (XPrediction(path=RectifiedFlow()), FlowSchedule()),
}
# What a prediction means is the denoiser's affair: few samplers meet every model, every sampler one of each equation.
# EDM's path is to a sampler what the variance-preserving one is, whose levels go higher.
ONE_OF_EACH_EQUATION = ("zero snr v", "velocity shifted")
ADMITTED = [
    (name, model)
    for name in FORWARD
    for model in MODELS
    if isinstance(MODELS[model][1].path, SAMPLERS[name].paths)
    and (
        model in ONE_OF_EACH_EQUATION
        or name in ("euler", "euler_a", "dpmpp_2m")
        or SAMPLERS[name].paths == (VarianceExploding,)
    )
    and name not in ("lcm", "tcd")  # made for networks that map all noise of a path to one picture; these do not
]


@pytest.mark.parametrize(("name", "model"), ADMITTED)
def test_every_sampler_draws_the_data_of_every_model_it_admits(name: str, model: str):
    """Data from N(0, SPREAD^2), and the best network of each kind: many pixels of one picture end with that spread."""
    parameterization, schedule = MODELS[model]
    path = schedule.path
    # From sigma = 4096 in 40 steps; the spread of 2,000 draws is known to 2 %.
    tolerance = 0.25 if SAMPLERS[name].order == 1 else 0.18
    options = {"rtol": 1e-3, "atol": 1e-3} if name.startswith("dpm_adaptive") else {}
    sigmas = sigma_grid("simple" if isinstance(path, RectifiedFlow) else "karras", schedule, 40)

    def network(x_in: Tensor, timesteps: Tensor, conditioning: None) -> Tensor:
        sigma = schedule.timestep_to_sigma(timesteps.double())
        x = x_in / path.input_scale(sigma)[:, None]
        denoised = best_denoiser(path)(x, sigma.item())
        return parameterization.prediction_from_denoised(denoised, x, sigma)

    denoiser = Denoiser(network=network, parameterization=parameterization, schedule=schedule)
    source = NoiseSource([1])
    x = path.pure_noise(source.draw((2_000,)).double(), sigmas[0])
    end = run(
        name,
        x,
        sigmas,
        lambda x, sigma: denoiser(x, torch.tensor([sigma], dtype=torch.float64), None),
        path=path,
        noise=source,
        **options,
    )
    assert end.std().item() == pytest.approx(SPREAD, rel=tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", FORWARD)
def test_half_precision_stays_finite_and_close(name: str, dtype: torch.dtype):
    """R143: a network and a start in half precision, from the largest sigma of Stable Diffusion, EDM or a flow."""
    relative_l2 = {torch.float16: 4e-3, torch.bfloat16: 4e-2}[dtype]  # a few roundings, of 2^-11 and 2^-8
    result, expected = half_and_double(name, dtype, STABLE_DIFFUSION)
    assert result.dtype == dtype
    assert (result.double() - expected).norm() / expected.norm() < relative_l2


@pytest.mark.parametrize("name", [name for name in FORWARD if VariancePreserving in SAMPLERS[name].paths])
def test_half_precision_stays_finite_from_pure_noise(name: str):
    """sigma = 4096 squared overflows float16, sigma noise loses all data in it."""
    result, expected = half_and_double(name, torch.float16, STABLE_DIFFUSION.rescale_zero_terminal_snr())
    assert (result.double() - expected).norm() / expected.norm() < 0.2  # heun multiplies roundings by 4096 / 5


def half_and_double(name: str, dtype: torch.dtype, schedule: NoiseSchedule) -> tuple[Tensor, Tensor]:
    """The same run with a network and a start in `dtype`, and in float64."""
    parameterization, levels = {
        VariancePreserving: (VPrediction(), schedule),
        VarianceExploding: (EDMPrediction(), EDMSchedule()),
        RectifiedFlow: (Velocity(), FlowSchedule()),
    }[type(path_of(name))]
    sigmas = sigma_grid("simple", levels, 6)
    start = parameterization.path.pure_noise(NoiseSource([7, 8]).draw((4, 8, 8)), sigmas[0])

    def one(precision: torch.dtype) -> Tensor:
        def network(x_in: Tensor, timesteps: Tensor, conditioning: None) -> Tensor:
            assert x_in.dtype == precision
            return torch.sin(1.5 * x_in + timesteps[:, None, None, None].to(precision) / 1000) - x_in / 2

        denoiser = Denoiser(
            network=network, parameterization=parameterization, schedule=levels, network_dtype=precision
        )
        return run(
            name,
            start.to(precision),
            sigmas,
            lambda x, sigma: denoiser(x, torch.full((len(x),), sigma, dtype=torch.float64), None),
            seeds=[1, 2],
        )

    return one(dtype), one(torch.float64)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_run_repeats_itself_bit_by_bit(name: str):
    sigmas = [0.9, 0.5, 0.1, 0.0]
    first, second = (run(name, start(), sigmas, smooth) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_image_does_not_depend_on_its_batch(name: str):
    sigmas, seeds = [0.9, 0.5, 0.1, 0.0], [11, 5, 8]
    together = run(name, start(3), sigmas, smooth, seeds=seeds)
    for index, seed in enumerate(seeds):
        alone = run(name, start(3)[index : index + 1], sigmas, smooth, seeds=[seed])
        assert torch.equal(alone[0], together[index])


@pytest.mark.parametrize("name", [name for name, entry in SAMPLERS.items() if entry.stochastic])
def test_another_seed_draws_another_picture(name: str):
    sigmas = sigma_grid("karras", STABLE_DIFFUSION, 20)
    first, second = (run(name, start(1), sigmas, smooth, seeds=[seed]) for seed in (1, 2))
    assert (first - second).abs().max() > 1e-3


def test_heun_takes_the_mean_slope():
    denoise = best_denoiser(VariancePreserving())
    x = torch.ones(1, 1, dtype=torch.float64)
    end = drive(heun(x, [2.0, 1.0]), denoise)
    first = (x - denoise(x, 2.0)) / 2.0
    second = (x - first) - denoise(x - first, 1.0)
    torch.testing.assert_close(end, x - (first + second) / 2, **EXACT)


@pytest.mark.parametrize("name", ["dpm_fast", "dpm_adaptive"])
def test_fast_solvers_draw_noise_when_asked(name: str):
    sigmas = sigma_grid("karras", STABLE_DIFFUSION, 12)
    still, noisy = (run(name, start(), sigmas, smooth, eta=eta) for eta in (0.0, 0.7))
    assert (still - noisy).abs().max() > 1e-3


def test_guided_samplers_without_guidance_are_the_plain_ones():
    """With equal estimates, CFG++ is the sampler it was made from."""
    for name in ("euler", "dpmpp_2m", "res_multistep", "gradient_estimation"):
        plain = run(name, start(), SIGMAS, best_denoiser(VariancePreserving()))
        guided = run(f"{name}_cfg_pp", start(), SIGMAS, best_denoiser(VariancePreserving()))
        torch.testing.assert_close(guided, plain, **EXACT)
    for name in ("euler_a", "dpmpp_2s_a", "res_multistep_a"):
        plain = run(name, start(), SIGMAS, best_denoiser(VariancePreserving()))
        guided = run(f"{name}_cfg_pp", start(), SIGMAS, best_denoiser(VariancePreserving()))
        torch.testing.assert_close(guided, plain, **FLOAT32)
