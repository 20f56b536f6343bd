"""Restart sampling beside A1111's plan, written out: where it evaluates, how often, and what it adds."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.sampling.problem import best_denoiser, geometric
from undertow.diffusion import VariancePreserving
from undertow.sampling import SAMPLERS, NoiseSource, drive

EXACT = {"rtol": 1e-10, "atol": 1e-10}  # float64
SEEDS = [1, 2]
DENOISE = best_denoiser(VariancePreserving())


def karras(count: int, low: float, high: float) -> list[float]:
    """k-diffusion's `get_sigmas_karras` without its 0."""
    return ((high ** (1 / 7) + np.linspace(0, 1, count) * (low ** (1 / 7) - high ** (1 / 7))) ** 7).tolist()


def a1111_plan(sigmas: list[float], lowest: float, highest: float) -> list[tuple[float, float]]:
    """`restart_sampler` of modules/sd_samplers_extra.py, for a grid that ends at 0."""
    steps = len(sigmas) - 1
    if steps < 20:
        return list(pairwise(sigmas))
    restart_steps, restart_times = (steps // 4, 2) if steps >= 36 else (9, 1)
    levels = [*karras(steps - restart_steps * restart_times, sigmas[-2], sigmas[0]), 0.0]
    start, top = (int(np.argmin(np.abs(np.array(levels) - level))) for level in (lowest, highest))
    plan = []
    for index, step in enumerate(pairwise(levels)):
        plan.append(step)
        if index + 1 == start and top < start:
            plan += list(pairwise(karras(restart_steps + 1, levels[start], levels[top]))) * restart_times
    return plan


def heun_along(plan: list[tuple[float, float]], x: Tensor, s_noise: float) -> tuple[list[float], Tensor]:
    """The levels of all evaluations, and the last x."""
    source, visited, here = NoiseSource(SEEDS), [], plan[0][0]
    for sigma, target in plan:
        if sigma > here * (1 + 1e-9):
            x = x + s_noise * math.sqrt(sigma**2 - here**2) * source.like(x)
        slope = (x - DENOISE(x, sigma)) / sigma
        there = x + (target - sigma) * slope
        visited.append(sigma)
        if target > 0:
            visited.append(target)
            slope = (slope + (there - DENOISE(there, target)) / target) / 2
        x, here = x + (target - sigma) * slope, target
    return visited, x


def ours(sigmas: list[float], **options: float) -> tuple[list[float], Tensor]:
    visited: list[float] = []

    def denoise(x: Tensor, sigma: float) -> Tensor:
        visited.append(sigma)
        return DENOISE(x, sigma)

    sampler = SAMPLERS["restart"].function(start(sigmas[0]), sigmas, noise=NoiseSource(SEEDS), **options)
    return visited, drive(sampler, denoise)


def start(sigma: float) -> Tensor:
    return sigma * NoiseSource([101, 102]).draw((3, 4)).double()


@pytest.mark.parametrize(
    "options",
    [{}, {"s_noise": 0.7}, {"restart_min": 0.5, "restart_max": 5.0}, {"restart_min": 3.0, "restart_max": 3.0}],
    ids=str,
)
@pytest.mark.parametrize("steps", [19, 20, 35, 36, 50])
def test_every_evaluation_is_a1111s(steps: int, options: dict[str, float]):
    """Its numbers begin at 20 steps and change at 36; nothing is restarted where the ends are the same level."""
    sigmas = [*geometric(14.6, 0.03, steps - 1), 0.0]
    plan = a1111_plan(sigmas, options.get("restart_min", 0.1), options.get("restart_max", 2.0))
    visited, end = ours(sigmas, **options)
    expected_levels, expected = heun_along(plan, start(sigmas[0]), options.get("s_noise", 1.0))
    assert visited == pytest.approx(expected_levels, rel=1e-9)
    torch.testing.assert_close(end, expected, **EXACT)


@pytest.mark.parametrize("steps", [20, 36])
def test_as_many_steps_are_taken_to_a_last_level_above_0(steps: int):
    """Where another sampler goes on from there, as a second pass does; the count is what a progress bar shows."""
    sigmas = geometric(14.6, 0.03, steps)
    visited, _ = ours(sigmas)
    assert len(visited) == 2 * steps
    assert (visited[0], visited[-1]) == (sigmas[0], sigmas[-1])
