"""What should an image prompt of the embedded model `emoji` read of a reference: a CLIP vision network, or the latents
of the autoencoder, which is there anyway?

    python -m recipes.emoji.adapter_data --out out/emoji-adapters
    python -m recipes.emoji.compare_image_encoders --data out/emoji-adapters/references --out out/emoji-encoders

The second trains the image prompt as the first says, but on latents: once on all of them as one vector (base), once on
a vector of every patch, through a resampler (plus). Then it counts in how many pictures the emoji of a reference is
recognized, beside what ships. Twenty minutes on two cores; a training that was stopped goes on.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import undertow
from recipes.arguments import add_threads, count, parsed
from recipes.emoji.control import draw_reference, on_color
from recipes.emoji.draw import SETTINGS
from recipes.emoji.evaluate import kinds
from recipes.emoji.recognize import recognize
from recipes.emoji.render import FONT, SIDE, Glyphs
from undertow import Adapter, GenerationRequest, UNetService
from undertow.adapters.image_prompt.image_prompt_file import write_image_prompt
from undertow.adapters.image_prompt.kind import ImagePromptKind
from undertow.adapters.image_prompt.projection import Variant
from undertow.encoders.clip_network import ClipVision
from undertow.encoders.image import ImageEncoder, ImageFeatures
from undertow.encoders.image_config import ClipVisionConfig
from undertow.encoders.image_pixels import Pixels, Preprocessing
from undertow.training.captioned import load_captioned
from undertow.training.fit import FitSettings
from undertow.training.image_prompt import ImagePromptSettings, train_image_prompt
from undertow.training.paired_images import load_paired_images
from undertow.training.randomness import seed_for
from undertow.vae.autoencoder import AutoencoderKL

PATCH = 8
"""Pixels to a side, as the CLIP network's."""


class Latents(ImageEncoder):
    """The autoencoder in the place of a vision network. pooled: the latents of all patches, each averaged; hidden:
    their mean, and all of each patch."""

    def __init__(self, vae: AutoencoderKL):
        cells = PATCH // vae.config.factor
        channels = vae.config.latent_channels
        self.cells = cells
        config = ClipVisionConfig(
            width=channels * cells**2,
            layers=1,
            heads=1,
            intermediate=1,
            projection=channels * (SIDE // PATCH) ** 2,
            activation="gelu",
            image_size=SIDE,
            patch_size=PATCH,
        )
        half = (0.5, 0.5, 0.5)
        with torch.device("meta"):
            unused = ClipVision(config)
        super().__init__(config, unused, replace(Preprocessing.square(SIDE), mean=half, std=half))
        self.vae = vae

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    @property
    def device(self) -> torch.device:
        return next(self.vae.parameters()).device

    def forward(self, pixels: Pixels) -> ImageFeatures:
        latents = self.vae.encode(pixels.to(self.device)).mean
        patches = F.pixel_unshuffle(latents, self.cells).flatten(2).transpose(1, 2)
        return ImageFeatures(
            pooled=F.avg_pool2d(latents, self.cells).flatten(1),
            hidden=torch.cat([patches.mean(1, keepdim=True), patches], dim=1),
        )


class Always:
    """Answers with one encoder whatever adapter asks (see `undertow.adapters.image_prompt.encoder.Encoders`)."""

    def __init__(self, encoder: ImageEncoder):
        self.encoder = encoder

    def for_adapter(self, *asked: object) -> ImageEncoder:
        return self.encoder


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--data", type=Path, default=Path("out/emoji-adapters/references"))
    parser.add_argument("--out", type=Path, default=Path("out/emoji-encoders"))
    parser.add_argument("--model", default="emoji", help="embedded model or pipeline folder")
    parser.add_argument("--steps", type=count, default=800, help="of training")
    parser.add_argument("--prompts", type=count, default=100)
    add_threads(parser)
    parser.add_argument("--font", type=Path, default=FONT)
    options = parsed(parser)
    glyphs = Glyphs(options.font)
    glyphs.require()
    service = undertow.load(options.model, dtype=torch.float32)
    image_prompts = service.adapters.kind(ImagePromptKind)
    shipped = image_prompts.encoders
    print("| reads | background alone, and a reference | the reference alone |\n|---|---|---|")
    measure("CLIP vision network, as shipped", service, "references", options.prompts, glyphs)
    variants: dict[Variant, str] = {"base": "latents, one vector", "plus": "latents of each patch"}
    for variant, reads in variants.items():
        encoder = Latents(service.vae)
        image_prompts.encoders = Always(encoder)  # pyright: ignore[reportAttributeAccessIssue]
        file = train(service, encoder, variant, options)
        measure(reads, service, str(file), options.prompts, glyphs)
    image_prompts.encoders = shipped


def train(service: UNetService, encoder: ImageEncoder, variant: Variant, options: argparse.Namespace) -> Path:
    """The file of an image prompt that reads this encoder, trained as the shipped one."""
    folder = options.out / variant
    settings = ImagePromptSettings(
        fit=FitSettings(steps=options.steps, batch_size=32, learning_rate=1e-3, precision="bf16", checkpoint_every=200),
        variant=variant,
        dropped_captions=0.15,
        timesteps="logit_normal",
    )
    pictures = load_captioned(options.data / "pictures", size=SIDE)
    references = load_paired_images(options.data / "references", options.data / "pictures", size=SIDE)
    prompt = train_image_prompt(service.model, encoder, pictures, settings, folder, references=references)
    file = folder / f"{variant}.safetensors"
    write_image_prompt(prompt, file)
    return file


def measure(reads: str, service: UNetService, source: str, prompts: int, glyphs: Glyphs) -> None:
    """Prints one line of the table."""
    scenes = kinds(prompts)[0].scenes
    random = Random(seed_for(0, "references"))
    references = [draw_reference(scene.names[0], random, glyphs) for scene in scenes]
    shares = []
    for texts in ([on_color(scene.color) for scene in scenes], [""] * prompts):
        requests = [
            GenerationRequest(
                prompt=text,
                seed=seed,
                steps=SETTINGS.steps,
                guidance_scale=SETTINGS.guidance,
                adapters=(Adapter(source, image=as_image(references[seed])),),
            )
            for seed, text in enumerate(texts)
        ]
        drawn = torch.stack([as_tensor(result.images[0]) for result in service.generate_many(requests)])
        shares.append(float(recognize(drawn, scenes, glyphs).right.float().mean()))
    print(f"| {reads} | {' | '.join(f'{share:.1%}' for share in shares)} |", flush=True)


def as_image(picture: Tensor) -> Image.Image:
    return Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())


def as_tensor(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)


if __name__ == "__main__":
    main()
