"""The training objective: a path, a parameterization, a loss weighting and a distribution of timesteps. DDPM and
rectified flow are two presets.

The path, the target and the scaling of the network's input are the objects of `undertow.diffusion` that sampling uses
too, so that training and inference cannot disagree.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from undertow.diffusion.parameterizations import (
    EDMPrediction,
    Epsilon,
    Parameterization,
    Velocity,
    VPrediction,
    XPrediction,
)
from undertow.diffusion.paths import per_row, snr
from undertow.diffusion.schedules import FlowSchedule, NoiseSchedule, Schedule
from undertow.errors import ConfigError
from undertow.shapes import Sigmas
from undertow.training.timesteps import LogitNormalTimesteps, TimestepDistribution, UniformTimesteps, timesteps_at

Pixels = Float[Tensor, "batch channels height width"]


@dataclass(frozen=True, kw_only=True)
class ConstantWeighting:
    """Weights the squared error of the prediction equally at all noise levels (arXiv:2006.11239, eq. 14)."""

    def weights(self, parameterization: Parameterization, sigma: Sigmas) -> Sigmas:  # the same interface for all
        """Returns a factor for the squared error of the prediction in each row."""
        return torch.ones_like(sigma)


@dataclass(frozen=True, kw_only=True)
class MinSNRWeighting:
    """Weights the squared error of x0 by min(SNR, gamma), whatever the network predicts (arXiv:2303.09556, sec. 3.4).

    A factor turns an error of the prediction into an error of x0. Its square is 1 / SNR for epsilon, 1 / (SNR + 1) for
    v, 1 for x0 and sigma^2 for a velocity, so that the weights are min(SNR, gamma) / SNR for epsilon and
    min(SNR, gamma) / (SNR + 1) for v, as in the paper. Errors: `ConfigError`.
    """

    gamma: float = 5.0

    def __post_init__(self):
        if not self.gamma > 0:
            raise ConfigError("weighting.gamma", self.gamma, "must be positive; the paper uses 5")

    def weights(self, parameterization: Parameterization, sigma: Sigmas) -> Sigmas:
        """Returns a factor for the squared error of the prediction in each row."""
        ratio = snr(parameterization.path, sigma)
        match parameterization:
            case Epsilon():
                return (self.gamma / ratio).clamp(max=1)  # min(SNR, gamma) / SNR without 0 / 0
            case VPrediction():
                return ratio.clamp(max=self.gamma) / (ratio + 1)
            case XPrediction():
                return ratio.clamp(max=self.gamma)
            case Velocity():
                return ratio.clamp(max=self.gamma) * sigma**2
            case EDMPrediction(path=path):
                c_out = sigma * path.sigma_data * path.input_scale(sigma)
                return ratio.clamp(max=self.gamma) * c_out**2


@dataclass(frozen=True, kw_only=True)
class TruncatedSNRWeighting:
    """Weights the squared error of x0 by min(SNR + 1, limit), which for v is constant at high noise and less at low.

    This is the SNR + 1 weighting of arXiv:2202.00512, section 4, truncated from above, where the paper's truncated SNR
    is truncated from below. At low noise most of the error of v is noise that no network can tell from data, and it
    would outweigh what is learned about shapes. Errors: `ConfigError`.
    """

    limit: float = 3.0

    def __post_init__(self):
        if not self.limit > 0:
            raise ConfigError("weighting.limit", self.limit, "must be positive")

    def weights(self, parameterization: Parameterization, sigma: Sigmas) -> Sigmas:
        """Returns a factor for the squared error of the prediction in each row."""
        ratio = snr(parameterization.path, sigma)
        wanted = (ratio + 1).clamp(max=self.limit)
        match parameterization:
            case Epsilon():
                return wanted / ratio
            case VPrediction():
                return (self.limit / (ratio + 1)).clamp(max=1)
            case XPrediction():
                return wanted
            case Velocity():
                return wanted * sigma**2
            case EDMPrediction(path=path):
                return wanted * (sigma * path.sigma_data * path.input_scale(sigma)) ** 2


Weighting = ConstantWeighting | MinSNRWeighting | TruncatedSNRWeighting


def weighting_of(min_snr_gamma: float | None) -> ConstantWeighting | MinSNRWeighting:
    """Min-SNR weighting with this gamma, or constant weights for `None`. Errors: `ConfigError`."""
    return ConstantWeighting() if min_snr_gamma is None else MinSNRWeighting(gamma=min_snr_gamma)


@dataclass(frozen=True, kw_only=True)
class Example:
    """A training batch: the network's inputs and timesteps, its target, and the weight of each row in the loss."""

    inputs: Pixels
    timesteps: Float64[Tensor, "batch"]
    target: Pixels
    weights: Float64[Tensor, "batch"]

    def to(self, device: torch.device) -> "Example":
        """Returns the same batch on another device."""
        return Example(
            inputs=self.inputs.to(device),
            timesteps=self.timesteps.to(device),
            target=self.target.to(device),
            weights=self.weights.to(device),
        )

    def loss(self, prediction: Pixels) -> Float[Tensor, ""]:
        """Returns the weighted mean squared error of a prediction, in float32."""
        error = (prediction.to(torch.float32) - self.target).square()
        return (per_row(self.weights, error) * error).mean()


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What a network is trained for. Errors: `ConfigError` when the parameterization and the schedule belong to
    different paths."""

    parameterization: Parameterization
    schedule: Schedule
    weighting: Weighting = ConstantWeighting()
    timesteps: TimestepDistribution = UniformTimesteps()

    def __post_init__(self):
        if self.parameterization.path != self.schedule.path:
            raise ConfigError(
                "objective.parameterization",
                self.parameterization,
                f"must lie on the path of the schedule, {type(self.schedule.path).__name__}",
            )

    def example(self, x0: Pixels, noise: Pixels, u: Float64[Tensor, "batch"]) -> Example:
        """Returns the training batch for clean pictures, noise and positions in [0, 1] along the path."""
        path, timesteps = self.parameterization.path, timesteps_at(self.schedule, u)
        sigma = self.schedule.timestep_to_sigma(timesteps)
        x = path.add_noise(x0, noise, sigma)
        return Example(
            inputs=x * per_row(path.input_scale(sigma), x),
            timesteps=timesteps,
            target=self.parameterization.target(x0, noise, sigma),
            weights=self.weighting.weights(self.parameterization, sigma),
        )


@dataclass(frozen=True, kw_only=True)
class Ddpm:
    """The preset of DDPM (arXiv:2006.11239), also with v-prediction (arXiv:2202.00512) and the cosine schedule
    (arXiv:2102.09672, section 3.2).

    prediction: "epsilon" or "v". schedule: "linear" or "cosine". min_snr_gamma: gamma of the min-SNR weighting, or
    `None` for constant weights. Errors: `ConfigError`.
    """

    prediction: str = "epsilon"
    schedule: str = "linear"
    min_snr_gamma: float | None = None

    def __post_init__(self):
        _require_one_of("objective.prediction", self.prediction, ("epsilon", "v"))
        _require_one_of("objective.schedule", self.schedule, ("linear", "cosine"))
        self.build()

    def build(self) -> Objective:
        """Returns the objective that these settings describe."""
        return Objective(
            parameterization=Epsilon() if self.prediction == "epsilon" else VPrediction(),
            schedule=NoiseSchedule.linear() if self.schedule == "linear" else NoiseSchedule.cosine(),
            weighting=weighting_of(self.min_snr_gamma),
        )


@dataclass(frozen=True, kw_only=True)
class Flow:
    """The preset of rectified flow (arXiv:2209.03003), with uniform or logit-normal timesteps (arXiv:2403.03206,
    eq. 19).

    timesteps: "logit_normal" or "uniform". mean, std: of the normal distribution of the logit. min_snr_gamma: gamma of
    the min-SNR weighting, or `None` for constant weights. Errors: `ConfigError`.
    """

    timesteps: str = "logit_normal"
    mean: float = 0.0
    std: float = 1.0
    min_snr_gamma: float | None = None

    def __post_init__(self):
        _require_one_of("objective.timesteps", self.timesteps, ("logit_normal", "uniform"))
        self.build()

    def build(self) -> Objective:
        """Returns the objective that these settings describe."""
        logit_normal = LogitNormalTimesteps(mean=self.mean, std=self.std)
        return Objective(
            parameterization=Velocity(),
            schedule=FlowSchedule(),
            weighting=weighting_of(self.min_snr_gamma),
            timesteps=logit_normal if self.timesteps == "logit_normal" else UniformTimesteps(),
        )


PRESETS: dict[str, type[Ddpm | Flow]] = {"ddpm": Ddpm, "flow": Flow}


def drop_labels(
    labels: Int[Tensor, "batch"], probability: float, null: int, generator: torch.Generator
) -> Int[Tensor, "batch"]:
    """Returns the labels, each replaced by `null` with this probability, independently of the others (arXiv:2207.12598,
    algorithm 1)."""
    return labels.masked_fill(torch.rand(len(labels), generator=generator) < probability, null)


def _require_one_of(field: str, value: str, names: tuple[str, ...]) -> None:
    if value not in names:
        raise ConfigError(field, value, f"must be one of {', '.join(names)}")
