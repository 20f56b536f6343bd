"""CFG++: the guided estimate, but the direction of the unconditional one (arXiv:2406.08070, algorithm 2).

In the solvers' formulas x - denoised becomes x - unconditional, and denoised keeps its own part. ComfyUI's samplers of
the same names, which give guidance scales their usual size; the paper's lambda from 0 to 1 is scale / 12.5 in A1111.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from undertow.diffusion.guidance import Guided
from undertow.sampling.entry import sampler
from undertow.sampling.euler import ancestral_split
from undertow.sampling.gradient_estimation import Extrapolation
from undertow.sampling.noise import NoiseSource
from undertow.sampling.options import Eta, NoiseScale
from undertow.sampling.protocol import GuidedSampler, ModelCall
from undertow.sampling.res_multistep import refined


@sampler(order=1, guided=True, comfyui=("euler_cfg_pp",), a1111=("DDIM CFG++",))
def euler_cfg_pp(x: Tensor, sigmas: Sequence[float]) -> GuidedSampler:
    """`euler` along the unconditional direction. ComfyUI `sample_euler_cfg_pp`; A1111's DDIM CFG++."""
    for sigma, target in pairwise(sigmas):
        denoised, unconditional = both((yield ModelCall(x, sigma, unconditional=True)))
        x = denoised + target * (x - unconditional) / sigma
    return x


@sampler(order=1, guided=True, comfyui=("euler_ancestral_cfg_pp",))
def euler_a_cfg_pp(
    x: Tensor, sigmas: Sequence[float], *, noise: NoiseSource, eta: Eta = 1.0, s_noise: NoiseScale = 1.0
) -> GuidedSampler:
    """`euler_a` along the unconditional direction. ComfyUI `sample_euler_ancestral_cfg_pp`."""
    for sigma, target in pairwise(sigmas):
        denoised, unconditional = both((yield ModelCall(x, sigma, unconditional=True)))
        down, up = ancestral_split(sigma, target, eta)
        x = denoised + down * (x - unconditional) / sigma
        if up > 0:
            x = x + s_noise * up * noise.like(x)
    return x


@sampler(order=2, evaluations=2, guided=True, comfyui=("dpmpp_2s_ancestral_cfg_pp",))
def dpmpp_2s_a_cfg_pp(
    x: Tensor, sigmas: Sequence[float], *, noise: NoiseSource, eta: Eta = 1.0, s_noise: NoiseScale = 1.0
) -> GuidedSampler:
    """`dpmpp_2s_a` along the unconditional direction.

    ComfyUI `sample_dpmpp_2s_ancestral_cfg_pp` takes the unconditional estimate in the middle of a step for the one at
    its start in the second formula; it then misses the solution by as much however many steps there are. Not so here.
    """
    for sigma, target in pairwise(sigmas):
        denoised, unconditional = both((yield ModelCall(x, sigma, unconditional=True)))
        down, up = ancestral_split(sigma, target, eta)
        if down == 0:
            x = denoised
        else:
            middle = math.sqrt(sigma * down)
            shifted = x + denoised - unconditional
            x_middle = (middle / sigma) * shifted + (1 - middle / sigma) * denoised
            second, _ = both((yield ModelCall(x_middle, middle, unconditional=True)))
            x = (down / sigma) * shifted + (1 - down / sigma) * second
        if up > 0:
            x = x + s_noise * up * noise.like(x)
    return x


@sampler(order=2, guided=True, comfyui=("dpmpp_2m_cfg_pp",))
def dpmpp_2m_cfg_pp(x: Tensor, sigmas: Sequence[float]) -> GuidedSampler:
    """`dpmpp_2m` along the unconditional direction. ComfyUI `sample_dpmpp_2m_cfg_pp`."""
    previous: Tensor | None = None
    last_h = 0.0
    for sigma, target in pairwise(sigmas):
        denoised, unconditional = both((yield ModelCall(x, sigma, unconditional=True)))
        x = denoised + (target / sigma) * (x - unconditional)
        if target > 0:
            h = math.log(sigma / target)
            if previous is not None:
                x = x + (1 - target / sigma) * (denoised - previous) * h / (2 * last_h)
            last_h = h
        previous = unconditional
    return x


@sampler(order=2, guided=True, comfyui=("res_multistep_cfg_pp",))
def res_multistep_cfg_pp(x: Tensor, sigmas: Sequence[float]) -> GuidedSampler:
    """`res_multistep` along the unconditional direction. ComfyUI `sample_res_multistep_cfg_pp`."""
    return (yield from _res_multistep(x, sigmas, None, 0.0, 0.0))


@sampler(order=2, guided=True, comfyui=("res_multistep_ancestral_cfg_pp",))
def res_multistep_a_cfg_pp(
    x: Tensor, sigmas: Sequence[float], *, noise: NoiseSource, eta: Eta = 1.0, s_noise: NoiseScale = 1.0
) -> GuidedSampler:
    """`res_multistep_a` along the unconditional direction. ComfyUI `sample_res_multistep_ancestral_cfg_pp`."""
    return (yield from _res_multistep(x, sigmas, noise, eta, s_noise))


def _res_multistep(
    x: Tensor, sigmas: Sequence[float], noise: NoiseSource | None, eta: float, s_noise: float
) -> GuidedSampler:
    previous: Tensor | None = None
    last_down = sigmas[0]
    for index, (sigma, target) in enumerate(pairwise(sigmas)):
        denoised, unconditional = both((yield ModelCall(x, sigma, unconditional=True)))
        down, up = ancestral_split(sigma, target, eta)
        if previous is None or down == 0:
            x = denoised + down * (x - unconditional) / sigma
        else:
            shifted = x + (denoised - unconditional)
            x = refined(shifted, sigma, down, sigmas[index - 1] / last_down, unconditional, previous)
        if noise is not None and up > 0:
            x = x + s_noise * up * noise.like(x)
        previous, last_down = unconditional, down
    return x


@sampler(order=1, guided=True, comfyui=("gradient_estimation_cfg_pp",))
def gradient_estimation_cfg_pp(x: Tensor, sigmas: Sequence[float], *, ge_gamma: Extrapolation = 2.0) -> GuidedSampler:
    """`gradient_estimation` along the unconditional direction. ComfyUI `sample_gradient_estimation_cfg_pp`."""
    last_slope: Tensor | None = None
    for sigma, target in pairwise(sigmas):
        denoised, unconditional = both((yield ModelCall(x, sigma, unconditional=True)))
        if target == 0:
            return denoised
        slope = (x - unconditional) / sigma
        x = denoised + target * slope
        if last_slope is not None:
            x = x + (target - sigma) * (ge_gamma - 1) * (slope - last_slope)
        last_slope = slope
    return x


def both(estimate: Guided) -> tuple[Tensor, Tensor]:
    """The guided and the unconditional estimate. A driver sends both (`protocol.answered`)."""
    assert estimate.unconditional is not None
    return estimate.denoised, estimate.unconditional
