"""Stage 1: the autoencoder, trained on scenes drawn anew at every step."""

from collections.abc import Callable
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from recipes.emoji.editions import FIRST, Edition
from recipes.emoji.render import Glyphs
from undertow.checkpoints.files.atomic import read_json
from undertow.checkpoints.files.model_folder import CONFIG, WEIGHTS
from undertow.checkpoints.files.weights import open_weights
from undertow.errors import ConfigError
from undertow.pictures.pixels import from_uint8, to_uint8
from undertow.training.fit import FitSettings, Progress, fit
from undertow.training.log import StepRecord
from undertow.training.randomness import generator_for, seed_for, seeded
from undertow.vae.autoencoder import AutoencoderKL
from undertow.vae.config import VAEConfig
from undertow.vae.diffusers_config import vae_config_from_diffusers
from undertow.vae.latent_space import LatentSpace

KL_WEIGHT = 1e-6
"""Of the mean divergence per latent number, beside the mean error per pixel: keeps the latents near a unit normal and
the decoder robust to small errors in them."""

LOOKS_CHANGED = 0.25
"""Share of pictures with colors exchanged or mirrored, so that pictures of other styles survive the autoencoder too."""

NORMALIZED_ON = 1024


def vae_config(
    level_channels: tuple[int, ...], latent_channels: int, *, side: int = FIRST.side, middle_attention: bool = True
) -> VAEConfig:
    """One ResBlock a level; latents that need no scale, see `normalize_latents`."""
    return VAEConfig(
        level_channels=level_channels,
        resnets=1,
        latent_channels=latent_channels,
        norm_groups=8,
        middle_attention=middle_attention,
        sample_size=side,
        latent_space=LatentSpace(scale=1.0, channels=latent_channels),
    )


def read_autoencoder(folder: Path, config: VAEConfig) -> AutoencoderKL:
    """The autoencoder in a folder of diffusers' AutoencoderKL, in float32. config: that it must have.
    Errors: `CheckpointError` and its kinds, `ConfigError`."""
    found = vae_config_from_diffusers(read_json(folder / CONFIG))
    if found != config:
        raise ConfigError("autoencoder", str(folder), f"must have the architecture of the recipe, {config}")
    vae = AutoencoderKL(config)
    weights = open_weights(folder / WEIGHTS)
    vae.load_state_dict({name: tensor.float() for name, tensor in weights.each(list(weights.tensors))})
    return vae.requires_grad_(False).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def scenes_at(
    purpose: str, step: int, count: int, glyphs: Glyphs, edition: Edition = FIRST
) -> UInt8[Tensor, "count 3 side side"]:
    """Training pictures that belong to one step."""
    return edition.draw(Random(seed_for(0, purpose, step)), count, glyphs, edition.anywhere)[1]


def train_autoencoder(
    config: VAEConfig,
    settings: FitSettings,
    folder: Path,
    glyphs: Glyphs,
    *,
    edition: Edition = FIRST,
    crop: int | None = None,
    start: AutoencoderKL | None = None,
    kl_weight: float = KL_WEIGHT,
    on_record: Callable[[StepRecord], None] = lambda record: None,
    on_checkpoint: Callable[[Progress], None] = lambda progress: None,
) -> AutoencoderKL:
    """The trained autoencoder, its latents as they were learned, see `normalize_latents`.

    crop: pixels of a side of a random part of each picture, which is all that is learned from; `None` for whole
    pictures. start: an autoencoder to go on with, changed in place; `None` for random weights.
    """
    with seeded(settings.seed, "autoencoder"):
        vae = AutoencoderKL(config) if start is None else start.requires_grad_(True)
    vae = vae.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def batch_at(step: int) -> tuple[Tensor, torch.Generator]:
        generator = generator_for(settings.seed, "autoencoder batch", step)
        pictures = scenes_at("autoencoder scenes", step, settings.batch_size, glyphs, edition)
        x = change_looks(from_uint8(pictures), generator)
        if crop is not None:
            x = random_crops(x, crop, generator)
        return x.to(memory_format=torch.channels_last), generator

    def loss(batch: tuple[Tensor, torch.Generator]) -> Tensor:
        return autoencoder_loss(vae, *batch, kl_weight=kl_weight)

    recipe = {
        "level_channels": list(config.level_channels),
        "latent_channels": config.latent_channels,
        "edition": repr(edition),
        "crop": crop,
        "kl_weight": kl_weight,
    }
    trained = fit(
        vae, batch_at, loss, settings, folder, recipe=recipe, on_record=on_record, on_checkpoint=on_checkpoint
    )
    assert isinstance(trained, AutoencoderKL)
    return trained


def random_crops(
    x: Float[Tensor, "batch 3 height width"], side: int, generator: torch.Generator
) -> Float[Tensor, "batch 3 side side"]:
    """A random square part of each picture. Steps teach more than pixels do, and a part is a quarter of the work."""
    places = [[int(torch.randint(length - side + 1, (), generator=generator)) for length in x.shape[2:]] for _ in x]
    parts = [picture[:, top : top + side, left : left + side] for picture, (top, left) in zip(x, places, strict=True)]
    return torch.stack(parts)


def autoencoder_loss(
    vae: AutoencoderKL,
    x: Float[Tensor, "batch 3 height width"],
    generator: torch.Generator,
    *,
    kl_weight: float = KL_WEIGHT,
) -> Float[Tensor, ""]:
    """Mean absolute plus mean squared error, and the divergence of the posterior from a unit normal."""
    posterior = vae.encode(x)
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    z = mean + torch.exp(0.5 * logvar) * torch.randn(mean.shape, generator=generator)
    divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    return picture_loss(vae.decode(z), x) + kl_weight * divergence


def picture_loss(
    decoded: Float[Tensor, "batch 3 height width"], x: Float[Tensor, "batch 3 height width"]
) -> Float[Tensor, ""]:
    """Mean absolute plus mean squared error."""
    error = decoded.float() - x
    return error.abs().mean() + error.square().mean()


def change_looks(
    x: Float[Tensor, "batch 3 height width"], generator: torch.Generator
) -> Float[Tensor, "batch 3 height width"]:
    """Some pictures with their color channels in another order, mirrored."""
    chosen = torch.rand(len(x), generator=generator) < LOOKS_CHANGED
    order = torch.randperm(3, generator=generator)
    return torch.where(chosen[:, None, None, None], x[:, order].flip(-1), x)


def normalize(vae: AutoencoderKL, glyphs: Glyphs, edition: Edition) -> None:
    """Normalizes the latents of an edition's pictures."""
    normalize_latents(vae, from_uint8(scenes_at("normalize", 0, NORMALIZED_ON, glyphs, edition)))


@torch.no_grad()
def normalize_latents(vae: AutoencoderKL, x: Float[Tensor, "batch 3 height width"]) -> None:
    """Makes every channel of the latents of `x` have mean 0 and variance 1, by changing the 1x1 convolutions behind the
    encoder and before the decoder, which leaves all reconstructions what they were: no scale has to be remembered."""
    channels = vae.config.latent_channels
    latents = torch.cat([vae.encode(part).mean for part in x.split(64)])
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    encoder, decoder = vae.quant_conv, vae.post_quant_conv
    assert encoder is not None
    assert encoder.bias is not None
    assert decoder is not None
    assert decoder.bias is not None
    encoder.weight[:channels] /= std[:, None, None, None]
    encoder.bias[:channels] = (encoder.bias[:channels] - mean) / std
    encoder.bias[channels:] -= 2 * std.log()
    decoder.bias += F.conv2d(mean[None, :, None, None], decoder.weight)[0, :, 0, 0]
    decoder.weight *= std[None, :, None, None]


@torch.no_grad()
def rebuilt(vae: AutoencoderKL, pictures: UInt8[Tensor, "count 3 side side"]) -> UInt8[Tensor, "count 3 side side"]:
    """Pictures as they come back from the autoencoder."""
    return torch.cat([to_uint8(vae.decode(vae.encode(from_uint8(part)).mean)) for part in pictures.split(32)])


@torch.no_grad()
def psnr(vae: nn.Module, x: Float[Tensor, "batch 3 height width"]) -> float:
    """Peak signal-to-noise ratio of reconstructions in dB, 8-bit peak, over all pictures together."""
    assert isinstance(vae, AutoencoderKL)
    errors = [(vae.decode(vae.encode(part).mean).clamp(-1, 1) - part).square().mean() for part in x.split(64)]
    return float(10 * torch.log10(4 / torch.stack(errors).mean()))
