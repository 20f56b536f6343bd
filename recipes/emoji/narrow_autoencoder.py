"""A stage of `emoji-turbo`: an autoencoder of half the channels that speaks the latents of `emoji`.

Where four steps draw a picture, the decoder of `emoji` takes a third of its time. The student learns to encode what the
teacher encodes, to decode pictures from their latents, and to decode as the teacher does from latents that are a little
off, which those of a U-Net are.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from recipes.emoji.autoencoder import change_looks, picture_loss, scenes_at
from recipes.emoji.editions import Edition
from recipes.emoji.render import Glyphs
from undertow.pictures.pixels import from_uint8
from undertow.training.fit import FitSettings, Progress, fit
from undertow.training.log import StepRecord
from undertow.training.randomness import generator_for, seeded
from undertow.vae.autoencoder import AutoencoderKL

OFF = 0.5
"""Share of pictures whose latents are moved off."""

MOST_OFF = 0.4
"""Standard deviation of the noise that moves latents off is drawn evenly from 0 to this one, beside latents of 1."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Pictures in [-1, 1], their latents' mean and logarithm of the variance, latents to decode, and their pictures."""

    x: Float[Tensor, "batch 3 height width"]
    mean: Float[Tensor, "batch channels cells_high cells_wide"]
    logvar: Float[Tensor, "batch channels cells_high cells_wide"]
    z: Float[Tensor, "batch channels cells_high cells_wide"]
    wanted: Float[Tensor, "batch 3 height width"]


def train_narrow_autoencoder(
    teacher: AutoencoderKL,
    narrower: int,
    settings: FitSettings,
    folder: Path,
    glyphs: Glyphs,
    *,
    edition: Edition,
    on_record: Callable[[StepRecord], None] = lambda record: None,
    on_checkpoint: Callable[[Progress], None] = lambda progress: None,
) -> AutoencoderKL:
    """The student: the teacher's architecture with a `narrower`-th of the channels."""
    teacher.requires_grad_(False)
    level_channels = tuple(channels // narrower for channels in teacher.config.level_channels)
    with seeded(settings.seed, "narrow autoencoder"):
        student = AutoencoderKL(replace(teacher.config, level_channels=level_channels))
    student = student.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    @torch.no_grad()
    def batch_at(step: int) -> Batch:
        generator = generator_for(settings.seed, "narrow autoencoder batch", step)
        pictures = scenes_at("narrow autoencoder scenes", step, settings.batch_size, glyphs, edition)
        x = change_looks(from_uint8(pictures), generator).to(memory_format=torch.channels_last)
        posterior = teacher.encode(x)
        z, off = posterior.mean.clone(), round(OFF * len(x))
        spread = MOST_OFF * torch.rand(off, 1, 1, 1, generator=generator)
        z[:off] += spread * torch.randn(z[:off].shape, generator=generator)
        wanted = torch.cat([teacher.decode(z[:off]), x[off:]])
        return Batch(x=x, mean=posterior.mean, logvar=posterior.logvar, z=z, wanted=wanted)

    def loss(batch: Batch) -> Tensor:
        posterior = student.encode(batch.x)
        off = (posterior.mean.float() - batch.mean).square().mean()
        off = off + 0.01 * (posterior.logvar.float() - batch.logvar).square().mean()
        return picture_loss(student.decode(batch.z.to(memory_format=torch.channels_last)), batch.wanted) + off

    recipe = {"level_channels": list(level_channels), "edition": repr(edition), "off": [OFF, MOST_OFF]}
    trained = fit(
        student, batch_at, loss, settings, folder, recipe=recipe, on_record=on_record, on_checkpoint=on_checkpoint
    )
    assert isinstance(trained, AutoencoderKL)
    return trained
