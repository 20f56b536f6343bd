"""Stage 6: the decoder learns from what the U-Net predicts, too, whose latents are not quite those of a picture.

The encoder stays as it is, and with it the latents that the U-Net was trained on.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from jaxtyping import Float, Int
from torch import Tensor

from recipes.emoji.autoencoder import picture_loss
from recipes.emoji.editions import Edition
from recipes.emoji.render import Glyphs
from recipes.emoji.scenes import spoken
from recipes.emoji.text_to_image import OBJECTIVE, TextToImage, token_ids
from undertow.diffusion.paths import per_row
from undertow.pictures.pixels import from_uint8
from undertow.training.fit import FitSettings, Progress, fit
from undertow.training.log import StepRecord
from undertow.training.randomness import generator_for, seed_for
from undertow.vae.autoencoder import AutoencoderKL

PREDICTED = 0.5
"""Share of pictures that are decoded from the U-Net's prediction; the others from their own latents."""

LEVELS = (-0.7, 0.7)
"""Mean and standard deviation of the logarithm of the noise level that is predicted at: what is above cannot be told
from the caption, what is below is as good as clean."""


@dataclass(frozen=True, kw_only=True, eq=False)
class DecoderBatch:
    """Pictures in [-1, 1] and their captions' token ids, and noise for the first of them."""

    x: Float[Tensor, "batch 3 height width"]
    ids: Int[Tensor, "predicted tokens"]
    sigma: Float[Tensor, "predicted"]
    generator: torch.Generator


def train_decoder(
    vae: AutoencoderKL,
    model: TextToImage,
    settings: FitSettings,
    folder: Path,
    glyphs: Glyphs,
    *,
    edition: Edition,
    on_record: Callable[[StepRecord], None] = lambda record: None,
    on_checkpoint: Callable[[Progress], None] = lambda progress: None,
) -> AutoencoderKL:
    """The autoencoder with a trained decoder. vae: changed in place."""
    vae.requires_grad_(False)
    for name, parameter in vae.named_parameters():
        parameter.requires_grad_(name.startswith(("decoder.", "post_quant_conv.")))
    model.requires_grad_(False)

    def batch_at(step: int) -> DecoderBatch:
        random = Random(seed_for(settings.seed, "decoder scenes", step))
        scenes, pictures = edition.draw(random, settings.batch_size, glyphs, edition.on_cells)
        generator = generator_for(settings.seed, "decoder batch", step)
        count = round(PREDICTED * settings.batch_size)
        mean, std = LEVELS
        return DecoderBatch(
            x=from_uint8(pictures).to(memory_format=torch.channels_last),
            ids=torch.tensor([token_ids(spoken(scene, random), model.text.tokenizer) for scene in scenes[:count]]),
            sigma=(mean + std * torch.randn(count, generator=generator)).exp(),
            generator=generator,
        )

    def loss(batch: DecoderBatch) -> Tensor:
        with torch.no_grad():
            z = vae.encode(batch.x).mean.float()
            count = len(batch.sigma)
            z = torch.cat([predicted(model, z[:count], batch), z[count:]])
        return picture_loss(vae.decode(z.to(memory_format=torch.channels_last)), batch.x)

    recipe = {"edition": repr(edition), "predicted": PREDICTED, "levels": list(LEVELS)}
    trained = fit(
        vae, batch_at, loss, settings, folder, recipe=recipe, on_record=on_record, on_checkpoint=on_checkpoint
    )
    assert isinstance(trained, AutoencoderKL)
    return trained


def predicted(
    model: TextToImage, z: Float[Tensor, "predicted channels height width"], batch: DecoderBatch
) -> Float[Tensor, "predicted channels height width"]:
    """The U-Net's estimates of the latents, from noisy ones."""
    path = OBJECTIVE.schedule.path
    sigma = batch.sigma.double()
    x = z + per_row(sigma, z) * torch.randn(z.shape, generator=batch.generator)
    inputs = (per_row(path.input_scale(sigma), x) * x).to(memory_format=torch.channels_last)
    timesteps = OBJECTIVE.schedule.sigma_to_timestep(sigma)
    prediction = model(inputs, timesteps.float(), batch.ids).float()
    return OBJECTIVE.parameterization.denoised(prediction, x, sigma)
