"""Which levels of noise a training step visits: distributions over u in (0, 1), and u as a network's timestep."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from undertow.diffusion.schedules import EDMSchedule, FlowSchedule, NoiseSchedule, Schedule
from undertow.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class UniformTimesteps:
    """Every level equally often (DDPM, arXiv:2006.11239, algorithm 1)."""

    def draw(self, count: int, generator: torch.Generator) -> Float64[Tensor, "batch"]:
        """One u per row."""
        return torch.rand(count, dtype=torch.float64, generator=generator)


@dataclass(frozen=True, kw_only=True)
class LogitNormalTimesteps:
    """u = sigmoid(mean + std n), n normal: more of the middle, where a flow is hardest (arXiv:2403.03206, eq. 19).

    A positive mean visits noisier levels. stratified: one u from each of as many equally likely parts as there are
    rows, so that every batch visits all levels (as k-diffusion's `stratified_uniform`). Errors: `ConfigError`.
    """

    mean: float = 0.0
    std: float = 1.0
    stratified: bool = False

    def __post_init__(self):
        if not self.std > 0:
            raise ConfigError("timesteps.std", self.std, "must be positive")

    def draw(self, count: int, generator: torch.Generator) -> Float64[Tensor, "batch"]:
        """One u per row."""
        if self.stratified:
            offsets = torch.rand(count, dtype=torch.float64, generator=generator)
            normal = torch.special.ndtri((torch.randperm(count, generator=generator) + offsets) / count)
        else:
            normal = torch.randn(count, dtype=torch.float64, generator=generator)
        return torch.sigmoid(self.mean + self.std * normal)


TimestepDistribution = UniformTimesteps | LogitNormalTimesteps


def timesteps_at(schedule: Schedule, u: Float64[Tensor, "batch"]) -> Float64[Tensor, "batch"]:
    """u as timesteps: a trained level 0, 1, ... of a DDPM schedule, any number up to 1000 of a flow (trap T14), EDM's
    c_noise evenly between its ends."""
    match schedule:
        case NoiseSchedule(steps=steps):
            return (u * steps).floor().clamp(max=steps - 1)
        case FlowSchedule(steps=steps):
            return u * steps
        case EDMSchedule(sigma_min=low, sigma_max=high):
            return (math.log(low) + u * math.log(high / low)) / 4
