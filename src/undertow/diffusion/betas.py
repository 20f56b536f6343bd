"""The variances of DDPM's forward steps (arXiv:2006.11239, eq. 2) as tables, from the records of `schedulers.betas`."""

import math

import torch
from jaxtyping import Float64
from torch import Tensor

from undertow.schedulers.betas import (
    LARGEST_BETA,
    Betas,
    CosineBetas,
    LinearBetas,
    ScaledLinearBetas,
    TabledBetas,
)


def beta_values(betas: Betas, steps: int) -> Float64[Tensor, "steps"]:
    """Beta of every timestep. Errors: `ConfigError`."""
    betas.require(steps)
    match betas:
        case LinearBetas(start=start, end=end):
            return torch.linspace(start, end, steps, dtype=torch.float64)
        case ScaledLinearBetas(start=start, end=end):
            return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
        case CosineBetas():
            times = torch.arange(steps + 1, dtype=torch.float64) / steps
            alphas_cumprod = torch.cos((times + 0.008) / 1.008 * math.pi / 2) ** 2
            return (1 - alphas_cumprod[1:] / alphas_cumprod[:-1]).clamp(max=LARGEST_BETA)
        case TabledBetas(table=table):
            return torch.tensor(table, dtype=torch.float64)


def zero_terminal_snr(alphas_cumprod: Float64[Tensor, "steps"]) -> Float64[Tensor, "steps"]:
    """The same abar, shifted and scaled so that the first stays and the last is 0 (arXiv:2305.08891, algorithm 1)."""
    root = alphas_cumprod.sqrt()
    return ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2
