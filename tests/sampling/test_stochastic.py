"""What all samplers that draw noise have in common: how much, where, and none where there is nothing to add."""

import math

import pytest
import torch
from torch import Tensor

from tests.sampling.problem import best_denoiser, geometric, path_of, run, trace, with_unconditional
from undertow.diffusion import VariancePreserving
from undertow.sampling import SAMPLERS, NoiseSource

EXACT = {"rtol": 1e-10, "atol": 1e-10}  # float64, with noise drawn in float32
SEEDS = [1, 2]
LEVELS = [0.9, 0.7, 0.4, 0.3, 0.1]  # on every path; in the middle of SA-Solver's range on the flow's ratios
CHURNED = [name for name in SAMPLERS if "s_churn" in SAMPLERS[name].options and path_of(name) == VariancePreserving()]
# Both take their steps from the ends of the grid, dpm_adaptive from the size of its errors too: without any allowed
# to count, its steps are the same whatever the noise.
OWN_STEPS = {"dpm_fast": {"eta": 0.6}, "dpm_fast_comfyui": {"eta": 0.6}, "dpm_adaptive": {"eta": 0.6, "atol": 1e12}}
OWN_STEPS["dpm_adaptive_comfyui"] = OWN_STEPS["dpm_adaptive"]


def options_for_noise(name: str) -> dict[str, float]:
    """What makes a sampler with `s_noise` draw noise."""
    options = {"s_churn": 2.0} if "s_churn" in SAMPLERS[name].options else OWN_STEPS.get(name, {})
    return options | ({"s_tmin": 0.0, "s_tmax": 1.0} if name.startswith("sa_") else {})


def start(path_name: str) -> Tensor:
    return path_of(path_name).pure_noise(NoiseSource([101, 102]).draw((3, 4)).double(), LEVELS[0])


def end(name: str, noise: NoiseSource | None = None, levels: list[float] | None = None, **options: float) -> Tensor:
    usual = geometric(0.9, 0.1, 20) if name == "restart" else LEVELS  # there are no restarts in fewer steps
    return run(
        name,
        start(name),
        usual if levels is None else levels,
        best_denoiser(path_of(name)),
        noise=noise,
        seeds=SEEDS,
        **options,
    )


@pytest.mark.parametrize("name", [name for name, entry in SAMPLERS.items() if "s_noise" in entry.options])
def test_the_part_of_the_noise_is_proportional_to_s_noise(name: str):
    """With a linear denoiser x is linear in all noise, so that equal draws count three times as much at 3."""
    options = options_for_noise(name)
    still, once, thrice = (end(name, s_noise=scale, **options) for scale in (0.0, 1.0, 3.0))
    torch.testing.assert_close(thrice - still, 3 * (once - still), **EXACT)
    assert (once - still).abs().max() > 0.01
    torch.testing.assert_close(end(name, **options), once, **EXACT)  # 1 unless told otherwise


@pytest.mark.parametrize("name", [name for name, entry in SAMPLERS.items() if "eta" in entry.options])
def test_at_eta_0_nothing_is_drawn(name: str):
    """Whoever draws after a sampler, as a second pass does, goes on in the same stream."""
    source = NoiseSource(SEEDS)
    end(name, source, eta=0.0)
    assert torch.equal(source.draw((4,)), NoiseSource(SEEDS).draw((4,)))


@pytest.mark.parametrize("name", [n for n, entry in SAMPLERS.items() if entry.stochastic and n != "restart"])
def test_a_step_to_0_draws_nothing(name: str):
    above, below = NoiseSource(SEEDS), NoiseSource(SEEDS)
    end(name, above)
    end(name, below, [*LEVELS, 0.0])
    assert torch.equal(above.draw((4,)), below.draw((4,)))


@pytest.mark.parametrize(
    ("options", "raised"),
    [
        ({"s_churn": 0.5}, 1.25),  # shared among both steps
        ({"s_churn": 1.0}, math.sqrt(2)),  # at most
        ({"s_churn": 0.5, "s_tmin": 5.0, "s_tmax": 5.0}, 1.25),  # both ends belong to the range
        ({"s_churn": 0.5, "s_noise": 1.1}, 1.25),
        ({"s_churn": 0.5, "s_tmin": 5.1}, 1.0),
        ({"s_churn": 0.5, "s_tmax": 4.9}, 1.0),
        ({}, 1.0),
        ({"s_churn": 0.5, "first": 5.5}, 1.1),  # never above the first level of the run
        ({"s_churn": 0.5, "first": 10.0, "s_tmin": 6.0}, 1.0),  # nor at it
    ],
)
@pytest.mark.parametrize("name", CHURNED)
def test_churn_raises_a_level_by_its_share(name: str, options: dict[str, float], raised: float):
    """arXiv:2206.00364, algorithm 2: gamma = min(s_churn / steps, sqrt(2) - 1), sigma_hat = (1 + gamma) sigma."""
    first = options.get("first", 10.0)
    given = {option: value for option, value in options.items() if option != "first"}
    source = NoiseSource(SEEDS)
    sigma, x = last_evaluation(name, [first, 5.0, 0.0], source, **given)
    assert sigma == pytest.approx(raised * 5)
    before = last_evaluation(name, [first, 5.0, 0.0], NoiseSource(SEEDS))[1]
    drawn = NoiseSource(SEEDS)
    fresh = drawn.like(before) if raised > 1 else 0 * before
    expected = before + given.get("s_noise", 1.0) * math.sqrt(sigma**2 - 5**2) * fresh
    torch.testing.assert_close(x, expected, **EXACT)
    assert torch.equal(source.draw((4,)), drawn.draw((4,))), "the first level draws nothing"


def last_evaluation(name: str, sigmas: list[float], noise: NoiseSource, **options: float) -> tuple[float, Tensor]:
    """Where a run evaluates last: at the level before 0, raised or not."""
    x = sigmas[0] * NoiseSource([101, 102]).draw((3, 4)).double()
    estimate = with_unconditional(best_denoiser(VariancePreserving()))
    levels, points = trace(name, x, sigmas, estimate, noise, **options)
    return levels[-1], points[-2]
