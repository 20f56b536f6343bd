"""SA-Solver: stochastic Adams methods with a predictor and a corrector."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from undertow.diffusion.schedules import NoiseSchedule, Schedule
from undertow.sampling.entry import sampler
from undertow.sampling.noise import NoiseSource
from undertow.sampling.options import Eta, NoiseScale, NumberRange
from undertow.sampling.protocol import ModelCall, Sampler
from undertow.sampling.quadrature import lagrange_weights

_PredictorOrder = Annotated[float, NumberRange(meaning="order of the predictor", low=1, high=4, whole=True)]
_CorrectorOrder = Annotated[float, NumberRange(meaning="order of the corrector; 0 has none", low=0, high=4, whole=True)]

_Lowest = Annotated[
    float | None,
    NumberRange(meaning="lowest sigma at which noise is added; the model's after four fifths of its timesteps"),
]
_Highest = Annotated[
    float | None,
    NumberRange(meaning="highest sigma at which noise is added; the model's after a fifth of its timesteps"),
]

# A level at the end of the window is in it, though it was computed in another way than the end.
_ROUNDING = 1e-6


@sampler(order=4, comfyui=("sa_solver",), diffusers=("SASolverScheduler",))
def sa_solver(
    x: Tensor,
    sigmas: Sequence[float],
    *,
    noise: NoiseSource,
    eta: Eta = 1.0,
    s_noise: NoiseScale = 1.0,
    schedule: Schedule | None = None,
    s_tmin: _Lowest = None,
    s_tmax: _Highest = None,
    predictor_order: _PredictorOrder = 3,
    corrector_order: _CorrectorOrder = 4,
) -> Sampler:
    """Predict, evaluate, correct: one evaluation a step. eta is the paper's tau, from s_tmax down to s_tmin.

    arXiv:2309.05019, algorithm 1 and eq. 14-17; ComfyUI `sample_sa_solver`; diffusers' SASolverScheduler.
    """
    orders = int(predictor_order), int(corrector_order)
    return (yield from _adams(x, sigmas, noise, _tau(eta, s_tmin, s_tmax, schedule), s_noise, orders, again=False))


@sampler(order=4, evaluations=2, comfyui=("sa_solver_pece",))
def sa_solver_pece(
    x: Tensor,
    sigmas: Sequence[float],
    *,
    noise: NoiseSource,
    eta: Eta = 1.0,
    s_noise: NoiseScale = 1.0,
    schedule: Schedule | None = None,
    s_tmin: _Lowest = None,
    s_tmax: _Highest = None,
    predictor_order: _PredictorOrder = 3,
    corrector_order: _CorrectorOrder = 4,
) -> Sampler:
    """`sa_solver` that evaluates again after a correction: two evaluations a step. ComfyUI `sample_sa_solver_pece`."""
    orders = int(predictor_order), int(corrector_order)
    return (yield from _adams(x, sigmas, noise, _tau(eta, s_tmin, s_tmax, schedule), s_noise, orders, again=True))


class _Tau:
    """The size of the noise at a level."""

    def __init__(self, eta: float, lowest: float, highest: float):
        self._eta, self._lowest, self._highest = eta, lowest, highest

    def __call__(self, sigma: float) -> float:
        inside = self._lowest * (1 - _ROUNDING) <= sigma <= self._highest * (1 + _ROUNDING)
        return self._eta if inside else 0.0


def _tau(eta: float, lowest: float | None, highest: float | None, schedule: Schedule | None) -> _Tau:
    """Noise in the middle of a run only, as ComfyUI's window from a fifth to four fifths of the model's timesteps."""
    levels = NoiseSchedule.scaled_linear() if schedule is None else schedule
    return _Tau(
        eta,
        _ratio_at(levels, 0.2) if lowest is None else lowest,
        _ratio_at(levels, 0.8) if highest is None else highest,
    )


def _ratio_at(schedule: Schedule, share: float) -> float:
    """Noise over data at a share of the way from the first trained level to the last."""
    level = schedule.sigma_at_share(share)
    return level / schedule.path.alpha(torch.tensor([level], dtype=torch.float64)).item()


def _adams(
    x: Tensor,
    sigmas: Sequence[float],
    noise: NoiseSource,
    tau_at: _Tau,
    s_noise: float,
    orders: tuple[int, int],
    *,
    again: bool,
) -> Sampler:
    estimates: list[Tensor] = []
    predicted, tau = x, 0.0
    fresh: Tensor | None = None
    steps = len(sigmas) - 1
    for index, (sigma, target) in enumerate(pairwise(sigmas)):
        denoised = yield ModelCall(predicted, sigma)
        estimates = [denoised, *estimates[: max(orders) - 1]]
        count = min(orders[1], len(estimates))
        count = min(count, steps - index) if sigmas[-1] == 0 else count
        if index == 0 or count == 0 or (target == 0 and not again):
            x = predicted
        else:
            before = sigmas[index - 1]
            nodes = [sigmas[index - back] for back in range(count)]
            x = _step(x, before, sigma, tau, nodes, estimates)
            x = x if fresh is None else x + fresh
            if again:
                estimates[0] = denoised = yield ModelCall(x, sigma)
        if target == 0:
            return denoised
        tau = tau_at(target)
        count = min(orders[0], len(estimates))
        count = min(count, steps - 1 - index) if sigmas[-1] == 0 else count
        predicted = _step(x, sigma, target, tau, [sigmas[index - back] for back in range(count)], estimates)
        fresh = None
        if tau > 0 and s_noise > 0:
            deviation = target * math.sqrt(1 - (target / sigma) ** (2 * tau**2))
            fresh = s_noise * deviation * noise.like(x)
            predicted = predicted + fresh
    return predicted


def _step(
    x: Tensor, sigma: float, target: float, tau: float, levels: Sequence[float], estimates: Sequence[Tensor]
) -> Tensor:
    """The mean of a step through the estimates at `levels`, in lambda = -log sigma (eq. 14)."""
    rate, end = 1 + tau**2, -math.log(target)
    nodes = [-math.log(level) for level in levels]
    weights = lagrange_weights(nodes, -math.log(sigma), end, lambda at: rate * np.exp(rate * (at - end)))
    x = (target / sigma) ** rate * x
    return sum((weight * estimate for weight, estimate in zip(weights, estimates, strict=False)), x)
