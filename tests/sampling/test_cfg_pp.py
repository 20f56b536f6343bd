"""CFG++ with unlike estimates: every x of every step beside the formulas, written out one step at a time.

arXiv:2406.08070 replaces the direction x - denoised of a solver by x - unconditional; with ComfyUI's samplers, whose
letters these are, t = -log sigma. Equal estimates would make every sampler here the plain one.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from tests.sampling.problem import smooth, trace, with_unconditional
from undertow.diffusion.guidance import Guided
from undertow.sampling import SAMPLERS, NoiseSource

EXACT = {"rtol": 1e-12, "atol": 1e-12}  # float64
SEEDS = [1, 2]
ESTIMATE = with_unconditional(smooth, apart=0.3)
# Steps of unlike lengths in log sigma; to 0 and to a level above it.
GRIDS = [[14.6, 9.0, 4.0, 2.5, 0.7, 0.1, 0.0], [5.0, 3.0, 2.5, 0.6, 0.2]]

ETA, S_NOISE = 0.7, 1.2

Points = list[Tensor]
"""x at every evaluation, and the last x."""


def split(sigma: float, target: float, eta: float) -> tuple[float, float]:
    """(sigma down, sigma up) of an ancestral step."""
    up = min(target, eta * math.sqrt(target**2 * (1 - target**2 / sigma**2)))
    return math.sqrt(target**2 - up**2), up


def along(x: Tensor, estimate: Guided, sigma: float, target: float) -> Tensor:
    """Euler's step: the guided estimate and the unconditional direction."""
    return estimate.denoised + target / sigma * (x - estimate.unconditional)


def euler(x: Tensor, sigmas: list[float], source: NoiseSource, eta: float, s_noise: float) -> Points:
    points = [x]
    for sigma, target in pairwise(sigmas):
        down, up = split(sigma, target, eta)
        x = along(x, ESTIMATE(x, sigma), sigma, down)
        x = x + s_noise * up * source.like(x) if up else x
        points.append(x)
    return points


def dpmpp_2s(x: Tensor, sigmas: list[float], source: NoiseSource, eta: float, s_noise: float) -> Points:
    """Both formulas of the solver, with x - denoised at the start of the step for the direction in either."""
    points = [x]
    for sigma, target in pairwise(sigmas):
        down, up = split(sigma, target, eta)
        estimate = ESTIMATE(x, sigma)
        if down == 0:
            x = estimate.denoised
        else:
            halfway = math.exp((math.log(sigma) + math.log(down)) / 2)
            points.append(along(x, estimate, sigma, halfway))
            second = ESTIMATE(points[-1], halfway).denoised
            direction = x - estimate.unconditional
            x = second + down / sigma * (direction + estimate.denoised - second)
        x = x + s_noise * up * source.like(x) if up else x
        points.append(x)
    return points


def dpmpp_2m(x: Tensor, sigmas: list[float], source: NoiseSource, eta: float, s_noise: float) -> Points:
    points, old = [x], None
    for index, (sigma, target) in enumerate(pairwise(sigmas)):
        estimate = ESTIMATE(x, sigma)
        mix = -(target / sigma) * estimate.unconditional
        if old is not None and target > 0:
            h, h_last = math.log(sigma / target), math.log(sigmas[index - 1] / sigma)
            mix = mix - math.expm1(-h) * (estimate.denoised - old) / (2 * h_last / h)
        x = estimate.denoised + mix + target / sigma * x
        old = estimate.unconditional
        points.append(x)
    return points


def res_multistep(x: Tensor, sigmas: list[float], source: NoiseSource, eta: float, s_noise: float) -> Points:
    points, old, old_down = [x], None, None
    for index, (sigma, target) in enumerate(pairwise(sigmas)):
        estimate = ESTIMATE(x, sigma)
        down, up = split(sigma, target, eta)
        if old is None or down == 0:
            x = along(x, estimate, sigma, down)
        else:
            h = math.log(sigma) - math.log(down)
            c2 = (math.log(old_down) - math.log(sigmas[index - 1])) / h
            phi1 = math.expm1(-h) / -h
            phi2 = (phi1 - 1) / -h
            b1, b2 = phi1 - phi2 / c2, phi2 / c2
            x = x + estimate.denoised - estimate.unconditional
            x = math.exp(-h) * x + h * (b1 * estimate.unconditional + b2 * old)
        x = x + s_noise * up * source.like(x) if up else x
        old, old_down = estimate.unconditional, down
        points.append(x)
    return points


def gradient_estimation(gamma: float) -> Callable[..., Points]:
    def run(x: Tensor, sigmas: list[float], source: NoiseSource, eta: float, s_noise: float) -> Points:
        points, old = [x], None
        for sigma, target in pairwise(sigmas):
            estimate = ESTIMATE(x, sigma)
            slope = (x - estimate.unconditional) / sigma
            x = estimate.denoised + slope * target
            if old is not None and target > 0:
                x = x + (gamma - 1) * (slope - old) * (target - sigma)
            old = slope
            points.append(x)
        return points

    return run


CASES: dict[str, tuple[str, Callable[..., Points], dict[str, float]]] = {
    "euler": ("euler_cfg_pp", euler, {}),
    "euler_a": ("euler_a_cfg_pp", euler, {"eta": 1.0, "s_noise": 1.0}),
    "euler_a, options": ("euler_a_cfg_pp", euler, {"eta": ETA, "s_noise": S_NOISE}),
    "dpmpp_2s_a": ("dpmpp_2s_a_cfg_pp", dpmpp_2s, {"eta": 1.0, "s_noise": 1.0}),
    "dpmpp_2s_a, options": ("dpmpp_2s_a_cfg_pp", dpmpp_2s, {"eta": ETA, "s_noise": S_NOISE}),
    "dpmpp_2m": ("dpmpp_2m_cfg_pp", dpmpp_2m, {}),
    "res_multistep": ("res_multistep_cfg_pp", res_multistep, {}),
    "res_multistep_a": ("res_multistep_a_cfg_pp", res_multistep, {"eta": 1.0, "s_noise": 1.0}),
    "res_multistep_a, options": ("res_multistep_a_cfg_pp", res_multistep, {"eta": ETA, "s_noise": S_NOISE}),
    "gradient_estimation": ("gradient_estimation_cfg_pp", gradient_estimation(2.0), {}),
    "gradient_estimation, options": ("gradient_estimation_cfg_pp", gradient_estimation(1.3), {"ge_gamma": 1.3}),
}


@pytest.mark.parametrize("sigmas", GRIDS, ids=["to 0", "above 0"])
@pytest.mark.parametrize("case", CASES)
def test_every_step_is_the_formula_with_unlike_estimates(case: str, sigmas: list[float]):
    """Where the options are the formula's own, ours are left out: the defaults are under test too."""
    name, formula, options = CASES[case]
    start = sigmas[0] * NoiseSource([101, 102]).draw((3, 4)).double()
    given = options if "options" in case else {}
    _, found = trace(name, start, sigmas, ESTIMATE, NoiseSource(SEEDS), **given)
    expected = formula(start, sigmas, NoiseSource(SEEDS), options.get("eta", 0.0), options.get("s_noise", 0.0))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **EXACT)


def test_the_table_above_has_every_guided_sampler():
    assert {name for name, *_ in CASES.values()} == {name for name, entry in SAMPLERS.items() if entry.guided}
