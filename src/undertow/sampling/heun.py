"""Heun's method, and Heun++ with up to three slopes."""

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from undertow.sampling.churn import Churn
from undertow.sampling.entry import sampler
from undertow.sampling.noise import NoiseSource
from undertow.sampling.options import ChurnAmount, HighestSigma, LowestSigma, NoiseScale
from undertow.sampling.protocol import ModelCall, Sampler


@sampler(
    order=2, evaluations=2, native_flow=True, comfyui=("heun",), a1111=("Heun",), diffusers=("HeunDiscreteScheduler",)
)
def heun(
    x: Tensor,
    sigmas: Sequence[float],
    *,
    noise: NoiseSource | None = None,
    s_churn: ChurnAmount = 0.0,
    s_tmin: LowestSigma = 0.0,
    s_tmax: HighestSigma = math.inf,
    s_noise: NoiseScale = 1.0,
) -> Sampler:
    """The trapezoidal rule: the mean of the slopes at both ends of a step; two evaluations, one for a step to 0.

    arXiv:2206.00364, algorithm 2, as an Euler step and its correction; k-diffusion `sample_heun`. Equals diffusers'
    HeunDiscreteScheduler and, on the flow path, FlowMatchHeunDiscreteScheduler.
    """
    churn = Churn(
        noise=noise,
        first=sigmas[0],
        steps=len(sigmas) - 1,
        s_churn=s_churn,
        s_tmin=s_tmin,
        s_tmax=s_tmax,
        s_noise=s_noise,
    )
    for level, target in pairwise(sigmas):
        x, sigma = churn(x, level)
        x = yield from heun_step(x, sigma, target)
    return x


def heun_step(x: Tensor, sigma: float, target: float) -> Sampler:
    """One step from sigma to target, without a correction when that is 0."""
    denoised = yield ModelCall(x, sigma)
    slope = (x - denoised) / sigma
    x = denoised + target * slope
    if target > 0:
        denoised = yield ModelCall(x, target)
        slope_there = (x - denoised) / target
        x = x + (target - sigma) * (slope_there - slope) / 2
    return x


@sampler(order=1, evaluations=3, native_flow=True, comfyui=("heunpp2",), a1111=("HeunPP2",))
def heunpp2(
    x: Tensor,
    sigmas: Sequence[float],
    *,
    noise: NoiseSource | None = None,
    s_churn: ChurnAmount = 0.0,
    s_tmin: LowestSigma = 0.0,
    s_tmax: HighestSigma = math.inf,
    s_noise: NoiseScale = 1.0,
) -> Sampler:
    """Heun++: up to three slopes at this level and the next two, weighted by their sigma relative to the first.

    sd-webui-samplers-scheduler `sample_heunpp2`, as in ComfyUI and Forge. The weights of the later slopes shrink with
    sigma, so that the method is of first order: at small sigma it is almost Euler's.
    """
    churn = Churn(
        noise=noise,
        first=sigmas[0],
        steps=len(sigmas) - 1,
        s_churn=s_churn,
        s_tmin=s_tmin,
        s_tmax=s_tmax,
        s_noise=s_noise,
    )
    last = sigmas[-1]
    for index, (level, target) in enumerate(pairwise(sigmas)):
        x, sigma = churn(x, level)
        denoised = yield ModelCall(x, sigma)
        slope = (x - denoised) / sigma
        there = denoised + target * slope
        if target == last:
            x = there
            continue
        denoised = yield ModelCall(there, target)
        second = (there - denoised) / target
        after = sigmas[index + 2]
        if after == last:
            weight = target / (2 * sigmas[0])
            mean = (1 - weight) * slope + weight * second
        else:
            beyond = denoised + after * second
            denoised = yield ModelCall(beyond, after)
            third = (beyond - denoised) / after
            weights = target / (3 * sigmas[0]), after / (3 * sigmas[0])
            mean = (1 - sum(weights)) * slope + weights[0] * second + weights[1] * third
        x = x + (target - sigma) * mean
    return x
