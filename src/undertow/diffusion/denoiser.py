"""A network as the one function that samplers know: denoised(x, sigma, conditioning)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from undertow.diffusion.parameterizations import Parameterization
from undertow.diffusion.paths import per_row, working
from undertow.diffusion.schedules import Schedule, TimestepMap
from undertow.errors import ConfigError
from undertow.shapes import Sigmas

C = TypeVar("C")
"""Type of the conditioning; this room passes it on and never looks inside."""

Network = Callable[[Tensor, Tensor, C], Tensor]
"""(scaled input, timesteps [batch] in float32, conditioning) -> prediction."""


@dataclass(frozen=True, kw_only=True)
class Denoiser(Generic[C]):
    """Scales the input, maps sigma to a timestep, calls the network and reads x0 out of its prediction.

    The D(x; sigma) of EDM (arXiv:2206.00364, eq. 7 and table 1; k-diffusion `external.py`). timestep_map: which peer
    the timestep agrees with, see `schedules`. network_dtype: what the network's input is cast to, so that x stays in
    float32 while the network runs in half precision; `None` keeps the dtype of x, which samplers hold in float32.
    """

    network: Network[C]
    parameterization: Parameterization
    schedule: Schedule
    timestep_map: TimestepMap = "interpolated"
    network_dtype: torch.dtype | None = None

    def __post_init__(self):
        if self.parameterization.path != self.schedule.path:
            raise ConfigError(
                "parameterization",
                self.parameterization,
                f"must lie on the path of the schedule, {type(self.schedule.path).__name__}",
            )

    def __call__(self, x: Float[Tensor, "batch ..."], sigma: Sigmas, conditioning: C) -> Float[Tensor, "batch ..."]:
        """Estimate of x0 for every row, each at its own sigma, in the dtype of x.

        sigma may stay on the CPU, where checking it costs nothing. Errors: `InvalidInput` for a sigma that the network
        was not trained on.
        """
        timesteps = self.schedule.sigma_to_timestep(sigma, self.timestep_map).to(x.device, torch.float32)
        c_in = per_row(self.parameterization.path.input_scale(sigma), x)
        x_in = (c_in * working(x)).to(x.dtype if self.network_dtype is None else self.network_dtype)
        prediction = self.network(x_in, timesteps, conditioning)
        return self.parameterization.denoised(prediction, x, sigma)


@dataclass(frozen=True, kw_only=True)
class Clipped:
    """A denoiser whose estimate of x0 is clamped to [-limit, limit]: DDPM's "clip denoised", for pixels in [-1, 1].

    Opt-in, and wrong for latents. Wrap the guided denoiser, not its branches (diffusers' `clip_sample`).
    """

    denoise: Callable[[Tensor, float], Tensor]
    limit: float = 1.0

    def __call__(self, x: Float[Tensor, "batch ..."], sigma: float) -> Float[Tensor, "batch ..."]:
        """The clamped estimate."""
        return self.denoise(x, sigma).clamp(-self.limit, self.limit)
