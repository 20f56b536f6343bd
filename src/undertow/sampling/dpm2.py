"""DPM-Solver-2 in Karras' form: the slope in the middle of a step, in log sigma."""

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from undertow.diffusion.paths import Path, RectifiedFlow
from undertow.sampling.churn import Churn
from undertow.sampling.entry import sampler
from undertow.sampling.euler import ancestral_split, level_below, raised
from undertow.sampling.noise import NoiseSource
from undertow.sampling.options import ChurnAmount, Eta, HighestSigma, LowestSigma, NoiseScale
from undertow.sampling.protocol import ModelCall, Sampler


@sampler(
    order=2,
    evaluations=2,
    native_flow=True,
    discards_penultimate=True,
    comfyui=("dpm_2",),
    a1111=("DPM2",),
    diffusers=("KDPM2DiscreteScheduler",),
)
def dpm2(
    x: Tensor,
    sigmas: Sequence[float],
    *,
    noise: NoiseSource | None = None,
    s_churn: ChurnAmount = 0.0,
    s_tmin: LowestSigma = 0.0,
    s_tmax: HighestSigma = math.inf,
    s_noise: NoiseScale = 1.0,
) -> Sampler:
    """The midpoint rule: two evaluations, one for a step to 0.

    k-diffusion `sample_dpm_2`, inspired by arXiv:2206.00927, algorithm 1; diffusers' KDPM2DiscreteScheduler.
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
        x = yield from _midpoint_step(x, sigma, target)
    return x


@sampler(
    order=2,
    evaluations=2,
    native_flow=True,
    discards_penultimate=True,
    comfyui=("dpm_2_ancestral",),
    a1111=("DPM2 a",),
    diffusers=("KDPM2AncestralDiscreteScheduler",),
)
def dpm2_a(
    x: Tensor,
    sigmas: Sequence[float],
    *,
    noise: NoiseSource,
    path: Path,
    eta: Eta = 1.0,
    s_noise: NoiseScale = 1.0,
) -> Sampler:
    """`dpm2` below each target, then fresh noise up to it.

    k-diffusion `sample_dpm_2_ancestral`; diffusers' KDPM2AncestralDiscreteScheduler. On the flow path the middle is in
    the flow's sigma, as in ComfyUI: the ratio of noise to data starts near infinity, far from every middle.
    """
    for sigma, target in pairwise(sigmas):
        if isinstance(path, RectifiedFlow):
            down = level_below(path, sigma, target, eta)
            x = yield from _midpoint_step(x, sigma, down)
            if down < target:
                x = raised(x, path, down, target, s_noise * noise.like(x))
        else:
            down, up = ancestral_split(sigma, target, eta)
            x = yield from _midpoint_step(x, sigma, down)
            if up > 0:
                x = x + s_noise * up * noise.like(x)
    return x


def _midpoint_step(x: Tensor, sigma: float, target: float) -> Sampler:
    denoised = yield ModelCall(x, sigma)
    slope = (x - denoised) / sigma
    if target == 0:
        return denoised
    middle = math.sqrt(sigma * target)
    x_middle = denoised + middle * slope
    denoised = yield ModelCall(x_middle, middle)
    return x + (target - sigma) * (x_middle - denoised) / middle
