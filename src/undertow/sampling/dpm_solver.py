"""DPM-Solver++ without noise, or with ancestral noise: exponential integrators in log sigma."""

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from undertow.sampling.entry import sampler
from undertow.sampling.euler import ancestral_split
from undertow.sampling.exponential import decay, phi_2, phi_3, step_length
from undertow.sampling.noise import NoiseSource
from undertow.sampling.options import Eta, NoiseScale
from undertow.sampling.protocol import ModelCall, Sampler


@sampler(
    order=2, native_flow=True, comfyui=("dpmpp_2m",), a1111=("DPM++ 2M",), diffusers=("DPMSolverMultistepScheduler",)
)
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


@sampler(order=2, diffusers=("DPMSolverMultistepScheduler(solver_order=3)",))
def dpmpp_3m(x: Tensor, sigmas: Sequence[float]) -> Sampler:
    """The third-order multistep solver: slope and curvature of denoised from three steps, one evaluation each.

    arXiv:2211.01095, appendix; k-diffusion `sample_dpmpp_3m_sde` at eta = 0; diffusers' DPMSolverMultistepScheduler
    (dpmsolver++, order 3), whose second and last two steps are of other orders. With these weights, everybody's, the
    curvature counts half of what Taylor's theorem says, so that the error shrinks as that of a second-order method.
    """
    history = History()
    for sigma, target in pairwise(sigmas):
        denoised = yield ModelCall(x, sigma)
        h = step_length(sigma, target)
        x = (target / sigma) * x + decay(h) * denoised
        if target > 0:
            x = x + history.correction(denoised, h, h)
    return x


class History:
    """The last two estimates and steps of a third-order multistep solver, and what they add to a step."""

    def __init__(self) -> None:
        self._estimates: list[Tensor] = []
        self._steps: list[float] = []

    def correction(self, denoised: Tensor, h: float, weighted_h: float) -> Tensor:
        """Slope and curvature of the estimate over a step of h, weighted as for a step of `weighted_h`."""
        total = denoised * 0
        if len(self._estimates) == 2:
            r0, r1 = (step / h for step in self._steps)
            newer, older = (denoised - self._estimates[0]) / r0, (self._estimates[0] - self._estimates[1]) / r1
            slope = newer + (newer - older) * r0 / (r0 + r1)
            total = phi_2(weighted_h) * slope - phi_3(weighted_h) * (newer - older) / (r0 + r1)
        elif self._estimates:
            total = phi_2(weighted_h) * (denoised - self._estimates[0]) / (self._steps[0] / h)
        self._estimates = [denoised, *self._estimates[:1]]
        self._steps = [h, *self._steps[:1]]
        return total


@sampler(order=2, evaluations=2, diffusers=("DPMSolverSinglestepScheduler",))
def dpmpp_2s(x: Tensor, sigmas: Sequence[float]) -> Sampler:
    """The second-order singlestep solver: an evaluation in the middle of a step, in log sigma; two a step.

    arXiv:2211.01095, algorithm 1 with r = 1/2; k-diffusion `sample_dpmpp_2s_ancestral` at eta = 0; diffusers'
    DPMSolverSinglestepScheduler (order 2), for which the middle is a level of the grid.
    """
    for sigma, target in pairwise(sigmas):
        x = yield from _singlestep(x, sigma, target)
    return x


@sampler(order=2, evaluations=2, comfyui=("dpmpp_2s_ancestral",), a1111=("DPM++ 2S a",))
def dpmpp_2s_a(
    x: Tensor, sigmas: Sequence[float], *, noise: NoiseSource, eta: Eta = 1.0, s_noise: NoiseScale = 1.0
) -> Sampler:
    """`dpmpp_2s` below each target, then fresh noise up to it. k-diffusion `sample_dpmpp_2s_ancestral`."""
    for sigma, target in pairwise(sigmas):
        down, up = ancestral_split(sigma, target, eta)
        x = yield from _singlestep(x, sigma, down)
        if up > 0:
            x = x + s_noise * up * noise.like(x)
    return x


def _singlestep(x: Tensor, sigma: float, target: float) -> Sampler:
    denoised = yield ModelCall(x, sigma)
    if target == 0:
        return denoised
    middle = math.sqrt(sigma * target)
    denoised = yield ModelCall((middle / sigma) * x + (1 - middle / sigma) * denoised, middle)
    return (target / sigma) * x + (1 - target / sigma) * denoised
