"""DDIM, and DDPM's own sampler."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

import torch
from torch import Tensor

from undertow.diffusion.schedules import NoiseSchedule, Schedule
from undertow.sampling.entry import DIFFUSION, sampler
from undertow.sampling.euler import ancestral_split
from undertow.sampling.noise import NoiseSource
from undertow.sampling.options import Eta, NumberRange
from undertow.sampling.protocol import ModelCall, Sampler, require_noise


@sampler(
    order=1,
    comfyui=("ddim",),
    a1111=("DDIM",),
    diffusers=("DDIMScheduler", "DDIMParallelScheduler"),
)
def ddim(
    x: Tensor,
    sigmas: Sequence[float],
    *,
    noise: NoiseSource | None = None,
    schedule: Schedule | None = None,
    eta: Eta = 0.0,
    stride: Annotated[
        float, NumberRange(meaning="timesteps that a step goes down, as in diffusers; 0: to the next level", whole=True)
    ] = 0,
) -> Sampler:
    """Predicted x0, plus the direction to x, plus fresh noise: deterministic at eta = 0, DDPM at eta = 1.

    arXiv:2010.02502, eq. 12 and 16, divided by sqrt(abar) of the target: sigma_t(eta) / sqrt(abar) becomes the `up`
    of an ancestral step and the square root before the direction its `down`. diffusers' DDIMScheduler, which steps down
    1000 // n timesteps also where the next evaluation is elsewhere (stride), and takes its x for one at that level.
    """
    levels = NoiseSchedule.scaled_linear() if schedule is None else schedule
    for sigma, following in pairwise(sigmas):
        target = following if stride == 0 else _strided(levels, sigma, int(stride), sigmas[-1])
        denoised = yield ModelCall(x, sigma)
        down, up = ancestral_split(sigma, target, eta)
        direction = (x - denoised) / sigma
        x = denoised + down * direction
        if up > 0:
            x = x + up * require_noise(noise, "ddim with eta > 0").like(x)
        if target != following:
            x = x * ((1 + following**2) / (1 + target**2)) ** 0.5
    return x


def _strided(schedule: Schedule, sigma: float, stride: int, end: float) -> float:
    """The level a number of timesteps below, or the end of the grid below the first of them."""
    timestep = round(schedule.sigma_to_timestep(torch.tensor([sigma], dtype=torch.float64)).item()) - stride
    return schedule.sigmas[timestep].item() if timestep >= 0 else end


@sampler(
    order=1,
    comfyui=("ddpm",),
    a1111=("DDPM",),
    diffusers=("DDPMScheduler", "DDPMParallelScheduler"),
)
def ddpm(x: Tensor, sigmas: Sequence[float], *, noise: NoiseSource) -> Sampler:
    """A draw from the posterior q(x_target | x, denoised) at every step.

    arXiv:2006.11239, eq. 6 and 7 with the smaller variance beta-tilde, divided by sqrt(abar) of the target. diffusers'
    DDPMScheduler (fixed_small).
    """
    for sigma, target in pairwise(sigmas):
        denoised = yield ModelCall(x, sigma)
        kept = (target / sigma) ** 2
        x = kept * x + (1 - kept) * denoised
        if target > 0:
            x = x + target * (1 - kept) ** 0.5 * noise.like(x)
    return x


@sampler(order=1, paths=DIFFUSION, inverse=True, diffusers=("DDIMInverseScheduler",))
def ddim_inverse(x: Tensor, sigmas: Sequence[float]) -> Sampler:
    """From a clean x, at the last level of the grid, up to its first: the noise from which `ddim` finds x again.

    arXiv:2105.05233, appendix F; arXiv:2211.09794, section 3.1. diffusers' DDIMInverseScheduler: the network sees x as
    if it were at the target already. Give it the same grid as `ddim`.
    """
    for sigma, target in pairwise(reversed(sigmas)):
        seen = x * ((1 + target**2) / (1 + sigma**2)) ** 0.5
        denoised = yield ModelCall(seen, target)
        x = x + (target - sigma) * (seen - denoised) / target
    return x
