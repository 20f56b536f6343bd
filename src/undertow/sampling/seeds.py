"""SEEDS: exponential solvers of the stochastic equation without derivatives."""

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from undertow.sampling.entry import sampler
from undertow.sampling.exponential import decay, phi_2, step_length
from undertow.sampling.noise import NoiseSource
from undertow.sampling.options import Eta, MiddlePoint, NoiseScale
from undertow.sampling.protocol import ModelCall, Sampler


@sampler(order=2, evaluations=2, comfyui=("seeds_2",))
def seeds_2(
    x: Tensor,
    sigmas: Sequence[float],
    *,
    noise: NoiseSource,
    eta: Eta = 1.0,
    s_noise: NoiseScale = 1.0,
    r: MiddlePoint = 0.5,
) -> Sampler:
    """SEEDS-2: an evaluation at r of each step, in log sigma, that shares its noise with the step; two a step.

    arXiv:2305.14267, algorithm 2, with data prediction; ComfyUI `sample_seeds_2`.
    """
    for sigma, target in pairwise(sigmas):
        denoised = yield ModelCall(x, sigma)
        if target == 0:
            return denoised
        h = step_length(sigma, target)
        shared = _Noise(noise, eta, s_noise)
        x_middle = shared.step(x, r * h, decay(r * h * (1 + eta)) * denoised, sigma)
        middle = sigma * math.exp(-r * h)
        denoised_middle = yield ModelCall(x_middle, middle)
        estimate = denoised + (denoised_middle - denoised) / (2 * r)
        x = shared.step(x, h, decay(h * (1 + eta)) * estimate, sigma)
    return x


@sampler(order=3, evaluations=3, comfyui=("seeds_3",))
def seeds_3(
    x: Tensor, sigmas: Sequence[float], *, noise: NoiseSource, eta: Eta = 1.0, s_noise: NoiseScale = 1.0
) -> Sampler:
    """SEEDS-3: evaluations at one and two thirds of each step that share their noise with it; three a step.

    arXiv:2305.14267, algorithm 3, with data prediction; ComfyUI `sample_seeds_3`.
    """
    for sigma, target in pairwise(sigmas):
        denoised = yield ModelCall(x, sigma)
        if target == 0:
            return denoised
        h = step_length(sigma, target)
        total = h * (1 + eta)
        shared = _Noise(noise, eta, s_noise)
        x_third = shared.step(x, h / 3, decay(total / 3) * denoised, sigma)
        denoised_third = yield ModelCall(x_third, sigma * math.exp(-h / 3))
        change = 2 * phi_2(2 * total / 3) * (denoised_third - denoised)
        x_later = shared.step(x, 2 * h / 3, decay(2 * total / 3) * denoised + change, sigma)
        denoised_later = yield ModelCall(x_later, sigma * math.exp(-2 * h / 3))
        change = 1.5 * phi_2(total) * (denoised_later - denoised)
        x = shared.step(x, h, decay(total) * denoised + change, sigma)
    return x


class _Noise:
    """The noise of one step, continued from each of its stages to the next."""

    def __init__(self, source: NoiseSource, eta: float, s_noise: float):
        self._source, self._eta, self._s_noise = source, eta, s_noise
        self._reached = 0.0
        self._drawn: Tensor | float = 0.0

    def step(self, x: Tensor, h: float, change: Tensor, sigma: float) -> Tensor:
        """x after h of the step from sigma, whose estimates changed it by `change`."""
        x = math.exp(-h * (1 + self._eta)) * x + change
        if self._eta == 0 or self._s_noise == 0:
            return x
        further = self._eta * (h - self._reached)
        fresh = math.sqrt(decay(2 * further)) * self._source.like(x)
        self._drawn = math.exp(-further) * self._drawn + fresh
        self._reached = h
        return x + self._s_noise * sigma * math.exp(-h) * self._drawn
