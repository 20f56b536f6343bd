"""Each algorithm against an exactly solvable problem, and against its kin."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from undertow.diffusion import (
    Denoiser,
    FlowSchedule,
    NoiseSchedule,
    VariancePreserving,
    Velocity,
    VPrediction,
    sigma_grid,
)
from undertow.sampling import SAMPLERS, NoiseSource, ddim, ddpm, dpmpp_2m, drive, euler, euler_a, heun
from undertow.sampling.euler import ancestral_split

# Data drawn from N(0, SPREAD^2): the best denoiser is linear, and the probability flow only rescales x, which stays
# proportional to the standard deviation of the noisy data.
SPREAD = 0.5
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def deviation(path, sigma: float) -> float:
    alpha = 1.0 if isinstance(path, VariancePreserving) else 1 - sigma
    return math.hypot(alpha * SPREAD, sigma)


def best_denoiser(path) -> Callable[[Tensor, float], Tensor]:
    def denoise(x: Tensor, sigma: float) -> Tensor:
        alpha = 1.0 if isinstance(path, VariancePreserving) else 1 - sigma
        return x * (alpha * SPREAD**2 / deviation(path, sigma) ** 2)

    return denoise


def geometric(high: float, low: float, steps: int) -> list[float]:
    return [high * (low / high) ** (index / steps) for index in range(steps + 1)]


def error(name: str, path, steps: int) -> float:
    high, low = (8.0, 0.05) if isinstance(path, VariancePreserving) else (0.9, 0.05)
    x = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    noise = NoiseSource([0])
    eta = {"eta": 0.0} if name == "euler_a" else {}
    end = drive(SAMPLERS[name].function(x, geometric(high, low, steps), noise=noise, **eta), best_denoiser(path))
    return (end / x - deviation(path, low) / deviation(path, high)).abs().max().item()


DETERMINISTIC = [
    (name, path())
    for name, entry in SAMPLERS.items()
    for path in entry.paths
    if name != "ddpm"  # always draws noise; its mean is checked against ddim's
]


@pytest.mark.parametrize(
    ("name", "path"), DETERMINISTIC, ids=lambda value: value if isinstance(value, str) else type(value).__name__
)
def test_halving_the_step_divides_the_error_by_two_to_the_order(name: str, path):
    measured = math.log2(error(name, path, 160) / error(name, path, 320))
    assert measured == pytest.approx(SAMPLERS[name].order, abs=0.12)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_perfect_denoiser_of_one_image_is_reached_exactly(name: str):
    """With denoised known, the last step to sigma 0 lands on it, whatever the noise drawn before."""
    image = torch.randn(2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sigmas = [1.0, 0.7, 0.2, 0.0]
    x = image + sigmas[0] * torch.ones(2, 3, dtype=torch.float64)
    end = drive(SAMPLERS[name].function(x, sigmas, noise=NoiseSource([3, 4])), lambda x, sigma: image)
    torch.testing.assert_close(end, image, **EXACT)


@pytest.mark.parametrize("name", SAMPLERS)
def test_evaluations_per_step_are_as_the_catalogue_says(name: str):
    calls: list[float] = []

    def denoise(x: Tensor, sigma: float) -> Tensor:
        calls.append(sigma)
        return x / 2

    sigmas = [1.0, 0.5, 0.2, 0.1]
    drive(SAMPLERS[name].function(torch.ones(1, 2), sigmas, noise=NoiseSource([0])), denoise)
    assert len(calls) == 3 * SAMPLERS[name].evaluations
    assert set(calls) <= set(sigmas)


SIGMAS = sigma_grid("karras", NoiseSchedule.scaled_linear(), 8)


def start(batch: int = 2) -> Tensor:
    return 14.6 * NoiseSource(range(100, 100 + batch)).draw((3, 4)).double()


def smooth(x: Tensor, sigma: float) -> Tensor:
    return torch.sin(x / math.hypot(1, sigma)) * math.cos(sigma / 5)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        # The same algorithm in three papers' letters: with EDM's scaling they coincide term by term.
        (lambda n: ddim(start(), SIGMAS), lambda n: euler(start(), SIGMAS)),
        (lambda n: euler_a(start(), SIGMAS, noise=n, eta=0.0), lambda n: euler(start(), SIGMAS)),
        (lambda n: ddim(start(), SIGMAS, noise=n, eta=1.0), lambda n: ddpm(start(), SIGMAS, noise=n)),
        (lambda n: ddim(start(), SIGMAS, noise=n, eta=1.0), lambda n: euler_a(start(), SIGMAS, noise=n)),
        (lambda n: ddim(start(), SIGMAS, noise=n, eta=0.4), lambda n: euler_a(start(), SIGMAS, noise=n, eta=0.4)),
    ],
    ids=["ddim 0 = euler", "euler_a 0 = euler", "ddim 1 = ddpm", "ddim 1 = euler_a", "ddim 0.4 = euler_a 0.4"],
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


@pytest.mark.parametrize("name", ["ddpm", "euler_a"])
def test_stochastic_samplers_keep_the_distribution(name: str):
    """With the exact denoiser of N(0, SPREAD^2), many pixels end with that spread: the noise has the right size."""
    tolerance = 0.02  # 1 % from the 400 steps, and the spread of 40,000 draws is known to 0.4 %
    source = NoiseSource([1, 2])
    x = (14.6 * source.draw((20_000,))).double()
    sigmas = sigma_grid("karras", NoiseSchedule.scaled_linear(), 400)
    end = drive(SAMPLERS[name].function(x, sigmas, noise=source), best_denoiser(VariancePreserving()))
    assert end.std().item() == pytest.approx(SPREAD, rel=tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", SAMPLERS)
def test_half_precision_stays_finite_and_close(name: str, dtype: torch.dtype):
    """R143: a network and a start in half precision, from the largest sigma of Stable Diffusion or of a flow."""
    relative_l2 = {torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]  # a few roundings, of 2^-11 and 2^-8
    result, expected = half_and_double(name, dtype, NoiseSchedule.scaled_linear())
    assert result.dtype == dtype
    assert (result.double() - expected).norm() / expected.norm() < relative_l2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", SAMPLERS)
def test_half_precision_stays_finite_from_pure_noise(name: str, dtype: torch.dtype):
    """sigma = 4096 squared overflows float16, sigma noise loses all data in it."""
    result, expected = half_and_double(name, dtype, NoiseSchedule.scaled_linear().rescale_zero_terminal_snr())
    assert (result.double() - expected).norm() / expected.norm() < 0.2  # heun multiplies roundings by 4096 / 5


def half_and_double(name: str, dtype: torch.dtype, schedule: NoiseSchedule) -> tuple[Tensor, Tensor]:
    """The same run with a network and a start in `dtype`, and in float64."""
    flow = VariancePreserving not in SAMPLERS[name].paths
    parameterization = Velocity() if flow else VPrediction()
    levels = FlowSchedule() if flow else schedule
    sigmas = sigma_grid("simple", levels, 10)
    start = parameterization.path.pure_noise(NoiseSource([7, 8]).draw((4, 8, 8)), sigmas[0])

    def run(precision: torch.dtype) -> Tensor:
        def network(x_in: Tensor, timesteps: Tensor, conditioning: None) -> Tensor:
            assert x_in.dtype == precision
            return torch.sin(1.5 * x_in + timesteps[:, None, None, None].to(precision) / 1000) - x_in / 2

        denoiser = Denoiser(
            network=network, parameterization=parameterization, schedule=levels, network_dtype=precision
        )
        return drive(
            SAMPLERS[name].function(start.to(precision), sigmas, noise=NoiseSource([1, 2])),
            lambda x, sigma: denoiser(x, torch.full((len(x),), sigma, dtype=torch.float64), None),
        )

    return run(dtype), run(torch.float64)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_run_repeats_itself_bit_by_bit(name: str):
    sigmas = [0.9, 0.5, 0.1, 0.0]
    first, second = (
        drive(SAMPLERS[name].function(start(), sigmas, noise=NoiseSource([1, 2])), smooth) for _ in range(2)
    )
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_image_does_not_depend_on_its_batch(name: str):
    sigmas, seeds = [0.9, 0.5, 0.1, 0.0], [11, 5, 8]
    together = drive(SAMPLERS[name].function(start(3), sigmas, noise=NoiseSource(seeds)), smooth)
    for index, seed in enumerate(seeds):
        alone = drive(SAMPLERS[name].function(start(3)[index : index + 1], sigmas, noise=NoiseSource([seed])), smooth)
        assert torch.equal(alone[0], together[index])


def test_second_order_beats_first_order_at_equal_evaluations():
    assert error("dpmpp_2m", VariancePreserving(), 40) < 0.2 * error("euler", VariancePreserving(), 40)
    assert error("heun", VariancePreserving(), 20) < 0.5 * error("euler", VariancePreserving(), 40)


def test_unequal_steps_keep_the_second_order_of_the_multistep_solver():
    """Steps in log sigma alternate 1 : 3; on a smooth grid their ratio tends to 1, and a formula without it passes."""

    def error_on(pairs: int) -> float:
        logs = [4 * pair + part for pair in range(pairs) for part in (0, 1)] + [4 * pairs]
        sigmas = [8.0 * (0.05 / 8.0) ** (log / (4 * pairs)) for log in logs]
        x = torch.ones(1, 1, dtype=torch.float64)
        end = drive(dpmpp_2m(x, sigmas), best_denoiser(VariancePreserving()))
        return abs(end.item() - deviation(VariancePreserving(), 0.05) / deviation(VariancePreserving(), 8.0))

    assert math.log2(error_on(100) / error_on(200)) == pytest.approx(2, abs=0.15)


def test_heun_takes_the_mean_slope():
    denoise = best_denoiser(VariancePreserving())
    x = torch.ones(1, 1, dtype=torch.float64)
    end = drive(heun(x, [2.0, 1.0]), denoise)
    first = (x - denoise(x, 2.0)) / 2.0
    second = (x - first) - denoise(x - first, 1.0)
    torch.testing.assert_close(end, x - (first + second) / 2, **EXACT)
