"""Heun's method."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from undertow.sampling.protocol import ModelCall, Sampler, sampler


@sampler
def heun(x: Tensor, sigmas: Sequence[float]) -> Sampler:
    """The trapezoidal rule: the mean of the slopes at both ends of a step; two evaluations, one for a step to 0.

    arXiv:2206.00364, algorithm 1 (algorithm 2 without churn). Equals diffusers' HeunDiscreteScheduler and, on the flow
    path, FlowMatchHeunDiscreteScheduler.
    """
    for sigma, target in pairwise(sigmas):
        denoised = yield ModelCall(x, sigma)
        slope = (x - denoised) / sigma
        if target > 0:
            trial = x + (target - sigma) * slope
            denoised = yield ModelCall(trial, target)
            slope = (slope + (trial - denoised) / target) / 2
        x = x + (target - sigma) * slope
    return x
