"""Grids that are even in a curve of sigma, or in the quantiles of a distribution.

polyexponential     k-diffusion, A1111, ComfyUI: even in a power of log sigma; `exponential` at rho = 1
vp                  even in the time of a variance-preserving equation, arXiv:2006.11239 made continuous
                    (arXiv:2011.13456, eq. 32); k-diffusion and ComfyUI start at its sigma 152, here at sigma_max
beta                arXiv:2407.12173: quantiles of Beta(0.6, 0.6) over the trained levels
beta_comfyui        the same rounded to trained levels, of which repeated ones are left out: may have fewer steps
beta_sigma          A1111, Forge, diffusers `use_beta_sigmas`: the quantiles over sigma itself, another grid
kl_optimal          even in the arc tangent of sigma (A1111 pull request 15608), as in ComfyUI
kl_optimal_forge    the same with the step to 0 left out: the last level is sigma_min (A1111, Forge)
laplace             arXiv:2407.03297: quantiles of a Laplace distribution of log sigma; ComfyUI clamps them, here it
                    is cut off at sigma_max and sigma_min
linear_quadratic    ComfyUI, Mochi: linear to a fortieth below sigma_max over half of the steps, then quadratic
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.special import betaincinv
from torch import Tensor

from undertow.diffusion.schedules import Schedule
from undertow.errors import InvalidInput

Curve = Callable[[Tensor], Tensor]
Shares = np.ndarray[tuple[int], np.dtype[np.float64]]

_BETA = 0.6
"""Both parameters of the beta distribution: its authors' choice."""


def polyexponential(schedule: Schedule, steps: int, *, rho: float = 1.0) -> list[float]:
    """Even in (log sigma)^(1/rho), between the ends."""
    if not (math.isfinite(rho) and rho > 0):
        raise InvalidInput("rho", rho, "a positive number", "1 is the exponential grid")
    return _between(_down_to_zero(steps) ** rho, schedule, torch.log, torch.exp)


def vp(schedule: Schedule, steps: int) -> list[float]:
    """Even in the time at which beta from 0.1 to 20 has reached sigma."""
    slope, lowest = 19.9, 0.1

    def time(sigma: Tensor) -> Tensor:
        return ((lowest**2 + 2 * slope * torch.log1p(sigma**2)).sqrt() - lowest) / slope

    def sigma(time: Tensor) -> Tensor:
        return torch.expm1(slope * time**2 / 2 + lowest * time).sqrt()

    return _between(_down_to_zero(steps), schedule, time, sigma)


def beta(schedule: Schedule, steps: int) -> list[float]:
    """Beta quantiles over the trained levels, between which log sigma is interpolated."""
    places = torch.from_numpy(_beta_quantiles(1 - np.arange(steps) / steps)) * (len(schedule) - 1)
    low = places.floor().long().clamp(max=len(schedule) - 2)
    log_sigmas = schedule.sigmas.log()
    return [*torch.lerp(log_sigmas[low], log_sigmas[low + 1], places - low).exp().tolist(), 0.0]


def beta_comfyui(schedule: Schedule, steps: int) -> list[float]:
    """Beta quantiles rounded to trained levels, each once."""
    places = np.rint(_beta_quantiles(1 - np.arange(steps) / steps) * (len(schedule) - 1)).astype(int)
    return [*(schedule.sigmas[place].item() for place in dict.fromkeys(places.tolist())), 0.0]


def beta_sigma(schedule: Schedule, steps: int) -> list[float]:
    """Beta quantiles over sigma."""
    quantiles = torch.from_numpy(_beta_quantiles(_down_to_zero(steps).numpy()))
    return _between(quantiles, schedule, lambda sigma: sigma, lambda sigma: sigma)


def kl_optimal(schedule: Schedule, steps: int) -> list[float]:
    """Even in the arc tangent of sigma."""
    return _between(_down_to_zero(steps), schedule, torch.atan, torch.tan)


def kl_optimal_forge(schedule: Schedule, steps: int) -> list[float]:
    """The same, ending at sigma_min."""
    return kl_optimal(schedule, steps + 1)[:-1]


def laplace(schedule: Schedule, steps: int) -> list[float]:
    """Quantiles of a Laplace distribution of log sigma around 0, of scale 1/2."""

    def quantile(sigma: Tensor) -> Tensor:
        size = sigma.log() / 0.5
        return 0.5 + 0.5 * size.sign() * -torch.expm1(-size.abs())

    def sigma(quantile: Tensor) -> Tensor:
        apart = quantile - 0.5
        return (-0.5 * apart.sign() * torch.log1p(-2 * apart.abs())).exp()

    return _between(_down_to_zero(steps), schedule, quantile, sigma)


def linear_quadratic(schedule: Schedule, steps: int) -> list[float]:
    """A fortieth of the way in the first half of the steps, evenly, and the rest along a parabola."""
    if steps == 1:
        return [schedule.sigma_max, 0.0]
    threshold, linear = 0.025, steps // 2
    rest = steps - linear
    # The parabola goes on where the line ends, with its slope, and reaches 1 after `rest` steps.
    slope = threshold / linear
    curve = (1 - threshold - slope * rest) / rest**2
    gone = [index * slope for index in range(linear)]
    gone += [threshold + slope * index + curve * index**2 for index in range(rest)]
    return [*(schedule.sigma_max * (1 - share) for share in gone), 0.0]


def _down_to_zero(steps: int) -> Tensor:
    """From 1 to 0; 1 alone for one step."""
    return torch.linspace(1, 0, steps, dtype=torch.float64)


def _between(places: Tensor, schedule: Schedule, curve: Curve, inverse: Curve) -> list[float]:
    """Levels whose `curve` lies at each place between that of sigma_min, 0, and that of sigma_max, 1."""
    low, high = curve(torch.tensor([schedule.sigma_min, schedule.sigma_max], dtype=torch.float64))
    sigmas = inverse(low + places * (high - low)).clamp(schedule.sigma_min, schedule.sigma_max)
    return [*sigmas.tolist(), 0.0]


def _beta_quantiles(shares: Shares) -> Shares:
    return betaincinv(_BETA, _BETA, shares)
