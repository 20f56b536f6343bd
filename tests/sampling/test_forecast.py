"""Estimates that are forecast: which ones, by which formula, and that nothing else of a sampler changes."""

import numpy as np
import pytest
import torch

from tests.sampling.problem import geometric, smooth, with_unconditional
from undertow.diffusion import VariancePreserving
from undertow.diffusion.guidance import Guided
from undertow.sampling import SAMPLERS, NoiseSource, answered, drive, start_sampler
from undertow.sampling.forecast import BLEND, DEGREE, RIDGE, forecasting, place_of, weights
from undertow.sampling.protocol import Sampler
from undertow.step_counts import computed_steps

SIGMAS = [*geometric(10.0, 0.1, 9), 0.0]
EVERY_OTHER = [True, True, *[False, True] * 4]


def started(name: str, x: torch.Tensor) -> Sampler:
    return start_sampler(name, x, SIGMAS, path=VariancePreserving(), noise=NoiseSource([0]))


def asked(name: str, computed: list[bool]) -> tuple[list[float], torch.Tensor]:
    """The levels that a sampler asks for, and where it ends."""
    start = torch.linspace(-10, 10, 6, dtype=torch.float64)[None]
    sampler = forecasting(started(name, start), SIGMAS, computed)
    estimate, levels = with_unconditional(smooth, apart=0.1), []
    call = next(sampler)
    while True:
        levels.append(call.sigma)
        try:
            call = sampler.send(answered(call, estimate(call.x, call.sigma)))
        except StopIteration as finished:
            return levels, finished.value


def test_the_fit_is_that_of_least_squares_with_a_penalty():
    """As numpy solves the same problem: the penalty as more rows of an ordinary one."""
    places, values = [0.0, 1.0, 2.5, 3.0, 5.0], np.array([3.0, 1.0, -2.0, 0.5, 4.0])
    scaled = 2 * np.array(places) / 10 - 1
    rows = np.concatenate([np.polynomial.chebyshev.chebvander(scaled, DEGREE), RIDGE**0.5 * np.eye(DEGREE + 1)])
    coefficients = np.linalg.lstsq(rows, np.concatenate([values, np.zeros(DEGREE + 1)]), rcond=None)[0]
    fitted = np.polynomial.chebyshev.chebval(2 * 6.0 / 10 - 1, coefficients)
    straight = 4.0 + (4.0 - 0.5) / 2.0
    assert np.dot(weights(places, 6.0, 10), values) == pytest.approx(BLEND * fitted + (1 - BLEND) * straight)


def test_a_level_that_is_asked_twice_counts_once_for_the_line():
    twice, once = weights([0.0, 1.0, 1.0], 2.0, 10), weights([0.0, 1.0], 2.0, 10)
    line = [1 - BLEND, 2 * (1 - BLEND)]  # of the newest at level 1, and against that at level 0
    assert np.isfinite(twice).all()
    fit_of_twice = twice[1]  # the older one at level 1 has no part in the line
    assert twice[2] - fit_of_twice == pytest.approx(line[1])
    assert len(once) == 2


@pytest.mark.parametrize(
    ("sigma", "place"), [(10.0, 0.0), (12.0, 0.0), (10.0 ** (1 - 1 / 9), 0.5), (0.1, 9.0), (0.05, 9.5), (0.0, 10.0)]
)
def test_levels_have_places_by_their_logarithm(sigma, place):
    assert place_of(sigma, SIGMAS) == pytest.approx(place)


@pytest.mark.parametrize("name", ["euler", "dpmpp_2m", "euler_ancestral", "euler_cfg_pp"])
def test_only_what_has_to_be_computed_is_asked_for(name):
    levels, end = asked(name, EVERY_OTHER)
    assert levels == [sigma for sigma, computed in zip(SIGMAS, EVERY_OTHER, strict=False) if computed]
    assert end.isfinite().all()


@pytest.mark.parametrize("name", ["heun", "dpm2"])
def test_both_evaluations_at_a_level_are_computed_or_none(name):
    levels, end = asked(name, EVERY_OTHER)
    everything = asked(name, [True] * 10)[0]
    places = [int(place_of(sigma, SIGMAS) + 0.25) for sigma in everything]
    assert levels == [sigma for sigma, place in zip(everything, places, strict=True) if EVERY_OTHER[min(place, 9)]]
    assert end.isfinite().all()


@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_2m", "dpmpp_2m_sde", "euler_cfg_pp"])
def test_without_a_forecast_no_bit_changes(name):
    start = torch.linspace(-10, 10, 6, dtype=torch.float64)[None]
    sampler = started(name, start)
    estimate, call = with_unconditional(smooth, apart=0.1), next(sampler)
    end = None
    while end is None:
        try:
            call = sampler.send(answered(call, estimate(call.x, call.sigma)))
        except StopIteration as finished:
            end = finished.value
    assert torch.equal(asked(name, [True] * 10)[1], end)


def test_steps_at_both_ends_are_computed():
    steps = computed_steps(20, every=2, first=4, last=0.1)
    assert steps[:4] == [True] * 4
    assert steps[-2:] == [True] * 2
    assert steps[4:18] == [False, True] * 7
    assert computed_steps(9, every=3, first=2, last=0.0) == [True, True, False, False, True, False, False, True, False]
    assert all(computed_steps(4, every=2, first=4, last=0.0))


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_every_sampler_runs_on_what_is_computed(name):
    """Also the one that goes up the grid, whose first levels are those that need not be computed."""
    entry = SAMPLERS[name]
    path = entry.paths[0]()
    grid = [*geometric(0.9, 0.05, 8), 0.0]
    start = torch.linspace(-1, 1, 6, dtype=torch.float64)[None]
    calls = []

    def estimate(x: torch.Tensor, sigma: float) -> Guided:
        calls.append(sigma)
        return with_unconditional(smooth, apart=0.1)(x, sigma)

    counts = []
    for computed in ([True] * 9, [True, True, True, *[False] * 6]):
        calls.clear()
        sampler = start_sampler(name, start, grid, path=path, noise=NoiseSource([0]))
        end = drive(forecasting(sampler, grid, computed), estimate)
        counts.append(len(calls))
        assert end.isfinite().all()
        assert end.abs().max() < 20
    assert counts[1] < counts[0]
