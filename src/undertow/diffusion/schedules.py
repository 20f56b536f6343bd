"""The levels of noise a network was trained on, and the map between sigma and the timestep that it receives.

Trap T15, one name for two things: what LDM and ComfyUI call "linear" is "scaled_linear" here and in diffusers (linear
in the square root of beta; Stable Diffusion 1, 2 and XL); what LDM calls "sqrt_linear" is "linear" here and in
diffusers (linear in beta; DDPM on pixels).

Two maps from sigma to timestep exist in the wild, with different pictures (trap T19): "interpolated" is linear in log
sigma and gives fractions (k-diffusion, diffusers, A1111, Forge); "nearest" gives the closest trained level (ComfyUI).
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float64
from torch import Tensor

from undertow.diffusion.betas import beta_values, zero_terminal_snr
from undertow.diffusion.paths import RectifiedFlow, VarianceExploding, VariancePreserving
from undertow.errors import ConfigError, InvalidInput
from undertow.known_names import TimestepMap
from undertow.schedulers.betas import Betas, CosineBetas, LinearBetas, ScaledLinearBetas
from undertow.schedulers.levels import ZERO_SNR_ALPHA_CUMPROD, require_trained_steps
from undertow.shapes import Sigmas, Timesteps
from undertow.step_counts import LARGEST_SIGMA, SIGMA_ROUNDING


@dataclass(frozen=True, kw_only=True)
class NoiseSchedule:
    """DDPM's discrete levels of noise (arXiv:2006.11239): timestep 0 is nearly clean, the last is pure noise.

    last_alpha_cumprod: stands for the abar of 0 at the last level, with zero terminal SNR.
    """

    betas: Betas
    steps: int = 1000
    zero_terminal_snr: bool = False
    last_alpha_cumprod: float = ZERO_SNR_ALPHA_CUMPROD

    def __post_init__(self):
        require_trained_steps(self.steps)
        if not 0 < self.last_alpha_cumprod < 1:
            raise ConfigError("schedule.last_alpha_cumprod", self.last_alpha_cumprod, "must be between 0 and 1")
        self.betas.require(self.steps)

    @classmethod
    def linear(cls, *, steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> "NoiseSchedule":
        """Beta linear in the timestep: DDPM on pixels. See `LinearBetas` for its source."""
        return cls(betas=LinearBetas(start=beta_start, end=beta_end), steps=steps)

    @classmethod
    def scaled_linear(
        cls, *, steps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012
    ) -> "NoiseSchedule":
        """The square root of beta linear: Stable Diffusion 1, 2 and XL. See `ScaledLinearBetas` for its source."""
        return cls(betas=ScaledLinearBetas(start=beta_start, end=beta_end), steps=steps)

    @classmethod
    def cosine(cls, *, steps: int = 1000) -> "NoiseSchedule":
        """Improved DDPM's cosine. See `CosineBetas` for its source."""
        return cls(betas=CosineBetas(), steps=steps)

    def rescale_zero_terminal_snr(self) -> "NoiseSchedule":
        """The same schedule with its last level moved to pure noise (arXiv:2305.08891, algorithm 1)."""
        return replace(self, zero_terminal_snr=True)

    def __len__(self) -> int:
        return self.steps

    @property
    def path(self) -> VariancePreserving:
        """The path these levels belong to."""
        return VariancePreserving()

    @cached_property
    def alphas_cumprod(self) -> Float64[Tensor, "steps"]:
        """DDPM's abar of every training timestep; exactly 0 at the last with zero terminal SNR."""
        alphas_cumprod = torch.cumprod(1 - beta_values(self.betas, self.steps), dim=0)
        return zero_terminal_snr(alphas_cumprod) if self.zero_terminal_snr else alphas_cumprod

    @cached_property
    def sigmas(self) -> Float64[Tensor, "steps"]:
        """sqrt((1 - abar) / abar) of every training timestep, increasing; an infinite one has its finite stand-in."""
        alphas_cumprod = self.alphas_cumprod.clamp(min=self.last_alpha_cumprod)
        return torch.sqrt((1 - alphas_cumprod) / alphas_cumprod)

    @property
    def sigma_min(self) -> float:
        """The smallest trained sigma."""
        return self.sigmas[0].item()

    @property
    def sigma_max(self) -> float:
        """The largest trained sigma."""
        return self.sigmas[-1].item()

    def timestep_to_sigma(self, timesteps: Timesteps) -> Float64[Tensor, "batch"]:
        """Sigma of each timestep; fractions are interpolated in log sigma (k-diffusion `DiscreteSchedule.t_to_sigma`).

        Errors: `InvalidInput` outside [0, steps - 1].
        """
        last = self.steps - 1
        _require_between(timesteps, 0, last, "timesteps")
        timesteps = timesteps.to(torch.float64)
        log_sigmas = self.sigmas.log().to(timesteps.device)
        low = timesteps.floor().long().clamp(max=last - 1)
        return torch.lerp(log_sigmas[low], log_sigmas[low + 1], timesteps - low).exp()

    def sigma_to_timestep(self, sigma: Sigmas, mode: TimestepMap = "interpolated") -> Float64[Tensor, "batch"]:
        """The timestep to give the network at each sigma; 0 below the smallest trained sigma.

        interpolated: k-diffusion `DiscreteSchedule.sigma_to_t(quantize=False)` and diffusers' `_sigma_to_t`.
        nearest: ComfyUI's `ModelSamplingDiscrete.timestep`. The check reads values: keep sigma on the CPU.
        Errors: `InvalidInput` for a sigma that is negative, not a number, or above sigma_max.
        """
        _require_between(sigma, 0, self.sigma_max * (1 + SIGMA_ROUNDING), "sigma")
        log_sigmas = self.sigmas.log().to(sigma.device)
        log_sigma = sigma.to(torch.float64).clamp(min=self.sigma_min, max=self.sigma_max).log()
        match mode:
            case "nearest":
                return (log_sigma[:, None] - log_sigmas).abs().argmin(dim=1).to(torch.float64)
            case "interpolated":
                low = torch.searchsorted(log_sigmas, log_sigma, right=True).sub(1).clamp(0, self.steps - 2)
                fraction = (log_sigma - log_sigmas[low]) / (log_sigmas[low + 1] - log_sigmas[low])
                return low + fraction.clamp(0, 1)  # the ends may miss by rounding
            case _:
                raise _unknown_mode(mode)

    def grid_time_to_sigma(self, times: Timesteps) -> Float64[Tensor, "batch"]:
        """Sigma at each time of a grid that is spaced in timesteps; here grid time and timestep are the same."""
        return self.timestep_to_sigma(times)

    def sigma_at_share(self, share: float) -> float:
        """Sigma at a share of the timesteps, from the first trained one, 0, to the last, 1 (ComfyUI `percent_to_sigma`
        at 1 - share)."""
        return self.timestep_to_sigma(torch.tensor([share * (self.steps - 1)], dtype=torch.float64)).item()


@dataclass(frozen=True, kw_only=True)
class FlowSchedule:
    """Levels of rectified flow: sigma in [0, 1], 0 clean and 1 noise; the network receives 1000 sigma (trap T14).

    shift moves the levels of a grid towards noise, as larger pictures need:
    sigma' = shift sigma / (1 + (shift - 1) sigma) (Stable Diffusion 3, arXiv:2403.03206, section 5.3.2; diffusers'
    https://github.com/huggingface/diffusers/blob/main/src/diffusers/schedulers/scheduling_flow_match_euler_discrete.py).
    """

    shift: float = 1.0
    steps: int = 1000

    def __post_init__(self):
        require_trained_steps(self.steps)
        if not (math.isfinite(self.shift) and self.shift > 0):
            raise ConfigError("schedule.shift", self.shift, "must be a positive number; 1 does not shift")

    def __len__(self) -> int:
        return self.steps

    @property
    def path(self) -> RectifiedFlow:
        """The path these levels belong to."""
        return RectifiedFlow()

    @cached_property
    def sigmas(self) -> Float64[Tensor, "steps"]:
        """Shifted sigma of timesteps 1 ... steps, increasing to exactly 1."""
        return self._shifted(torch.arange(1, self.steps + 1, dtype=torch.float64) / self.steps)

    @property
    def sigma_min(self) -> float:
        """The smallest level of a grid. The network was trained down to 0."""
        return self.sigmas[0].item()

    @property
    def sigma_max(self) -> float:
        """1: pure noise."""
        return self.sigmas[-1].item()

    def timestep_to_sigma(self, timesteps: Timesteps) -> Float64[Tensor, "batch"]:
        """Sigma is timestep / 1000. The shift is no part of it: it chooses levels, it does not rename them.

        Errors: `InvalidInput` outside [0, 1000].
        """
        _require_between(timesteps, 0, self.steps, "timesteps")
        return timesteps.to(torch.float64) / self.steps

    def sigma_to_timestep(self, sigma: Sigmas, mode: TimestepMap = "interpolated") -> Float64[Tensor, "batch"]:
        """The timestep is 1000 sigma; "nearest" takes the closest sigma of the shifted table first.

        Errors: `InvalidInput` for a sigma outside [0, 1] or not a number.
        """
        _require_between(sigma, 0, 1 + SIGMA_ROUNDING, "sigma")
        sigma = sigma.to(torch.float64).clamp(max=1)
        match mode:
            case "interpolated":
                return sigma * self.steps
            case "nearest":
                sigmas = self.sigmas.to(sigma.device)
                return sigmas[(sigma[:, None] - sigmas).abs().argmin(dim=1)] * self.steps
            case _:
                raise _unknown_mode(mode)

    def grid_time_to_sigma(self, times: Timesteps) -> Float64[Tensor, "batch"]:
        """Sigma at each time of a grid that is spaced in timesteps: the shift applies here.

        ComfyUI and diffusers both space a grid between sigma_max and the already shifted sigma_min and shift again.
        """
        return self._shifted(self.timestep_to_sigma(times))

    def sigma_at_share(self, share: float) -> float:
        """Shifted sigma at a share of the timesteps, from 0 to 1."""
        return self._shifted(torch.tensor(share, dtype=torch.float64)).item()

    def _shifted(self, sigma: Tensor) -> Tensor:
        return self.shift * sigma / (1 + (self.shift - 1) * sigma)


@dataclass(frozen=True, kw_only=True)
class EDMSchedule:
    """EDM's continuous levels (arXiv:2206.00364, table 1): the network receives c_noise = log(sigma) / 4.

    The defaults are the paper's for images; CosXL goes from 0.002 to 120, Playground 2.5 from 0.002 to 80. steps: of
    the table that some grids read, even in log sigma as ComfyUI's `ModelSamplingContinuousEDM`.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5
    steps: int = 1000

    def __post_init__(self):
        require_trained_steps(self.steps)
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ConfigError("schedule.sigma_min", self.sigma_min, f"must be above 0 and below {self.sigma_max:g}")
        if not self.sigma_max <= LARGEST_SIGMA:
            raise ConfigError("schedule.sigma_max", self.sigma_max, f"must be at most {LARGEST_SIGMA:g}")
        if not (math.isfinite(self.sigma_data) and self.sigma_data > 0):
            raise ConfigError("schedule.sigma_data", self.sigma_data, "must be a positive number")

    def __len__(self) -> int:
        return self.steps

    @property
    def path(self) -> VarianceExploding:
        """The path these levels belong to."""
        return VarianceExploding(self.sigma_data)

    @cached_property
    def sigmas(self) -> Float64[Tensor, "steps"]:
        """A table of levels, increasing."""
        ends = math.log(self.sigma_min), math.log(self.sigma_max)
        return torch.linspace(*ends, self.steps, dtype=torch.float64).exp()

    def timestep_to_sigma(self, timesteps: Timesteps) -> Float64[Tensor, "batch"]:
        """exp(4 c_noise)."""
        return (4 * timesteps.to(torch.float64)).exp()

    def sigma_to_timestep(self, sigma: Sigmas, mode: TimestepMap = "interpolated") -> Float64[Tensor, "batch"]:
        """c_noise; that of sigma_min below it. There is no table to take the nearest level from: both modes agree.

        Errors: `InvalidInput` for a sigma that is negative, not a number, or above sigma_max.
        """
        _require_between(sigma, 0, self.sigma_max * (1 + SIGMA_ROUNDING), "sigma")
        if mode not in ("interpolated", "nearest"):
            raise _unknown_mode(mode)
        return sigma.to(torch.float64).clamp(min=self.sigma_min).log() / 4

    def grid_time_to_sigma(self, times: Timesteps) -> Float64[Tensor, "batch"]:
        """Sigma at each time of a grid that is spaced in c_noise."""
        return self.timestep_to_sigma(times)

    def sigma_at_share(self, share: float) -> float:
        """Sigma at a share of the way in log sigma, from 0 to 1."""
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** share


Schedule = NoiseSchedule | FlowSchedule | EDMSchedule


def _require_between(values: Tensor, low: float, high: float, argument: str) -> None:
    inside = (values >= low) & (values <= high)  # false for nan
    if not bool(inside.all()):
        raise InvalidInput(
            argument,
            values[~inside][0].item(),
            f"a number from {low:g} to {high:g}",
            "use levels of noise that this network was trained on",
        )


def _unknown_mode(mode: object) -> InvalidInput:
    return InvalidInput("timestep map", repr(mode), "'interpolated' or 'nearest'")
