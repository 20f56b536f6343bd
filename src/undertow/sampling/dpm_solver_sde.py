"""DPM-Solver++ for the stochastic differential equation, with noise from a Brownian path."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import Tensor

from undertow.sampling.dpm_solver import History
from undertow.sampling.entry import sampler
from undertow.sampling.euler import ancestral_split
from undertow.sampling.exponential import decay, phi_2, step_length
from undertow.sampling.noise import NoiseSource
from undertow.sampling.options import Eta, MiddlePoint, NoiseScale
from undertow.sampling.protocol import ModelCall, Sampler


@sampler(
    order=2,
    evaluations=2,
    comfyui=("dpmpp_sde", "dpmpp_sde_gpu"),
    a1111=("DPM++ SDE",),
    diffusers=("DPMSolverSDEScheduler",),
)
def dpmpp_sde(
    x: Tensor,
    sigmas: Sequence[float],
    *,
    noise: NoiseSource,
    eta: Eta = 1.0,
    s_noise: NoiseScale = 1.0,
    r: MiddlePoint = 0.5,
) -> Sampler:
    """A noisy evaluation at r of each step, in log sigma, then the noisy step; two evaluations, one for a step to 0.

    k-diffusion `sample_dpmpp_sde`, after arXiv:2211.01095, section 5 and appendix; diffusers' DPMSolverSDEScheduler.
    """
    brownian = None
    for sigma, target in pairwise(sigmas):
        denoised = yield ModelCall(x, sigma)
        if target == 0:
            return denoised
        brownian = noise.brownian(x, sigmas) if brownian is None else brownian
        middle = sigma * (target / sigma) ** r
        down, up = ancestral_split(sigma, middle, eta)
        x_middle = (down / sigma) * x + (1 - down / sigma) * denoised
        if up > 0:
            x_middle = x_middle + s_noise * up * brownian.between(sigma, middle, x)
        denoised_middle = yield ModelCall(x_middle, middle)
        down, up = ancestral_split(sigma, target, eta)
        estimate = denoised + (denoised_middle - denoised) / (2 * r)
        x = (down / sigma) * x + (1 - down / sigma) * estimate
        if up > 0:
            x = x + s_noise * up * brownian.between(sigma, target, x)
    return x


@sampler(
    order=2,
    comfyui=("dpmpp_2m_sde", "dpmpp_2m_sde_gpu"),
    a1111=("DPM++ 2M SDE",),
    diffusers=("DPMSolverMultistepScheduler(algorithm_type=sde-dpmsolver++)",),
)
def dpmpp_2m_sde(
    x: Tensor, sigmas: Sequence[float], *, noise: NoiseSource, eta: Eta = 1.0, s_noise: NoiseScale = 1.0
) -> Sampler:
    """The second-order multistep solver of the stochastic equation, one evaluation a step.

    k-diffusion `sample_dpmpp_2m_sde` (midpoint); diffusers' DPMSolverMultistepScheduler (sde-dpmsolver++, midpoint).
    """
    return (yield from _second_order(x, sigmas, noise, eta, s_noise, "midpoint"))


@sampler(
    order=2,
    comfyui=("dpmpp_2m_sde_heun", "dpmpp_2m_sde_heun_gpu"),
    a1111=("DPM++ 2M SDE Heun",),
    diffusers=("DPMSolverMultistepScheduler(algorithm_type=sde-dpmsolver++; solver_type=heun)",),
)
def dpmpp_2m_sde_heun(
    x: Tensor, sigmas: Sequence[float], *, noise: NoiseSource, eta: Eta = 1.0, s_noise: NoiseScale = 1.0
) -> Sampler:
    """`dpmpp_2m_sde` with the other weight of the slope.

    k-diffusion `sample_dpmpp_2m_sde` (heun); diffusers' DPMSolverMultistepScheduler (sde-dpmsolver++, heun).
    """
    return (yield from _second_order(x, sigmas, noise, eta, s_noise, "heun"))


def _second_order(
    x: Tensor,
    sigmas: Sequence[float],
    noise: NoiseSource,
    eta: float,
    s_noise: float,
    solver: Literal["midpoint", "heun"],
) -> Sampler:
    brownian, previous, last_h = None, None, 0.0
    for sigma, target in pairwise(sigmas):
        denoised = yield ModelCall(x, sigma)
        if target == 0:
            return denoised
        h = step_length(sigma, target)
        total = (1 + eta) * h
        x = math.exp(-total) * x + decay(total) * denoised
        if previous is not None:
            weight = decay(total) / 2 if solver == "midpoint" else phi_2(total)
            x = x + weight * (denoised - previous) * h / last_h
        if eta > 0:
            brownian = noise.brownian(x, sigmas) if brownian is None else brownian
            x = x + s_noise * target * math.sqrt(decay(2 * eta * h)) * brownian.between(sigma, target, x)
        previous, last_h = denoised, h
    return x


@sampler(
    order=2,
    comfyui=("dpmpp_3m_sde", "dpmpp_3m_sde_gpu"),
    a1111=("DPM++ 3M SDE",),
)
def dpmpp_3m_sde(
    x: Tensor, sigmas: Sequence[float], *, noise: NoiseSource, eta: Eta = 1.0, s_noise: NoiseScale = 1.0
) -> Sampler:
    """The third-order multistep solver of the stochastic equation, one evaluation a step.

    k-diffusion `sample_dpmpp_3m_sde`.
    """
    brownian, history = None, History()
    for sigma, target in pairwise(sigmas):
        denoised = yield ModelCall(x, sigma)
        if target == 0:
            return denoised
        h = step_length(sigma, target)
        total = (1 + eta) * h
        x = math.exp(-total) * x + decay(total) * denoised + history.correction(denoised, h, total)
        if eta > 0:
            brownian = noise.brownian(x, sigmas) if brownian is None else brownian
            x = x + s_noise * target * math.sqrt(decay(2 * eta * h)) * brownian.between(sigma, target, x)
    return x
