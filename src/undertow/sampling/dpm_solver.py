"""DPM-Solver++: exponential integrators in log sigma."""

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from undertow.sampling.protocol import ModelCall, Sampler, sampler


@sampler
def dpmpp_2m(x: Tensor, sigmas: Sequence[float]) -> Sampler:
    """The second-order multistep solver: denoised is extrapolated from two steps, one evaluation each.

    arXiv:2211.01095, algorithm 2, with lambda = -log sigma, as in k-diffusion `sample_dpmpp_2m`; diffusers'
    DPMSolverMultistepScheduler (dpmsolver++, midpoint, order 2). The first step, and a step to 0, are of first order.
    """
    previous: Tensor | None = None
    last_h = 0.0
    for sigma, target in pairwise(sigmas):
        denoised = yield ModelCall(x, sigma)
        estimate = denoised
        if target > 0:
            h = math.log(sigma / target)
            if previous is not None:
                r = last_h / h
                estimate = denoised + (denoised - previous) / (2 * r)
            last_h = h
        x = (target / sigma) * x + (1 - target / sigma) * estimate
        previous = denoised
    return x
