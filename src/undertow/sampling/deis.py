"""DEIS: the slope is extrapolated by polynomials in a time of its own, and integrated exactly."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

import numpy as np
from torch import Tensor

from undertow.sampling.entry import sampler
from undertow.sampling.options import NumberRange
from undertow.sampling.protocol import ModelCall, Sampler
from undertow.sampling.quadrature import Values, lagrange_weights

# The continuous time of the authors' code: sigma from 0.002 to 80 between the times 0.001 and 1.
_BETA_D = 2 * (math.log(0.002**2 + 1) / 1e-3 - math.log(80**2 + 1)) / (1e-3 - 1)
_BETA_MIN = math.log(80**2 + 1) - _BETA_D / 2


@sampler(order=3, comfyui=("deis",), a1111=("DEIS",))
def deis(
    x: Tensor,
    sigmas: Sequence[float],
    *,
    order: Annotated[float, NumberRange(meaning="order of the method", low=1, high=4, whole=True)] = 3,
) -> Sampler:
    """tAB-DEIS: polynomials in the time of a variance-preserving equation; one evaluation a step.

    arXiv:2204.13902, eq. 15 and 16; zju-pi/diff-sampler, as in ComfyUI and Forge (which sum 10,000 points instead of
    integrating). The first steps are of lower order, and a step to 0 is Euler's.
    """
    slopes: list[Tensor] = []
    for index, (sigma, target) in enumerate(pairwise(sigmas)):
        denoised = yield ModelCall(x, sigma)
        if target == 0:
            return denoised
        slopes = [(x - denoised) / sigma, *slopes[: int(order) - 1]]
        times = [_time(sigmas[index - back]) for back in range(len(slopes))]
        weights = lagrange_weights(times, _time(sigma), _time(target), _sigma_per_time)
        x = sum((weight * slope for weight, slope in zip(weights, slopes, strict=True)), x)
    return x


@sampler(order=2, diffusers=("DEISMultistepScheduler",))
def deis_log_rho(
    x: Tensor,
    sigmas: Sequence[float],
    *,
    order: Annotated[float, NumberRange(meaning="order of the method", low=1, high=3, whole=True)] = 2,
) -> Sampler:
    """DEIS with polynomials in log sigma; one evaluation a step.

    arXiv:2204.13902, section 4; diffusers' DEISMultistepScheduler (logrho), also its lower orders at the end of fewer
    than 15 steps. The first steps are of lower order too.
    """
    slopes: list[Tensor] = []
    steps = len(sigmas) - 1
    for index, (sigma, target) in enumerate(pairwise(sigmas)):
        denoised = yield ModelCall(x, sigma)
        if target == 0:
            return denoised
        slopes = [(x - denoised) / sigma, *slopes[: int(order) - 1]]
        used = slopes[: steps - index] if steps < 15 else slopes
        logs = [math.log(sigmas[index - back]) for back in range(len(used))]
        weights = lagrange_weights(logs, math.log(sigma), math.log(target), np.exp)
        x = sum((weight * slope for weight, slope in zip(weights, used, strict=True)), x)
    return x


def _time(sigma: float) -> float:
    """t at which the equation with beta(t) = beta_min + beta_d t has reached sigma."""
    return (math.sqrt(_BETA_MIN**2 + 2 * _BETA_D * math.log(sigma**2 + 1)) - _BETA_MIN) / _BETA_D


def _sigma_per_time(times: Values) -> Values:
    """d sigma / dt."""
    squared = np.expm1(_BETA_D * times**2 / 2 + _BETA_MIN * times)
    return (_BETA_D * times + _BETA_MIN) * (squared + 1) / (2 * np.sqrt(squared))
