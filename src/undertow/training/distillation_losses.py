"""What a student is taught, a method each: the guided teacher's predictions, or consistency along its trajectories.

Methods are data; `loss_of` makes a loss of one. Feature distillation has a file of its own, `feature_distillation`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from undertow.diffusion.parameterizations import XPrediction
from undertow.diffusion.paths import per_row, snr
from undertow.diffusion.schedules import NoiseSchedule
from undertow.errors import ConfigError
from undertow.shapes import Latents, Sigmas, Timesteps
from undertow.training.consistency import (
    DistilledLevels,
    Tightening,
    boundary_scalings,
    ddim_step,
    number_distance,
    row_distance,
    tuning_target,
)
from undertow.training.objective import Weighting, weighting_of
from undertow.training.teacher import DistillationBatch, TeacherAndStudent
from undertow.training.timesteps import timesteps_at

Loss = Callable[[DistillationBatch], Tensor]


@dataclass(frozen=True, kw_only=True)
class GuidanceDistillation:
    """The student predicts by one forward what the teacher predicts by two, with guidance at `guidance`
    (arXiv:2210.03142, section 3.1, at one scale). Errors: `ConfigError`."""

    guidance: float

    def __post_init__(self):
        require_guidance(self.guidance)


@dataclass(frozen=True, kw_only=True)
class LatentConsistency:
    """LCM (arXiv:2310.04378, algorithm 1): the student's estimates at both ends of a DDIM step of the guided teacher
    agree. The target is the student itself, not an average of it (arXiv:2310.14189, section 3.2). original_steps: how
    many levels there are, see `DistilledLevels`. Errors: `ConfigError`."""

    guidance: float
    original_steps: int = 50

    def __post_init__(self):
        require_guidance(self.guidance)
        if self.original_steps < 2:  # how many a model has at most, `DistilledLevels` knows
            raise ConfigError("original_steps", self.original_steps, "must be 2 or more")


@dataclass(frozen=True, kw_only=True)
class ConsistencyTuning:
    """ECT (arXiv:2406.14548): the student's estimates agree at two levels of one noise, which come nearer to each other
    as training goes on. It needs no teacher but its own first weights, and follows the data, without guidance: distill
    guidance first. huber_c: of the distance, see `row_distance`. Errors: `ConfigError`."""

    tightening: Tightening
    huber_c: float = 0.0

    def __post_init__(self):
        if not (math.isfinite(self.huber_c) and self.huber_c >= 0):
            raise ConfigError("huber_c", self.huber_c, "must not be negative")


Consistency = LatentConsistency | ConsistencyTuning


def require_guidance(guidance: float) -> None:
    """Errors: `ConfigError`."""
    if not (math.isfinite(guidance) and guidance >= 1):
        raise ConfigError("guidance", guidance, "must be at least 1, which is no guidance")


def loss_of(
    method: GuidanceDistillation | Consistency, networks: TeacherAndStudent, min_snr_gamma: float | None
) -> Loss:
    """Returns the loss that a method is trained with. min_snr_gamma: of the weights of noise levels."""
    weighting = weighting_of(min_snr_gamma)
    match method:
        case GuidanceDistillation(guidance=guidance):
            return GuidedLoss(networks=networks, weighting=weighting, guidance=guidance)
        case LatentConsistency(guidance=guidance, original_steps=count):
            schedule = networks.preconditioning.schedule
            assert isinstance(schedule, NoiseSchedule)
            levels = DistilledLevels(schedule=schedule, count=count)
            return LatentConsistencyLoss(networks=networks, weighting=weighting, guidance=guidance, levels=levels)
        case ConsistencyTuning(tightening=tightening, huber_c=c):
            return TuningLoss(networks=networks, min_snr_gamma=min_snr_gamma, tightening=tightening, huber_c=c)


@dataclass(frozen=True, kw_only=True, eq=False)
class GuidedLoss:
    """Weighted mean squared error of the prediction, against the guided teacher's."""

    networks: TeacherAndStudent
    weighting: Weighting
    guidance: float

    def __call__(self, batch: DistillationBatch) -> Tensor:
        networks = self.networks
        sigma = drawn_sigmas(networks, batch)
        x = networks.noisy(batch, sigma)
        target = networks.taught(x, sigma, batch.indices, self.guidance)
        error = (networks.learned(x, sigma, batch.indices) - target).square()
        weights = self.weighting.weights(networks.preconditioning.parameterization, sigma)
        return (per_row(weights, error) * error).mean()


@dataclass(frozen=True, kw_only=True, eq=False)
class LatentConsistencyLoss:
    """Mean pseudo-Huber distance of the estimates at a level and at the next lower one of `levels`."""

    networks: TeacherAndStudent
    weighting: Weighting
    guidance: float
    levels: DistilledLevels

    def __call__(self, batch: DistillationBatch) -> Tensor:
        networks, indices = self.networks, batch.indices
        upper, lower = self.levels.neighbors(batch.u)
        sigma, target_sigma = (self.levels.schedule.timestep_to_sigma(each) for each in (upper, lower))
        x = networks.noisy(batch, sigma)
        guided = networks.estimate(networks.taught(x, sigma, indices, self.guidance), x, sigma)
        below = ddim_step(x, guided, sigma, target_sigma)
        with torch.no_grad():
            target = self._consistent(below, target_sigma, lower, batch)
        distance = number_distance(self._consistent(x, sigma, upper, batch), target)
        weights = self.weighting.weights(XPrediction(path=self.levels.schedule.path), sigma)
        return (weights.to(distance) * distance).mean()

    def _consistent(self, x: Latents, sigma: Sigmas, timesteps: Timesteps, batch: DistillationBatch) -> Latents:
        """The consistency function, with the boundary condition of diffusers' sampler."""
        networks = self.networks
        estimate = networks.estimate(networks.learned(x, sigma, batch.indices), x, sigma)
        c_skip, c_out = boundary_scalings(timesteps)
        scale = self.levels.schedule.path.input_scale(sigma)
        return per_row(c_skip * scale, x) * x + per_row(c_out, x) * estimate


@dataclass(frozen=True, kw_only=True, eq=False)
class TuningLoss:
    """Mean distance of the estimates at two levels of one noise, over the root of the numbers in a row.

    Levels weigh SNR + 1 (`ECMLoss.snrplusk_wt` for data of variance 1), or min(SNR, gamma) + 1 with a min-SNR gamma.
    """

    networks: TeacherAndStudent
    min_snr_gamma: float | None
    tightening: Tightening
    huber_c: float

    def __call__(self, batch: DistillationBatch) -> Tensor:
        networks, x0, schedule = self.networks, batch.x0, self.networks.preconditioning.schedule
        sigma = drawn_sigmas(networks, batch)
        lower = self.tightening.lower(sigma, batch.step)
        is_data = lower < schedule.sigma_min
        x = networks.noisy(batch, sigma)
        estimate = networks.estimate(networks.learned(x, sigma, batch.indices), x, sigma)
        with torch.no_grad():
            target = x0
            if not bool(is_data.all()):
                level = lower.clamp(min=schedule.sigma_min)
                below = networks.noisy(batch, level)
                near = networks.estimate(networks.learned(below, level, batch.indices), below, level)
                target = tuning_target(near, x0, is_data)
        distance = row_distance(estimate, target, self.huber_c) / math.sqrt(x0[0].numel())
        return (self._weights(sigma).to(distance) * distance).mean()

    def _weights(self, sigma: Sigmas) -> Sigmas:
        ratio = snr(self.networks.preconditioning.parameterization.path, sigma)
        return 1 + (ratio if self.min_snr_gamma is None else ratio.clamp(max=self.min_snr_gamma))


def drawn_sigmas(networks: TeacherAndStudent, batch: DistillationBatch) -> Sigmas:
    """The noise levels of a batch, of those that the model was trained on."""
    schedule = networks.preconditioning.schedule
    return schedule.timestep_to_sigma(timesteps_at(schedule, batch.u))
