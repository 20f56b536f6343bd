"""Pictures of many captions at once, by networks in memory: for sample sheets and the measurements."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import UInt8
from torch import Tensor

from recipes.emoji.render import SIDE
from recipes.emoji.text_to_image import OBJECTIVE, OUTPUT_SELECTION, TextToImage, token_ids
from undertow.diffusion.denoiser import Denoiser
from undertow.diffusion.grids import sigma_grid
from undertow.diffusion.guidance import ClassifierFree, GuidedDenoiser
from undertow.sampling.catalogue import start_sampler
from undertow.sampling.noise import NoiseSource
from undertow.sampling.protocol import drive
from undertow.training.pictures import to_uint8
from undertow.unet.conditioning import Conditioning, concatenate
from undertow.vae.autoencoder import AutoencoderKL

SAMPLER, SCHEDULE, STEPS, GUIDANCE = "dpmpp_2m", "karras", 20, 4.0


@dataclass(frozen=True, kw_only=True)
class DrawSettings:
    """How pictures are drawn, beside their captions and seeds."""

    steps: int = STEPS
    guidance: float = GUIDANCE
    sampler: str = SAMPLER
    schedule: str = SCHEDULE


@torch.inference_mode()
def draw(
    model: TextToImage,
    vae: AutoencoderKL,
    captions: Sequence[str],
    seeds: Sequence[int],
    *,
    settings: DrawSettings = DrawSettings(),
    batch_size: int = 50,
    on_pictures: Callable[[int], None] = lambda count: None,
) -> UInt8[Tensor, "count 3 64 64"]:
    """One picture per caption and seed, as `undertow generate` draws it."""
    pictures = []
    for start in range(0, len(captions), batch_size):
        chosen = slice(start, start + batch_size)
        pictures.append(_draw_batch(model, vae, captions[chosen], seeds[chosen], settings))
        on_pictures(len(pictures[-1]))
    return torch.cat(pictures)


def _draw_batch(
    model: TextToImage, vae: AutoencoderKL, captions: Sequence[str], seeds: Sequence[int], settings: DrawSettings
) -> UInt8[Tensor, "count 3 64 64"]:
    def conditioning(texts: Sequence[str]) -> Conditioning:
        ids = torch.tensor([token_ids(text, model.text.tokenizer) for text in texts])
        return Conditioning(context=model.text(ids, OUTPUT_SELECTION).tokens)

    sigmas = sigma_grid(settings.schedule, OBJECTIVE.schedule, settings.steps)
    noise, side = NoiseSource(seeds), SIDE // vae.config.factor
    denoise = GuidedDenoiser(
        denoiser=Denoiser(network=model.unet, parameterization=OBJECTIVE.parameterization, schedule=OBJECTIVE.schedule),
        guidance=ClassifierFree(scale=settings.guidance),
        conditional=conditioning(captions),
        unconditional=conditioning([""] * len(captions)),
        concatenate=concatenate,
    )
    x = OBJECTIVE.schedule.path.pure_noise(noise.draw((vae.config.latent_channels, side, side)), sigmas[0])
    schedule = OBJECTIVE.schedule
    steps = start_sampler(settings.sampler, x, sigmas, path=schedule.path, noise=noise, schedule=schedule)
    latents = drive(steps, denoise)
    return to_uint8(vae.decode(vae.config.latent_space.from_model(latents)).clamp(-1, 1))
