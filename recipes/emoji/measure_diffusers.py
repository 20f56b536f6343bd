"""The evaluation of the embedded model `emoji`, drawn by diffusers' pipeline from the same folder and the same noise.

    python -m recipes.emoji.measure_diffusers --out out/emoji/diffusers.json
    python -m recipes.emoji evaluate --diffusers out/emoji/diffusers.json

Half an hour on two cores. diffusers rounds the timesteps of the Karras grid to whole numbers and undertow does not, so
the pictures differ a little; their shares must not.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import diffusers
import numpy as np
import torch

from recipes.arguments import add_threads, count, parsed
from recipes.emoji.draw import SETTINGS
from recipes.emoji.editions import edition_of
from recipes.emoji.evaluate import PROMPTS, kinds, measure, write_shares
from recipes.emoji.render import FONT, Glyphs
from undertow.embedded import embedded_models
from undertow.sampling.noise import NoiseSource

BATCH = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", type=Path, default=embedded_models().get("emoji"), help="pipeline folder")
    parser.add_argument("--prompts", type=count, default=PROMPTS, help="of each kind")
    parser.add_argument("--guidance", type=float, default=SETTINGS.guidance)
    parser.add_argument("--steps", type=count, default=SETTINGS.steps)
    parser.add_argument("--font", type=Path, default=FONT)
    add_threads(parser)
    parser.add_argument("--out", type=Path, default=Path("out/emoji/diffusers.json"))
    options = parsed(parser)
    if options.model is None:
        parser.error("emoji is not among the embedded models yet: --model FOLDER")
    glyphs = Glyphs(options.font)
    glyphs.require()
    pipeline = load_pipeline(options.model)
    measured = []
    for kind in kinds(options.prompts, edition_of(side_of(pipeline)).mix):
        measured.append(
            measure(
                kind, lambda captions, seeds: draw(pipeline, captions, seeds, options.steps, options.guidance), glyphs
            )
        )
        print(f"{kind.name}: {measured[-1].right:.1%} right, background {measured[-1].color:.1%}", flush=True)
    write_shares(f"diffusers {diffusers.__version__}", measured, options.out)
    print(f"written: {options.out}")


def load_pipeline(folder: Path) -> diffusers.StableDiffusionPipeline:
    """diffusers' pipeline with the sampler that undertow draws with."""
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder).to(torch.float32)
    pipeline.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(
        pipeline.scheduler.config, use_karras_sigmas=True
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def side_of(pipeline: diffusers.StableDiffusionPipeline) -> int:
    """Pixels of a side of its pictures."""
    return pipeline.unet.config.sample_size * pipeline.vae_scale_factor


def draw(
    pipeline: diffusers.StableDiffusionPipeline,
    captions: Sequence[str],
    seeds: Sequence[int],
    steps: int,
    guidance: float,
) -> torch.Tensor:
    """One picture per caption and seed, uint8 [count, 3, side, side]."""
    cells, channels = pipeline.unet.config.sample_size, pipeline.unet.config.in_channels
    pictures = []
    for start in range(0, len(captions), BATCH):
        chosen = slice(start, start + BATCH)
        drawn = pipeline(
            list(captions[chosen]),
            num_inference_steps=steps,
            guidance_scale=guidance,
            height=side_of(pipeline),
            width=side_of(pipeline),
            latents=NoiseSource(seeds[chosen]).draw((channels, cells, cells)),
            output_type="np",
        ).images  # pyright: ignore[reportAttributeAccessIssue]
        pictures.append(torch.from_numpy((np.asarray(drawn) * 255).round().astype(np.uint8)).permute(0, 3, 1, 2))
        print(f"{start + len(pictures[-1])} of {len(captions)}", flush=True)
    return torch.cat(pictures)


if __name__ == "__main__":
    main()
