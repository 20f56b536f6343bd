"""UniPC: a predictor and a corrector of any order from the same evaluations."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Annotated

import numpy as np
from torch import Tensor

from undertow.sampling.entry import sampler
from undertow.sampling.options import NumberRange
from undertow.sampling.protocol import ModelCall, Sampler
from undertow.sampling.quadrature import Values

Matrix = np.ndarray[tuple[int, int], np.dtype[np.float64]]

_Order = Annotated[float, NumberRange(meaning="order of the method", low=1, high=3, whole=True)]


@sampler(
    order=4,
    discards_penultimate=True,
    comfyui=("uni_pc",),
    a1111=("UniPC",),
    diffusers=("UniPCMultistepScheduler(solver_type=bh1)",),
)
def unipc(x: Tensor, sigmas: Sequence[float], *, order: _Order = 3) -> Sampler:
    """UniPC with B(h) = h, "bh1": the evaluation at the end of a step first corrects it; one evaluation a step.

    arXiv:2302.04867, algorithms 5-8 with data prediction; diffusers' UniPCMultistepScheduler (bh1), A1111's UniPC and
    ComfyUI's uni_pc, which ends at sigma 0.001. The first steps are of lower order, and the last ones before 0.
    """
    return (yield from _unified(x, sigmas, int(order), lambda h: -h))


@sampler(order=4, discards_penultimate=True, comfyui=("uni_pc_bh2",), diffusers=("UniPCMultistepScheduler",))
def unipc_bh2(x: Tensor, sigmas: Sequence[float], *, order: _Order = 3) -> Sampler:
    """UniPC with B(h) = e^h - 1, "bh2", otherwise as `unipc`; diffusers' default, there of order 2."""
    return (yield from _unified(x, sigmas, int(order), lambda h: math.expm1(-h)))


def _unified(x: Tensor, sigmas: Sequence[float], order: int, scale: Callable[[float], float]) -> Sampler:
    estimates: list[Tensor] = []  # at this step's level, the one before it, and so on
    steps = len(sigmas) - 1
    start, used = x, 0
    for index, (sigma, target) in enumerate(pairwise(sigmas)):
        denoised = yield ModelCall(x, sigma)
        if index > 0:
            levels = [sigmas[index - 1 - back] for back in range(used)]
            x = _step(start, sigma, levels, estimates, scale, corrected=denoised)
        estimates = [denoised, *estimates[: order - 1]]
        if target == 0:
            return denoised
        used = min(order, len(estimates))
        used = min(used, steps - index) if sigmas[-1] == 0 else used
        start = x
        x = _step(x, target, [sigmas[index - back] for back in range(used)], estimates, scale)
    return x


def _step(
    x: Tensor,
    target: float,
    levels: Sequence[float],
    estimates: Sequence[Tensor],
    scale: Callable[[float], float],
    corrected: Tensor | None = None,
) -> Tensor:
    """A step from levels[0] to target through the estimates there and at older levels, or with the one at its end."""
    sigma, newest, order = levels[0], estimates[0], len(levels)
    h = math.log(sigma / target)
    ratios = [math.log(sigma / level) / h for level in levels[1:]]
    differences = [(older - newest) / ratio for older, ratio in zip(estimates[1:], ratios, strict=False)]
    rows, values = _conditions([*ratios, 1.0], h, scale)
    if corrected is not None:
        differences.append(corrected - newest)
        weights = [0.5] if order == 1 else np.linalg.solve(rows, values).tolist()
    elif order == 1:
        weights = []
    else:
        weights = [0.5] if order == 2 else np.linalg.solve(rows[:-1, :-1], values[:-1]).tolist()
    x = (target / sigma) * x + (1 - target / sigma) * newest
    pairs = zip(weights, differences, strict=True)
    return sum((-scale(h) * weight * difference for weight, difference in pairs), x)


def _conditions(ratios: Sequence[float], h: float, scale: Callable[[float], float]) -> tuple[Matrix, Values]:
    """The linear equations for the weights, one for each order (eq. 5)."""
    rows = np.array([[ratio**power for ratio in ratios] for power in range(len(ratios))])
    values, factorial = [], 1.0
    phi = math.expm1(-h) / -h - 1
    for power in range(1, len(ratios) + 1):
        values.append(phi * factorial / scale(h))
        factorial *= power + 1
        phi = phi / -h - 1 / factorial
    return rows, np.array(values)
