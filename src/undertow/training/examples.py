"""What all trainings on top of a frozen text-to-image model share: the batches, captions that are encoded once, the
validation of settings, and the recipe by which a run is recognized when it is resumed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from undertow.checkpoints.read.model import LoadedModel
from undertow.encoders.text_stack import TextStack
from undertow.errors import ConfigError
from undertow.training.base_model import fingerprint
from undertow.training.batches import indices_at
from undertow.training.caption_encoder import CaptionEncoder, Encoded
from undertow.training.captioned import CaptionedPictures
from undertow.training.fit import FitSettings, fit
from undertow.training.objective import Example, Objective, weighting_of
from undertow.training.randomness import generator_for
from undertow.training.timesteps import LogitNormalTimesteps, UniformTimesteps
from undertow.unet.conditioning import Conditioning
from undertow.unet.config import UNetConfig

Trained = TypeVar("Trained", bound=nn.Module)


def require_settings(fit: FitSettings, timesteps: str, rules: Sequence[tuple[str, object, bool, str]] = ()) -> None:
    """Validates settings. rules: tuples of a field, its value, whether the rule holds, and the rule in words. Errors:
    `ConfigError` for the first rule that does not hold."""
    named = ("timesteps", timesteps, timesteps in ("uniform", "logit_normal"), "must be 'uniform' or 'logit_normal'")
    positive = (
        (name, getattr(fit, name), getattr(fit, name) > 0, "must be positive")
        for name in ("steps", "batch_size", "learning_rate", "checkpoint_every")
    )
    for field, value, holds, rule in (*rules, named, *positive):
        if not holds:
            raise ConfigError(field, value, rule)


def model_objective(model: LoadedModel, timesteps: str, min_snr_gamma: float | None) -> Objective:
    """Returns the objective that the model was trained with, with this loss weighting and timestep distribution."""
    return Objective(
        parameterization=model.parameterization,
        schedule=model.schedule,
        weighting=weighting_of(min_snr_gamma),
        timesteps=UniformTimesteps() if timesteps == "uniform" else LogitNormalTimesteps(),
    )


def base_recipe(model: LoadedModel, pictures: CaptionedPictures, objective: Objective) -> dict[str, Any]:
    """Returns what determines the result of a run on this model and these pictures, see `fit`."""
    return {
        "model": fingerprint(model.require_unet(), model.require_vae(), *model.require_text().encoders),
        "pictures": fingerprint(pictures.pixels, *pictures.captions),
        "objective": repr(objective),
    }


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingBatch:
    """The batch of a step. indices: which training pictures are in it. uniform: a random number in [0, 1) for each row,
    which decides whether its caption or image is dropped."""

    indices: Int[Tensor, "batch"]
    uniform: Float[Tensor, "batch"]
    example: Example


@dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """The dataset: the batch of a step depends on the step alone. purpose: separates its random numbers from those of
    other datasets with the same seed. device: where the examples are placed."""

    latents: Float[Tensor, "count channels height width"]
    fit: FitSettings
    objective: Objective
    purpose: str
    device: torch.device

    def at(self, step: int) -> TrainingBatch:
        """Returns the batch of a step; steps count from 1."""
        generator = generator_for(self.fit.seed, self.purpose, step)
        indices = indices_at(step, self.fit.batch_size, len(self.latents), self.fit.seed)
        uniform = torch.rand(len(indices), generator=generator)
        x0 = self.latents[indices]
        u = self.objective.timesteps.draw(len(x0), generator)
        example = self.objective.example(x0, torch.randn(x0.shape, generator=generator), u).to(self.device)
        return TrainingBatch(indices=indices, uniform=uniform, example=example)

    def train(
        self,
        module: Trained,
        loss: Callable[[TrainingBatch], Tensor],
        folder: Path,
        recipe: dict[str, Any],
        **callbacks: Any,
    ) -> Trained:
        """Trains `module` on these examples and returns a copy of it with the averaged weights (EMA). callbacks: and
        all else as in `fit`."""
        trained = fit(module, self.at, loss, self.fit, folder, recipe=recipe, **callbacks)
        assert isinstance(trained, type(module))
        return trained


@dataclass(frozen=True, kw_only=True, eq=False)
class FixedCaptions:
    """The encoded caption of every picture and, last, the empty caption, by frozen text encoders."""

    encoder: CaptionEncoder
    encoded: Encoded
    pictures: CaptionedPictures

    @classmethod
    def of(cls, text: TextStack, config: UNetConfig, pictures: CaptionedPictures) -> "FixedCaptions":
        """Encodes all captions once."""
        encoder = CaptionEncoder(stack=text, config=config)
        return cls(encoder=encoder, encoded=encoder.encode_once([*pictures.captions, None]), pictures=pictures)

    def conditioning(self, chosen: Int[Tensor, "batch"], dropped: Bool[Tensor, "batch"]) -> Conditioning:
        """Returns the conditioning for some of the pictures; the captions of rows in `dropped` are empty."""
        rows = chosen.masked_fill(dropped, len(self.pictures)).to(self.encoded.context.device)
        crops = [self.pictures.crops[index] for index in chosen.tolist()]
        return self.encoder.conditioning(self.encoded.rows(rows), crops, self.pictures.size)
