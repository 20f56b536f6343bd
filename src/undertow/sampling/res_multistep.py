"""Refined exponential solver, multistep, with its ancestral and CFG++ variants."""

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from undertow.sampling.entry import sampler
from undertow.sampling.euler import ancestral_split
from undertow.sampling.exponential import decay
from undertow.sampling.noise import NoiseSource
from undertow.sampling.options import Eta, NoiseScale
from undertow.sampling.protocol import ModelCall, Sampler


@sampler(order=2, comfyui=("res_multistep",))
def res_multistep(x: Tensor, sigmas: Sequence[float]) -> Sampler:
    """The second-order multistep solver with the refined weights of two estimates; one evaluation a step.

    arXiv:2308.02157, section 4; ComfyUI `sample_res_multistep`.
    """
    previous: Tensor | None = None
    for index, (sigma, target) in enumerate(pairwise(sigmas)):
        denoised = yield ModelCall(x, sigma)
        if previous is None or target == 0:
            x = denoised + target * (x - denoised) / sigma
        else:
            x = refined(x, sigma, target, sigmas[index - 1] / sigma, denoised, previous)
        previous = denoised
    return x


@sampler(order=2, comfyui=("res_multistep_ancestral",))
def res_multistep_a(
    x: Tensor, sigmas: Sequence[float], *, noise: NoiseSource, eta: Eta = 1.0, s_noise: NoiseScale = 1.0
) -> Sampler:
    """`res_multistep` below each target, then fresh noise up to it. ComfyUI `sample_res_multistep_ancestral`."""
    previous: Tensor | None = None
    last_down = sigmas[0]
    for index, (sigma, target) in enumerate(pairwise(sigmas)):
        denoised = yield ModelCall(x, sigma)
        down, up = ancestral_split(sigma, target, eta)
        if previous is None or down == 0:
            x = denoised + down * (x - denoised) / sigma
        else:
            x = refined(x, sigma, down, sigmas[index - 1] / last_down, denoised, previous)
        if up > 0:
            x = x + s_noise * up * noise.like(x)
        previous, last_down = denoised, down
    return x


def refined(x: Tensor, sigma: float, target: float, ratio: float, denoised: Tensor, previous: Tensor) -> Tensor:
    """One step from sigma to target; log(ratio) is how far `previous` lies behind."""
    h = math.log(sigma / target)
    phi_1 = decay(h) / h
    phi_2 = (1 - phi_1) / h
    older = -phi_2 * h / math.log(ratio)
    return math.exp(-h) * x + h * ((phi_1 - older) * denoised + older * previous)
