"""ER-SDE: solvers of the extended reverse-time stochastic equation."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

from torch import Tensor

from undertow.sampling.entry import sampler
from undertow.sampling.noise import NoiseSource
from undertow.sampling.options import NoiseScale, NumberRange
from undertow.sampling.protocol import ModelCall, Sampler

_POINTS = 200
"""Of the sums that stand for integrals, as in the authors' code."""


@sampler(order=3, comfyui=("er_sde",))
def er_sde(
    x: Tensor,
    sigmas: Sequence[float],
    *,
    noise: NoiseSource,
    order: Annotated[float, NumberRange(meaning="order of the method", low=1, high=3, whole=True)] = 3,
    s_noise: NoiseScale = 1.0,
) -> Sampler:
    """The solver of up to third order with the authors' scale of noise, phi(sigma) = sigma (e^(sigma^0.3) + 10).

    arXiv:2309.06169, algorithm 3 ("ER-SDE-Solver-3") and eq. 15; ComfyUI `sample_er_sde`. The first steps are of lower
    order, and a step to 0 gives the estimate.
    """
    estimates: list[Tensor] = []
    slopes: list[Tensor] = []
    for index, (sigma, target) in enumerate(pairwise(sigmas)):
        denoised = yield ModelCall(x, sigma)
        if target == 0:
            return denoised
        kept = _noise_scale(target) / _noise_scale(sigma)
        x = kept * x + (1 - kept) * denoised
        if order >= 2 and estimates:
            first, second = _integrals(sigma, target)
            slope = (denoised - estimates[-1]) / (sigma - sigmas[index - 1])
            x = x + (target - sigma + first) * slope
            if order >= 3 and slopes:
                curve = (slope - slopes[-1]) / ((sigma - sigmas[index - 2]) / 2)
                x = x + ((target - sigma) ** 2 / 2 + second) * curve
            slopes = [slope]
        estimates = [denoised]
        variance = target**2 - (sigma * kept) ** 2
        if variance > 0 and s_noise > 0:
            x = x + s_noise * math.sqrt(variance) * noise.like(x)
    return x


def _noise_scale(sigma: float) -> float:
    return sigma * (math.exp(sigma**0.3) + 10)


def _integrals(sigma: float, target: float) -> tuple[float, float]:
    """phi(target) times the integrals over the step of 1 / phi, and of (u - sigma) / phi."""
    width = (sigma - target) / _POINTS
    points = [target + index * width for index in range(_POINTS)]
    scale = _noise_scale(target) * width
    first = sum(1 / _noise_scale(point) for point in points)
    second = sum((point - sigma) / _noise_scale(point) for point in points)
    return scale * first, scale * second
