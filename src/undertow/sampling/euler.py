"""Euler's method, and its ancestral variant."""

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from undertow.diffusion.paths import Path, RectifiedFlow
from undertow.sampling.churn import Churn
from undertow.sampling.entry import sampler
from undertow.sampling.noise import NoiseSource
from undertow.sampling.options import ChurnAmount, Eta, HighestSigma, LowestSigma, NoiseScale
from undertow.sampling.protocol import ModelCall, Sampler


@sampler(order=1, native_flow=True, comfyui=("euler",), a1111=("Euler",), diffusers=("EulerDiscreteScheduler",))
def euler(
    x: Tensor,
    sigmas: Sequence[float],
    *,
    noise: NoiseSource | None = None,
    s_churn: ChurnAmount = 0.0,
    s_tmin: LowestSigma = 0.0,
    s_tmax: HighestSigma = math.inf,
    s_noise: NoiseScale = 1.0,
) -> Sampler:
    """Euler steps along dx/dsigma = (x - denoised) / sigma.

    arXiv:2206.00364, algorithm 2 without its correction; k-diffusion `sample_euler`. Equals diffusers'
    EulerDiscreteScheduler, EDMEulerScheduler and, on the flow path, FlowMatchEulerDiscreteScheduler.
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
        denoised = yield ModelCall(x, sigma)
        slope = (x - denoised) / sigma
        x = denoised + target * slope  # x + (target - sigma) slope without its cancellation at large sigma
    return x


@sampler(order=1, comfyui=("euler_ancestral",), a1111=("Euler a",), diffusers=("EulerAncestralDiscreteScheduler",))
def euler_a(
    x: Tensor, sigmas: Sequence[float], *, noise: NoiseSource, eta: Eta = 1.0, s_noise: NoiseScale = 1.0
) -> Sampler:
    """Euler steps below each target, then fresh noise up to it: "ancestral", eta = 0 is `euler`.

    k-diffusion `sample_euler_ancestral`; diffusers' EulerAncestralDiscreteScheduler. s_noise scales the fresh noise.
    """
    for sigma, target in pairwise(sigmas):
        denoised = yield ModelCall(x, sigma)
        down, up = ancestral_split(sigma, target, eta)
        slope = (x - denoised) / sigma
        x = denoised + down * slope
        if up > 0:
            x = x + s_noise * up * noise.like(x)
    return x


def ancestral_split(sigma: float, target: float, eta: float) -> tuple[float, float]:
    """(where to step, how much noise to add), whose variances add up to target^2.

    k-diffusion `get_ancestral_step`; `up` is sigma_t(eta) of arXiv:2010.02502, eq. 16, in our scaling.
    """
    up = min(target, eta * (target**2 * (sigma**2 - target**2) / sigma**2) ** 0.5)
    return (target**2 - up**2) ** 0.5, up


def level_below(path: Path, sigma: float, target: float, eta: float) -> float:
    """Where an ancestral step from `sigma` to `target` goes before its noise, on either path.

    On the flow path the split is that of the ratios of noise to data, s / (1 - s): variances add up there. At sigma = 1
    that ratio is infinite, and all of the target's noise may be fresh.
    """
    if eta == 0:
        return target
    if not isinstance(path, RectifiedFlow):
        return ancestral_split(sigma, target, eta)[0]
    ratio = math.inf if sigma == 1 else sigma / (1 - sigma)
    there = target / (1 - target)
    up = min(there, eta * there * math.sqrt(1 - (there / ratio) ** 2))
    down = math.sqrt(there**2 - up**2)
    return down / (1 + down)


def raised(x: Tensor, path: Path, sigma: float, target: float, noise: Tensor) -> Tensor:
    """x at `sigma` with fresh noise up to a higher level, on either path."""
    if not isinstance(path, RectifiedFlow):
        return x + math.sqrt(target**2 - sigma**2) * noise
    kept = (1 - target) / (1 - sigma)
    return kept * x + math.sqrt(target**2 - (kept * sigma) ** 2) * noise
