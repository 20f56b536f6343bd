"""Samplers of distilled models, whose every estimate is a picture: LCM and TCD."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

import torch
from torch import Tensor

from undertow.diffusion.schedules import NoiseSchedule, Schedule
from undertow.sampling.entry import DIFFUSION, sampler
from undertow.sampling.noise import NoiseSource
from undertow.sampling.options import NoiseScale, NumberRange
from undertow.sampling.protocol import ModelCall, Sampler


@sampler(order=None, comfyui=("lcm",), a1111=("LCM",), diffusers=("LCMScheduler",))
def lcm(x: Tensor, sigmas: Sequence[float], *, noise: NoiseSource, s_noise: NoiseScale = 1.0) -> Sampler:
    """The estimate, with all the noise of the next level: multistep consistency sampling.

    arXiv:2303.01469, algorithm 1; arXiv:2310.04378; ComfyUI and Forge `sample_lcm`. diffusers' LCMScheduler adds a
    millionth of x to the estimate (its boundary condition, with timesteps scaled by 10).
    """
    for sigma, target in pairwise(sigmas):
        x = yield ModelCall(x, sigma)
        if target > 0:
            x = x + s_noise * target * noise.like(x)
    return x


@sampler(order=None, paths=DIFFUSION, diffusers=("TCDScheduler",))
def tcd(
    x: Tensor,
    sigmas: Sequence[float],
    *,
    noise: NoiseSource,
    schedule: Schedule | None = None,
    gamma: Annotated[float, NumberRange(meaning="share of a step that is noise again", high=1.0)] = 0.3,
    s_noise: NoiseScale = 1.0,
) -> Sampler:
    """A step below the target, at (1 - gamma) of its timestep, then noise up to it: gamma = 0 is `ddim`, 1 is `lcm`.

    arXiv:2402.19159, algorithm 4, "strategic stochastic sampling"; diffusers' TCDScheduler, where gamma is called eta.
    Without the model's own timesteps they are Stable Diffusion's: all models distilled this way come from it.
    """
    levels = schedule if isinstance(schedule, NoiseSchedule) else NoiseSchedule.scaled_linear()
    for sigma, target in pairwise(sigmas):
        denoised = yield ModelCall(x, sigma)
        down = _below(target, gamma, levels)
        x = denoised + down * (x - denoised) / sigma
        if target > down:
            x = x + s_noise * math.sqrt(target**2 - down**2) * noise.like(x)
    return x


def _below(target: float, gamma: float, schedule: NoiseSchedule) -> float:
    """Sigma at (1 - gamma) of the timestep of `target`, rounded down to a trained one."""
    if target == 0 or gamma == 0:
        return target
    level = torch.tensor([min(target, schedule.sigma_max)], dtype=torch.float64)
    timestep = schedule.sigma_to_timestep(level).item()
    return min(target, schedule.sigmas[math.floor((1 - gamma) * timestep + 1e-3)].item())
