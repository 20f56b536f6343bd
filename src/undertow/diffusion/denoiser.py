"""A network as the one function that samplers know: denoised(x, sigma, conditioning)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from undertow.diffusion.parameterizations import Parameterization
from undertow.diffusion.paths import per_row, working
from undertow.diffusion.schedules import Schedule
from undertow.errors import ConfigError
from undertow.known_names import TimestepMap
from undertow.shapes import Sigmas

C = TypeVar("C")
"""Type of the conditioning; this room passes it on and never looks inside."""

Network = Callable[[Tensor, Tensor, C], Tensor]
"""(scaled input, timesteps [batch] in float32, conditioning) -> prediction."""


@dataclass(frozen=True, kw_only=True)
class Preconditioning:
    """What stands before and behind a network so that it estimates x0 (arXiv:2206.00364, eq. 7 and table 1).

    timestep_map: which peer the timestep agrees with, see `schedules`. network_dtype: what the network's input is cast
    to, so that x stays in float32 while the network runs in half precision; `None` keeps the dtype of x, which
    samplers hold in float32. Errors: `ConfigError` when parameterization and schedule belong to different paths.
    """

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

    def inputs(
        self, x: Float[Tensor, "batch ..."], sigma: Sigmas
    ) -> tuple[Float[Tensor, "batch ..."], Float32[Tensor, "batch"]]:
        """What the network receives: x scaled, and its timesteps.

        sigma may stay on the CPU, where checking it costs nothing. Errors: `InvalidInput` for a sigma that the network
        was not trained on.
        """
        timesteps = self.schedule.sigma_to_timestep(sigma, self.timestep_map).to(x.device, torch.float32)
        c_in = per_row(self.parameterization.path.input_scale(sigma), x)
        return (c_in * working(x)).to(x.dtype if self.network_dtype is None else self.network_dtype), timesteps

    def denoised(
        self, prediction: Float[Tensor, "batch ..."], x: Float[Tensor, "batch ..."], sigma: Sigmas
    ) -> Float[Tensor, "batch ..."]:
        """Estimate of x0 in the dtype of x, from what the network said of `inputs(x, sigma)`."""
        return self.parameterization.denoised(prediction, x, sigma)


@dataclass(frozen=True, kw_only=True)
class Denoiser(Preconditioning, Generic[C]):
    """Preconditioning with its network: the D(x; sigma) of EDM (k-diffusion `external.py`)."""

    network: Network[C]

    def __call__(self, x: Float[Tensor, "batch ..."], sigma: Sigmas, conditioning: C) -> Float[Tensor, "batch ..."]:
        """Estimate of x0 for every row, each at its own sigma, in the dtype of x. Errors: as `inputs`."""
        return self.denoised(self.network(*self.inputs(x, sigma), conditioning), x, sigma)
