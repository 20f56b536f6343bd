"""Variances of DDPM's forward steps (arXiv:2006.11239, eq. 2), as records that give a table for any number of steps."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from undertow.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class LinearBetas:
    """Beta linear in the timestep, 1e-4 to 0.02: DDPM on pixels; "sqrt_linear" in LDM (trap T15).

    Source: arXiv:2006.11239, section 4;
    https://github.com/hojonathanho/diffusion/blob/master/diffusion_tf/diffusion_utils_2.py
    """

    start: float = 1e-4
    end: float = 0.02

    def values(self, steps: int) -> Float64[Tensor, "steps"]:
        """Beta of every timestep. Errors: `ConfigError`."""
        _require_range(self.start, self.end)
        return torch.linspace(self.start, self.end, steps, dtype=torch.float64)


@dataclass(frozen=True, kw_only=True)
class ScaledLinearBetas:
    """The square root of beta linear, 0.00085 to 0.012: Stable Diffusion 1, 2 and XL; "linear" in LDM (trap T15).

    Source: `make_beta_schedule("linear")` of
    https://github.com/CompVis/latent-diffusion/blob/main/ldm/modules/diffusionmodules/util.py with linear_start and
    linear_end of https://github.com/CompVis/stable-diffusion/blob/main/configs/stable-diffusion/v1-inference.yaml
    """

    start: float = 0.00085
    end: float = 0.012

    def values(self, steps: int) -> Float64[Tensor, "steps"]:
        """Beta of every timestep. Errors: `ConfigError`."""
        _require_range(self.start, self.end)
        return torch.linspace(self.start**0.5, self.end**0.5, steps, dtype=torch.float64) ** 2


@dataclass(frozen=True)
class CosineBetas:
    """abar(t) = cos^2((t + 0.008) / 1.008 * pi / 2), betas clipped to 0.999; "squaredcos_cap_v2" in diffusers.

    Source: arXiv:2102.09672, eq. 17;
    https://github.com/openai/improved-diffusion/blob/main/improved_diffusion/gaussian_diffusion.py
    """

    def values(self, steps: int) -> Float64[Tensor, "steps"]:
        """Beta of every timestep."""
        times = torch.arange(steps + 1, dtype=torch.float64) / steps
        alphas_cumprod = torch.cos((times + 0.008) / 1.008 * math.pi / 2) ** 2
        return (1 - alphas_cumprod[1:] / alphas_cumprod[:-1]).clamp(max=0.999)


@dataclass(frozen=True)
class TabledBetas:
    """Betas given one by one, as in diffusers' `trained_betas`."""

    table: tuple[float, ...]

    def values(self, steps: int) -> Float64[Tensor, "steps"]:
        """Beta of every timestep. Errors: `ConfigError`."""
        if len(self.table) != steps or not all(0 < beta < 1 for beta in self.table):
            raise ConfigError("betas.table", f"{len(self.table)} values", f"must be {steps} numbers between 0 and 1")
        return torch.tensor(self.table, dtype=torch.float64)


Betas = LinearBetas | ScaledLinearBetas | CosineBetas | TabledBetas


def zero_terminal_snr(alphas_cumprod: Float64[Tensor, "steps"]) -> Float64[Tensor, "steps"]:
    """The same abar, shifted and scaled so that the first stays and the last is 0 (arXiv:2305.08891, algorithm 1)."""
    root = alphas_cumprod.sqrt()
    return ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2


def _require_range(start: float, end: float) -> None:
    if not 0 < start <= end < 1:
        raise ConfigError("betas", (start, end), "start and end must satisfy 0 < start <= end < 1")
