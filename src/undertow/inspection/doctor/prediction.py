"""What a network predicts, told by asking it: known noise on a known picture, held against what each type would say."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean

import torch
from jaxtyping import Float
from torch import Tensor

from undertow.diffusion.denoiser import Preconditioning
from undertow.diffusion.parameterizations import (
    PARAMETERIZATIONS,
    Epsilon,
    Parameterization,
    Velocity,
    VPrediction,
    XPrediction,
)
from undertow.diffusion.schedules import FlowSchedule, NoiseSchedule, Schedule
from undertow.unet.conditioning import Conditioning
from undertow.unet.unet import UNet

SHARES = (0.999, 0.8, 0.5, 0.2)
"""Of the trained timesteps: of 1000 these are t = 998, 799, 500 and 200. At the first nothing but noise is left: the
network that predicts noise repeats its input, others do not."""

CANDIDATES: Mapping[str, Parameterization] = {
    "epsilon": Epsilon(),
    "v": VPrediction(),
    "x0": XPrediction(),
    "velocity": Velocity(),
}

KNOWS = 0.75
"""Mean relative error below which a network knows something; 1 is what predicting zeros has, and untrained networks
have more."""

CLEARLY = 0.9
"""Times the error of the type it is used with: another type has to be below this to be named."""


@dataclass(frozen=True, kw_only=True)
class PredictionProbe:
    """errors: by type and level, `‖prediction - target‖ / ‖target‖`. alike: cosine of prediction and noise at the
    highest level. used: the type that the model is used with."""

    errors: Mapping[str, tuple[float, ...]]
    alike: float
    used: str

    @property
    def means(self) -> dict[str, float]:
        """Mean error of each type over the half of the levels where it is least: at the others a network may know
        nothing, of a plain picture without a prompt, or of little noise, on which it was hardly trained."""
        return {name: mean(sorted(errors)[: len(errors) // 2]) for name, errors in self.errors.items()}

    @property
    def best(self) -> str:
        """The type of the least mean error."""
        return min(self.means, key=lambda name: self.means[name])

    @property
    def mislabelled(self) -> bool:
        """Whether the network clearly predicts something else than it is used for."""
        means = self.means
        return self.best != self.used and means[self.best] < min(KNOWS, CLEARLY * means[self.used])


def type_name(parameterization: Parameterization) -> str:
    """The catalogue's name."""
    return next(name for name, one in PARAMETERIZATIONS.items() if one == parameterization)


@torch.no_grad()
def probe_prediction(
    unet: UNet,
    clean: Float[Tensor, "1 channels height width"],
    conditioning: Conditioning,
    schedule: Schedule,
    used: Parameterization,
) -> PredictionProbe:
    """Adds noise to a picture's latents, as the network sees them, and holds what it predicts against every type.

    conditioning: of one row. Types on another path than the schedule's are asked along that path, at its usual levels.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(clean.shape, generator=generator).to(clean)
    answers: dict[type, Tensor] = {}
    errors: dict[str, tuple[float, ...]] = {}
    for name, candidate in CANDIDATES.items():
        levels = _levels(candidate, schedule)
        sigmas = levels.timestep_to_sigma(torch.tensor(SHARES, dtype=torch.float64) * (len(levels) - 1))
        if type(levels.path) not in answers:
            answers[type(levels.path)] = _ask(unet, clean, noise, conditioning, candidate, levels, sigmas)
        many = clean.float().expand(len(SHARES), -1, -1, -1), noise.float().expand(len(SHARES), -1, -1, -1)
        target = candidate.target(*many, sigmas)
        missed = (answers[type(levels.path)] - target).flatten(1).norm(dim=1) / target.flatten(1).norm(dim=1)
        errors[name] = tuple(missed.tolist())
    first = answers[type(schedule.path)][0].flatten()
    alike = float(torch.nn.functional.cosine_similarity(first, noise.float().flatten(), dim=0))
    return PredictionProbe(errors=errors, alike=alike, used=type_name(used))


def _levels(candidate: Parameterization, schedule: Schedule) -> Schedule:
    """The model's own, where the candidate lies on their path."""
    if candidate.path == schedule.path:
        return schedule
    return FlowSchedule() if isinstance(candidate, Velocity) else NoiseSchedule.scaled_linear()


def _ask(
    unet: UNet,
    clean: Tensor,
    noise: Tensor,
    conditioning: Conditioning,
    candidate: Parameterization,
    levels: Schedule,
    sigmas: Tensor,
) -> Tensor:
    """Predictions in float32, a row for each level. All types on one path see the same inputs."""
    count = len(sigmas)
    noisy = levels.path.add_noise(
        clean.float().expand(count, -1, -1, -1), noise.float().expand(count, -1, -1, -1), sigmas
    )
    preconditioning = Preconditioning(parameterization=candidate, schedule=levels, network_dtype=unet.dtype)
    latents, timesteps = preconditioning.inputs(noisy, sigmas)
    rows = zip(latents.split(1), timesteps.split(1), strict=True)
    return torch.cat([unet(row, timestep, conditioning) for row, timestep in rows]).float()
