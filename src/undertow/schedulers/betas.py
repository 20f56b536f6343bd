"""Variances of DDPM's forward steps (arXiv:2006.11239, eq. 2), as records of what tells them. `diffusion.betas` gives
the table of each; here is what is left of a picture at its end. Imports no torch."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from undertow.errors import ConfigError

LARGEST_BETA = 0.999
"""Of the cosine schedule (arXiv:2102.09672, section 3.2)."""


@dataclass(frozen=True, kw_only=True)
class LinearBetas:
    """Beta linear in the timestep, 1e-4 to 0.02: DDPM on pixels; "sqrt_linear" in LDM (trap T15).

    Source: arXiv:2006.11239, section 4;
    https://github.com/hojonathanho/diffusion/blob/master/diffusion_tf/diffusion_utils_2.py
    """

    start: float = 1e-4
    end: float = 0.02

    def require(self, steps: int) -> None:
        """Errors: `ConfigError` for impossible values."""
        _require_range(self.start, self.end)

    def last_alpha_cumprod(self, steps: int) -> float:
        """DDPM's abar of the last timestep."""
        return _left(_even(self.start, self.end, steps))


@dataclass(frozen=True, kw_only=True)
class ScaledLinearBetas:
    """The square root of beta linear, 0.00085 to 0.012: Stable Diffusion 1, 2 and XL; "linear" in LDM (trap T15).

    Source: `make_beta_schedule("linear")` of
    https://github.com/CompVis/latent-diffusion/blob/main/ldm/modules/diffusionmodules/util.py with linear_start and
    linear_end of https://github.com/CompVis/stable-diffusion/blob/main/configs/stable-diffusion/v1-inference.yaml
    """

    start: float = 0.00085
    end: float = 0.012

    def require(self, steps: int) -> None:
        """Errors: `ConfigError` for impossible values."""
        _require_range(self.start, self.end)

    def last_alpha_cumprod(self, steps: int) -> float:
        """DDPM's abar of the last timestep."""
        return _left(root**2 for root in _even(self.start**0.5, self.end**0.5, steps))


@dataclass(frozen=True)
class CosineBetas:
    """abar(t) = cos^2((t + 0.008) / 1.008 * pi / 2), betas clipped to 0.999; "squaredcos_cap_v2" in diffusers.

    Source: arXiv:2102.09672, eq. 17;
    https://github.com/openai/improved-diffusion/blob/main/improved_diffusion/gaussian_diffusion.py
    """

    def require(self, steps: int) -> None:
        """Any number of steps has them."""

    def last_alpha_cumprod(self, steps: int) -> float:
        """DDPM's abar of the last timestep."""
        kept = [math.cos((step / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for step in range(steps + 1)]
        return _left(min(1 - kept[step + 1] / kept[step], LARGEST_BETA) for step in range(steps))


@dataclass(frozen=True)
class TabledBetas:
    """Betas given one by one, as in diffusers' `trained_betas`."""

    table: tuple[float, ...]

    def require(self, steps: int) -> None:
        """Errors: `ConfigError` for another number of them, and for impossible ones."""
        if len(self.table) != steps or not all(0 < beta < 1 for beta in self.table):
            raise ConfigError("betas.table", f"{len(self.table)} values", f"must be {steps} numbers between 0 and 1")

    def last_alpha_cumprod(self, steps: int) -> float:
        """DDPM's abar of the last timestep."""
        return _left(self.table)


Betas = LinearBetas | ScaledLinearBetas | CosineBetas | TabledBetas


def _even(start: float, end: float, count: int) -> Iterable[float]:
    return (start + (end - start) * index / (count - 1) for index in range(count))


def _left(betas: Iterable[float]) -> float:
    return math.prod(1 - beta for beta in betas)


def _require_range(start: float, end: float) -> None:
    if not 0 < start <= end < 1:
        raise ConfigError("betas", (start, end), "start and end must satisfy 0 < start <= end < 1")
