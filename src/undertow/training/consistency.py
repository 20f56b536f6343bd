"""Consistency models (arXiv:2303.01469): networks whose estimate of x0 is the same at every noise level of one
trajectory, so that one step, or a few, draw a picture. The mathematics of two ways to train them.

All in sampler space, x = x0 + sigma noise, where a trajectory's direction is (x - D) / sigma for the estimate D.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from undertow.diffusion.paths import per_row
from undertow.diffusion.schedules import NoiseSchedule
from undertow.errors import ConfigError
from undertow.schedulers.spacing import distilled_timesteps
from undertow.shapes import Sigmas, Timesteps

Rows = Float[Tensor, "batch ..."]

SIGMA_DATA = 0.5
TIMESTEP_SCALING = 10.0
"""Of the boundary condition, as in LCM's code and diffusers' `LCMScheduler`."""

HUBER_SCALE = 1e-3
"""Of one number (diffusers' train_lcm_distill_sd_wds.py, `huber_c`)."""


def boundary_scalings(timesteps: Timesteps) -> tuple[Float64[Tensor, "batch"], Float64[Tensor, "batch"]]:
    """c_skip and c_out of f(x, t) = c_skip x + c_out D(x, t), with x scaled to the network's input: 1 and 0 at timestep
    0, where a consistency function is the identity, and nearly 0 and 1 elsewhere (arXiv:2310.04378, section 4.1;
    diffusers' `LCMScheduler.get_scalings_for_boundary_condition_discrete`)."""
    scaled = timesteps.to(torch.float64) * TIMESTEP_SCALING
    total = scaled**2 + SIGMA_DATA**2
    return SIGMA_DATA**2 / total, scaled / total**0.5


def ddim_step(x: Rows, denoised: Rows, sigma: Sigmas, target: Sigmas) -> Rows:
    """x at the lower level `target`, along the straight line through the estimate (arXiv:2010.02502, eq. 12)."""
    return denoised + per_row(target / sigma, x) * (x - denoised)


@dataclass(frozen=True, kw_only=True)
class DistilledLevels:
    """The levels at which a consistency model is distilled, and of which a sampler picks its steps: `count` timesteps,
    evenly spaced (arXiv:2310.04378, section 4.3; diffusers' `original_inference_steps`). Errors: `ConfigError`."""

    schedule: NoiseSchedule
    count: int = 50

    def __post_init__(self):
        if not 2 <= self.count <= len(self.schedule):
            raise ConfigError("original_steps", self.count, f"must be from 2 to {len(self.schedule)}")

    @property
    def timesteps(self) -> Float64[Tensor, "count"]:
        """Increasing; timestep 0, the boundary, is not one of them."""
        return torch.from_numpy(distilled_timesteps(self.count, len(self.schedule), self.count)[::-1].copy())

    def neighbors(self, u: Float64[Tensor, "batch"]) -> tuple[Timesteps, Timesteps]:
        """For u in [0, 1), the timestep at this share of the levels and the next one below it."""
        index = (u * self.count).long().clamp(max=self.count - 1)
        lower = torch.cat([torch.zeros(1, dtype=torch.float64), self.timesteps[:-1]])
        return self.timesteps[index], lower[index]


@dataclass(frozen=True, kw_only=True)
class Tightening:
    """The lower level r of a pair (r, t) in consistency tuning, which comes nearer to t stage by stage:
    r / t = 1 - (1 + k sigmoid(-b t)) / q^(stage + 1), not below 0 (arXiv:2406.14548, section 3.3, and the authors'
    `ECMLoss.t_to_r_sigmoid`, with their q and k). At first most r are 0, and the network goes on as the diffusion model
    that it is.

    every: steps of a stage. stages: how many, the last of which lasts. b: half the authors', whose data have a standard
    deviation of 0.5 where latents have 1. Errors: `ConfigError`.
    """

    every: int
    stages: int = 8
    q: float = 2.0
    k: float = 8.0
    b: float = 0.5

    def __post_init__(self):
        for name, value, least in (("tighten_every", self.every, 1), ("stages", self.stages, 1)):
            if value < least:
                raise ConfigError(name, value, f"must be at least {least}")
        if not (math.isfinite(self.q) and self.q > 1):
            raise ConfigError("q", self.q, "must be above 1")

    def stage(self, step: int) -> int:
        """From 0; steps count from 1."""
        return min((step - 1) // self.every, self.stages - 1)

    def lower(self, sigma: Sigmas, step: int) -> Sigmas:
        """r for every t."""
        distance = (1 + self.k * torch.sigmoid(-self.b * sigma)) / self.q ** (self.stage(step) + 1)
        return (sigma * (1 - distance)).clamp(min=0)


def tuning_target(denoised: Rows, x0: Rows, is_data: Bool[Tensor, "batch"]) -> Rows:
    """What the estimate at the upper level should be: that at the lower one, or the data where the lower one is 0."""
    rows = is_data.to(denoised.device).reshape(-1, *[1] * (denoised.ndim - 1))
    return torch.where(rows, x0, denoised)


def row_distance(one: Rows, other: Rows, c: float = 0.0) -> Float[Tensor, "batch"]:
    """Pseudo-Huber distance of whole rows, sqrt(|a - b|^2 + c^2) - c, whose gradient does not grow with the distance
    (arXiv:2310.14189, eq. 8; c = 0 in `ECMLoss`). The root is kept away from 0, where it has no derivative."""
    squared = (one - other).square().flatten(1).sum(1)
    return (squared + max(c, 1e-8) ** 2).sqrt() - c


def number_distance(one: Rows, other: Rows, c: float = HUBER_SCALE) -> Float[Tensor, "batch"]:
    """Mean pseudo-Huber distance of the numbers of a row."""
    return ((one - other).square() + c**2).sqrt().sub(c).flatten(1).mean(1)
