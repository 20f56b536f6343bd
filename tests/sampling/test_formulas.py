"""Every x of every step beside the formulas of samplers that no installed package has, in the letters of their code.

What k-diffusion and diffusers have is compared with theirs in tests/golden. Of ComfyUI: t = -log sigma, d a slope.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from tests.sampling.problem import smooth, trace, with_unconditional
from undertow.sampling import NoiseSource

EXACT = {"rtol": 1e-10, "atol": 1e-10}  # float64, with integrals by another rule
SEEDS = [1, 2]
ESTIMATE = with_unconditional(smooth)
GRID = [14.6, 9.0, 4.0, 2.5, 0.7, 0.1, 0.0]  # steps of unlike lengths in sigma and in log sigma
ABOVE = [5.0, 3.0, 2.5, 1.1, 0.6, 0.2]

Points = list[Tensor]


def to_d(x: Tensor, sigma: float) -> Tensor:
    return (x - smooth(x, sigma)) / sigma


def split(sigma: float, target: float, eta: float) -> tuple[float, float]:
    """(sigma down, sigma up) of an ancestral step."""
    up = min(target, eta * math.sqrt(target**2 * (1 - target**2 / sigma**2)))
    return math.sqrt(target**2 - up**2), up


def heunpp2(x: Tensor, sigmas: list[float], source: NoiseSource) -> Points:
    points, end = [x], sigmas[-1]
    for i, (sigma, target) in enumerate(pairwise(sigmas)):
        d = to_d(x, sigma)
        mean = d
        if target != end:
            x_2 = x + (target - sigma) * d
            d_2 = to_d(x_2, target)
            points.append(x_2)
            after = sigmas[i + 2]
            if after == end:
                w2 = target / (2 * sigmas[0])
                mean = (1 - w2) * d + w2 * d_2
            else:
                x_3 = x_2 + (after - target) * d_2
                d_3 = to_d(x_3, after)
                points.append(x_3)
                w2, w3 = target / (3 * sigmas[0]), after / (3 * sigmas[0])
                mean = (1 - w2 - w3) * d + w2 * d_2 + w3 * d_3
        x = x + (target - sigma) * mean
        points.append(x)
    return points


def multistep(weights_of: Callable[[list[float]], list[float]], order: int) -> Callable[..., Points]:
    """Slopes of the last steps, the newest first; weights of the sigmas from the target back."""

    def points_of(x: Tensor, sigmas: list[float], source: NoiseSource) -> Points:
        points, slopes = [x], []
        for i, (sigma, target) in enumerate(pairwise(sigmas)):
            slopes = [to_d(x, sigma), *slopes][:order]
            levels = [target, *sigmas[i::-1][: len(slopes)]]
            weights = weights_of(levels)
            x = x + sum(weight * slope for weight, slope in zip(weights, slopes, strict=True))
            points.append(x)
        return points

    return points_of


def ipndm_weights(levels: list[float]) -> list[float]:
    """ComfyUI `sample_ipndm`."""
    table = [[1.0], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]]
    return [weight * (levels[0] - levels[1]) for weight in table[len(levels) - 2]]


def ipndm_v_weights(levels: list[float]) -> list[float]:
    """ComfyUI `sample_ipndm_v`."""
    h_n, *older = (one - other for one, other in pairwise(levels))
    if not older:
        return [h_n]
    h_n_1 = older[0]
    coeffs = [(2 + h_n / h_n_1) / 2, -(h_n / h_n_1) / 2]
    if len(older) > 1:
        h_n_2 = older[1]
        temp1 = (1 - h_n / (3 * (h_n + h_n_1)) * (h_n * (h_n + h_n_1)) / (h_n_1 * (h_n_1 + h_n_2))) / 2
        coeffs = [coeffs[0] + temp1, coeffs[1] - (1 + h_n_1 / h_n_2) * temp1, temp1 * h_n_1 / h_n_2]
    if len(older) > 2:
        h_n_2, h_n_3 = older[1:]
        temp2 = (1 - h_n / (3 * (h_n + h_n_1))) / 2
        temp2 += (1 - h_n / (2 * (h_n + h_n_1))) * h_n / (6 * (h_n + h_n_1 + h_n_2))
        temp2 *= (h_n * (h_n + h_n_1) * (h_n + h_n_1 + h_n_2)) / (h_n_1 * (h_n_1 + h_n_2) * (h_n_1 + h_n_2 + h_n_3))
        ratio = (h_n_1 * (h_n_1 + h_n_2)) / (h_n_2 * (h_n_2 + h_n_3))
        coeffs[0] += temp2
        coeffs[1] -= (1 + h_n_1 / h_n_2 + ratio) * temp2
        coeffs[2] += (h_n_1 / h_n_2 + ratio * (1 + h_n_2 / h_n_3)) * temp2
        coeffs.append(-temp2 * ratio * h_n_1 / h_n_2)
    return [coefficient * h_n for coefficient in coeffs]


def integrals(time: Callable[[float], float]) -> Callable[[list[float]], list[float]]:
    """Weights of polynomials in a time of sigma: integrals over sigma from this level to the target."""

    def weights(levels: list[float]) -> list[float]:
        target, *nodes = levels

        def lagrange(sigma: float, index: int) -> float:
            others = [node for place, node in enumerate(nodes) if place != index]
            return math.prod((time(sigma) - time(node)) / (time(nodes[index]) - time(node)) for node in others)

        found = [quad(lagrange, nodes[0], target, args=(index,), epsabs=1e-13) for index in range(len(nodes))]
        return [value for value, _ in found]

    return weights


def vp_time(sigma: float) -> float:
    """t of sigma in zju-pi/diff-sampler `get_schedule` and `vp_sigma_inv`, from 0.002 at 1e-3 to 80 at 1."""
    low, high = math.log(0.002**2 + 1), math.log(80**2 + 1)
    beta_d = 2 * (low / 1e-3 - high) / (1e-3 - 1)
    beta_min = high - 0.5 * beta_d
    return (math.sqrt(beta_min**2 + 2 * beta_d * math.log(sigma**2 + 1)) - beta_min) / beta_d


def deis(order: int) -> Callable[..., Points]:
    """arXiv:2204.13902, eq. 15; a step to 0 is Euler's."""
    inner = multistep(integrals(vp_time), order)
    return lambda x, sigmas, source: closed(inner(x, sigmas[:-1], source), sigmas)


def closed(points: Points, sigmas: list[float]) -> Points:
    """A run to the level before 0, and the estimate there."""
    assert sigmas[-1] == 0
    return [*points, smooth(points[-1], sigmas[-2])]


def res_multistep(eta: float, s_noise: float) -> Callable[..., Points]:
    """ComfyUI `res_multistep`."""

    def points_of(x: Tensor, sigmas: list[float], source: NoiseSource) -> Points:
        points, old, old_down = [x], None, None
        for i, (sigma, target) in enumerate(pairwise(sigmas)):
            denoised = smooth(x, sigma)
            down, up = split(sigma, target, eta)
            if old is None or down == 0:
                x = x + (down - sigma) * to_d(x, sigma)
            else:
                t, t_old, t_next, t_prev = (-math.log(level) for level in (sigma, old_down, down, sigmas[i - 1]))
                h = t_next - t
                c2 = (t_prev - t_old) / h
                phi1 = math.expm1(-h) / -h
                phi2 = (phi1 - 1) / -h
                x = math.exp(-h) * x + h * ((phi1 - phi2 / c2) * denoised + phi2 / c2 * old)
            x = x + s_noise * up * source.like(x) if up else x
            old, old_down = denoised, down
            points.append(x)
        return points

    return points_of


def gradient_estimation(gamma: float) -> Callable[..., Points]:
    """arXiv:2306.04848: the next slope is guessed as gamma d + (1 - gamma) of the last."""

    def points_of(x: Tensor, sigmas: list[float], source: NoiseSource) -> Points:
        points, old = [x], None
        for sigma, target in pairwise(sigmas):
            d = to_d(x, sigma)
            guess = d if old is None or target == 0 else gamma * d + (1 - gamma) * old
            x, old = x + (target - sigma) * guess, d
            points.append(x)
        return points

    return points_of


def er_sde(order: int, s_noise: float) -> Callable[..., Points]:
    """arXiv:2309.06169, algorithm 3, with the authors' sums of 200 points for integrals."""

    def scaler(sigma: float) -> float:
        return sigma * (np.exp(sigma**0.3) + 10)

    def points_of(x: Tensor, sigmas: list[float], source: NoiseSource) -> Points:
        points, old, old_d = [x], None, None
        for i, (s, t) in enumerate(pairwise(sigmas)):
            denoised = smooth(x, s)
            if t == 0:
                return [*points, denoised]
            r = scaler(t) / scaler(s)
            x = r * x + (1 - r) * denoised
            step = (s - t) / 200
            places = t + np.arange(200) * step
            slope = None
            if old is not None and order >= 2:
                slope = (denoised - old) / (s - sigmas[i - 1])
                x = x + (t - s + np.sum(1 / scaler(places)) * step * scaler(t)) * slope
            if old_d is not None and slope is not None and order >= 3:
                curve = 2 * (slope - old_d) / (s - sigmas[i - 2])
                x = x + ((t - s) ** 2 / 2 + np.sum((places - s) / scaler(places)) * step * scaler(t)) * curve
            x = x + s_noise * math.sqrt(t**2 - s**2 * r**2) * source.like(x)
            old, old_d = denoised, slope
            points.append(x)
        return points

    return points_of


class Wiener:
    """Noise of one step of the stochastic equation, continued from stage to stage: an exact Ornstein-Uhlenbeck path."""

    def __init__(self, source: NoiseSource, eta: float):
        self.source, self.eta, self.reached, self.value = source, eta, 0.0, 0.0

    def at(self, h: float, x: Tensor) -> Tensor | float:
        """What the fresh noise has grown to after h, of deviation sqrt(1 - exp(-2 eta h))."""
        gone = self.eta * (h - self.reached)
        self.value = math.exp(-gone) * self.value + math.sqrt(1 - math.exp(-2 * gone)) * self.source.like(x)
        self.reached = h
        return self.value


def seeds(stages: int, eta: float, s_noise: float, r: float = 0.5) -> Callable[..., Points]:
    """arXiv:2305.14267, algorithms 2 and 3, with data prediction and h_eta = h (1 + eta)."""

    def points_of(x: Tensor, sigmas: list[float], source: NoiseSource) -> Points:
        points = [x]
        for s, t in pairwise(sigmas):
            denoised = smooth(x, s)
            if t == 0:
                return [*points, denoised]
            h, noise = math.log(s / t), Wiener(source, eta)

            def stage(part: float, estimate: Tensor, h=h, s=s, x=x, noise=noise) -> Tensor:
                kept = math.exp(-part * h * (1 + eta))
                still = kept * x + (1 - kept) * estimate
                return still + s_noise * s * math.exp(-part * h) * noise.at(part * h, x)

            if stages == 2:
                points.append(stage(r, denoised))
                second = smooth(points[-1], s * math.exp(-r * h))
                x = stage(1, denoised + (second - denoised) / (2 * r))
            else:
                points.append(stage(1 / 3, denoised))
                change = smooth(points[-1], s * math.exp(-h / 3)) - denoised
                points.append(stage(2 / 3, denoised + 2 * share(2 / 3 * h * (1 + eta)) * change))
                change = smooth(points[-1], s * math.exp(-2 * h / 3)) - denoised
                x = stage(1, denoised + 1.5 * share(h * (1 + eta)) * change)
            points.append(x)
        return points

    return points_of


def share(h: float) -> float:
    """phi_2 relative to phi_1 h: of a change over a step, what counts at its end, between a half and 1."""
    return (h - 1 + math.exp(-h)) / h / (1 - math.exp(-h))


def sa_solver(predictor: int, corrector: int, tau: float, *, again: bool) -> Callable[..., Points]:
    """arXiv:2309.05019, algorithm 1; with `again`, an evaluation after each correction.

    As ComfyUI's `sample_sa_solver`, orders come down to 1 towards a level of 0, to which the estimate is the step.
    """

    def step(x: Tensor, s: float, t: float, nodes: list[float], estimates: list[Tensor]) -> Tensor:
        """Eq. 14 in sigma: the polynomial in log sigma, weighted by the derivative of (t / u)^(1 + tau^2)."""
        rate = 1 + tau**2
        total = (t / s) ** rate * x
        for index, node in enumerate(nodes):
            others = [other for place, other in enumerate(nodes) if place != index]

            def integrand(u: float, node=node, others=others) -> float:
                lagrange = math.prod(math.log(u / other) / math.log(node / other) for other in others)
                return lagrange * rate * t**rate * u ** (-rate - 1)

            total = total + quad(integrand, t, s, epsabs=1e-13)[0] * estimates[index]
        return total

    def points_of(x: Tensor, sigmas: list[float], source: NoiseSource) -> Points:
        points, values, total = [x], [], len(sigmas)
        to_zero = sigmas[-1] == 0
        predicted, corrected, fresh = x, x, 0.0
        for i, (s, t) in enumerate(pairwise(sigmas)):
            values = [smooth(predicted, s), *values]
            orders = min(predictor, len(values)), min(corrector, len(values)) if i > 0 and (again or t > 0) else 0
            if to_zero:
                orders = min(orders[0], total - 2 - i), min(orders[1], total - 1 - i)
            nodes = sigmas[i::-1]
            x = predicted
            if orders[1]:
                x = step(corrected, sigmas[i - 1], s, nodes[: orders[1]], values) + fresh
            if orders[1] and again:
                points.append(x)
                values[0] = smooth(x, s)
            corrected = x
            if t == 0:
                return [*points, values[0]]
            predicted = step(x, s, t, nodes[: orders[0]], values)
            fresh = t * math.sqrt(1 - (t / s) ** (2 * tau**2)) * source.like(x) if tau else 0.0
            predicted = predicted + fresh
            points.append(predicted)
        return points

    return points_of


EVERYWHERE = {"s_tmin": 0.0, "s_tmax": 99.0}
"""Noise in every step."""

CASES: dict[str, tuple[str, list[float], dict[str, float], Callable[..., Points]]] = {
    "heunpp2": ("heunpp2", GRID, {}, heunpp2),
    "heunpp2, one step": ("heunpp2", [3.0, 1.0], {}, heunpp2),
    "pndm, one step to 0": ("pndm", [3.0, 0.0], {}, multistep(ipndm_weights, 1)),
    "ipndm": ("ipndm", GRID, {}, multistep(ipndm_weights, 4)),
    "ipndm 2": ("ipndm", ABOVE, {"order": 2}, multistep(ipndm_weights, 2)),
    "ipndm_v": ("ipndm_v", GRID, {}, multistep(ipndm_v_weights, 4)),
    "ipndm_v 3": ("ipndm_v", ABOVE, {"order": 3}, multistep(ipndm_v_weights, 3)),
    "lms": ("lms", GRID, {}, multistep(integrals(lambda sigma: sigma), 4)),
    "lms 2": ("lms", ABOVE, {"order": 2}, multistep(integrals(lambda sigma: sigma), 2)),
    "deis": ("deis", GRID, {}, deis(3)),
    "deis 4": ("deis", GRID, {"order": 4}, deis(4)),
    "deis_log_rho, to a level above 0": (
        "deis_log_rho",
        [14.6 * 0.8**power for power in range(16)],  # fewer than 15 steps have lower orders at their end
        {},
        multistep(integrals(math.log), 2),
    ),
    "res_multistep": ("res_multistep", GRID, {}, res_multistep(0.0, 0.0)),
    "res_multistep_a": ("res_multistep_a", GRID, {}, res_multistep(1.0, 1.0)),
    "res_multistep_a, options": ("res_multistep_a", ABOVE, {"eta": 0.7, "s_noise": 1.2}, res_multistep(0.7, 1.2)),
    "gradient_estimation": ("gradient_estimation", GRID, {}, gradient_estimation(2.0)),
    "gradient_estimation, options": ("gradient_estimation", ABOVE, {"ge_gamma": 1.4}, gradient_estimation(1.4)),
    "er_sde": ("er_sde", GRID, {}, er_sde(3, 1.0)),
    "er_sde 2": ("er_sde", ABOVE, {"order": 2, "s_noise": 0.8}, er_sde(2, 0.8)),
    "er_sde 1": ("er_sde", ABOVE, {"order": 1}, er_sde(1, 1.0)),
    "seeds_2": ("seeds_2", GRID, {}, seeds(2, 1.0, 1.0)),
    "seeds_2, options": ("seeds_2", ABOVE, {"eta": 0.7, "s_noise": 1.2, "r": 0.3}, seeds(2, 0.7, 1.2, 0.3)),
    "seeds_3": ("seeds_3", GRID, {}, seeds(3, 1.0, 1.0)),
    "seeds_3, options": ("seeds_3", ABOVE, {"eta": 0.7, "s_noise": 1.2}, seeds(3, 0.7, 1.2)),
    "sa_solver, to 0": ("sa_solver", GRID, EVERYWHERE, sa_solver(3, 4, 1.0, again=False)),
    "sa_solver without corrector": (
        "sa_solver",
        GRID,
        EVERYWHERE | {"corrector_order": 0},
        sa_solver(3, 0, 1.0, again=False),
    ),
    "sa_solver_pece": ("sa_solver_pece", ABOVE, EVERYWHERE, sa_solver(3, 4, 1.0, again=True)),
    "sa_solver_pece, to 0": ("sa_solver_pece", GRID, EVERYWHERE, sa_solver(3, 4, 1.0, again=True)),
    "sa_solver_pece, options": (
        "sa_solver_pece",
        ABOVE,
        EVERYWHERE | {"eta": 0.6, "predictor_order": 2, "corrector_order": 1},
        sa_solver(2, 1, 0.6, again=True),
    ),
    "sa_solver_pece without noise where there is none": (
        "sa_solver_pece",
        GRID,
        {"s_tmin": 20.0, "s_tmax": 30.0},
        sa_solver(3, 4, 0.0, again=True),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_every_step_is_the_formula(case: str):
    name, sigmas, options, formula = CASES[case]
    start = sigmas[0] * NoiseSource([101, 102]).draw((3, 4)).double()
    _, found = trace(name, start, sigmas, ESTIMATE, NoiseSource(SEEDS), **options)
    expected = formula(start, sigmas, NoiseSource(SEEDS))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **EXACT)


@pytest.mark.parametrize(("low", "high"), [(0.6, 2.5), (0.61, 2.5), (0.6, 2.4)])
def test_sa_solver_draws_between_its_levels_which_belong_to_the_range(low: float, high: float):
    """tau of the paper is eta from s_tmax down to s_tmin, looked up where a step ends."""
    source, expected = NoiseSource(SEEDS), NoiseSource(SEEDS)
    start = 5.0 * NoiseSource([101, 102]).draw((4,)).double()
    trace("sa_solver", start, ABOVE, ESTIMATE, source, s_tmin=low, s_tmax=high)
    for level in ABOVE[1:]:
        if low <= level <= high:
            expected.draw((4,))
    assert torch.equal(source.draw((4,)), expected.draw((4,)))
