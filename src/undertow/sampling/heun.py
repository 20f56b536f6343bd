"""Heun's method."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from undertow.sampling.protocol import ModelCall, Sampler, sampler


@sampler
def heun(x: Tensor, sigmas: Sequence[float]) -> Sampler:
    """The trapezoidal rule: the mean of the slopes at both ends of a step; two evaluations, one for a step to 0.

    arXiv:2206.00364, algorithm 1 (algorithm 2 without churn), as an Euler step and its correction. Equals diffusers'
    HeunDiscreteScheduler and, on the flow path, FlowMatchHeunDiscreteScheduler.
    """
    for sigma, target in pairwise(sigmas):
        denoised = yield ModelCall(x, sigma)
        slope = (x - denoised) / sigma
        x = denoised + target * slope
        if target > 0:
            denoised = yield ModelCall(x, target)
            slope_there = (x - denoised) / target
            x = x + (target - sigma) * (slope_there - slope) / 2
    return x
