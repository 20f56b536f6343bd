"""What is common to everything that learns beside a frozen text-to-image model: the examples of each step, captions
that are encoded once, the checks of settings, and how a run knows its own again."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from undertow.checkpoints.read.model import LoadedModel
from undertow.encoders.text_stack import TextStack
from undertow.errors import ConfigError
from undertow.training.base_model import fingerprint
from undertow.training.batches import indices_at
from undertow.training.caption_encoder import CaptionEncoder, Encoded
from undertow.training.captioned import CaptionedPictures
from undertow.training.fit import FitSettings
from undertow.training.objective import ConstantWeighting, Example, MinSNRWeighting, Objective
from undertow.training.randomness import generator_for
from undertow.training.timesteps import LogitNormalTimesteps, UniformTimesteps
from undertow.unet.conditioning import Conditioning
from undertow.unet.config import UNetConfig


def require_settings(fit: FitSettings, timesteps: str, rules: Sequence[tuple[str, object, bool, str]] = ()) -> None:
    """rules: field, value, whether it holds, what must hold. Errors: `ConfigError` for the first that does not."""
    named = ("timesteps", timesteps, timesteps in ("uniform", "logit_normal"), "must be 'uniform' or 'logit_normal'")
    positive = (
        (name, getattr(fit, name), getattr(fit, name) > 0, "must be positive")
        for name in ("steps", "batch_size", "learning_rate")
    )
    for field, value, holds, rule in (*rules, named, *positive):
        if not holds:
            raise ConfigError(field, value, rule)


def model_objective(model: LoadedModel, timesteps: str, min_snr_gamma: float | None) -> Objective:
    """The model's own parameterization and schedule, with these weights and timesteps."""
    return Objective(
        parameterization=model.parameterization,
        schedule=model.schedule,
        weighting=ConstantWeighting() if min_snr_gamma is None else MinSNRWeighting(gamma=min_snr_gamma),
        timesteps=UniformTimesteps() if timesteps == "uniform" else LogitNormalTimesteps(),
    )


def base_recipe(model: LoadedModel, pictures: CaptionedPictures, objective: Objective) -> dict[str, Any]:
    """What decides the result of a run on this model and these pictures, see `fit`."""
    return {
        "model": fingerprint(model.require_unet(), model.require_vae(), *model.require_text().encoders),
        "pictures": fingerprint(pictures.pixels, *pictures.captions),
        "objective": repr(objective),
    }


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingBatch:
    """A step's batch. chosen: which pictures. share: for each row a number from 0 to 1, by which something of it is
    dropped or kept."""

    chosen: Int[Tensor, "batch"]
    share: Float[Tensor, "batch"]
    example: Example


@dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """Every step's batch, a function of the step alone. purpose: keeps its random numbers apart from others. device:
    where the examples are wanted."""

    latents: Float[Tensor, "count channels height width"]
    fit: FitSettings
    objective: Objective
    purpose: str
    device: torch.device

    def at(self, step: int) -> TrainingBatch:
        """The batch of step 1, 2, ..."""
        generator = generator_for(self.fit.seed, self.purpose, step)
        chosen = indices_at(step, self.fit.batch_size, len(self.latents), self.fit.seed)
        share = torch.rand(len(chosen), generator=generator)
        x0 = self.latents[chosen]
        u = self.objective.timesteps.draw(len(x0), generator)
        example = self.objective.example(x0, torch.randn(x0.shape, generator=generator), u).to(self.device)
        return TrainingBatch(chosen=chosen, share=share, example=example)


@dataclass(frozen=True, kw_only=True, eq=False)
class FixedCaptions:
    """Every picture's caption and, last, a dropped one, by text encoders that do not learn."""

    encoder: CaptionEncoder
    encoded: Encoded
    pictures: CaptionedPictures

    @classmethod
    def of(cls, text: TextStack, config: UNetConfig, pictures: CaptionedPictures) -> "FixedCaptions":
        """Reads them all, once."""
        encoder = CaptionEncoder(stack=text, config=config)
        return cls(encoder=encoder, encoded=encoder.encode_once([*pictures.captions, None]), pictures=pictures)

    def conditioning(self, chosen: Int[Tensor, "batch"], dropped: Bool[Tensor, "batch"]) -> Conditioning:
        """What the U-Net reads of some pictures' captions, those of `dropped` left out."""
        rows = chosen.masked_fill(dropped, len(self.pictures)).to(self.encoded.context.device)
        crops = [self.pictures.crops[index] for index in chosen.tolist()]
        return self.encoder.conditioning(self.encoded.rows(rows), crops, self.pictures.size)
