"""Stage 6: the decoder learns from what the model draws, too, whose latents are not quite those of a picture.

Training pictures are drawn anew from under noise (`redraw`). What comes out shows the same scene at the same place,
with all that the U-Net gets wrong, and the picture that it should have been is known. A critic keeps the decoder from
answering doubt with blur. The encoder stays as it is, and with it the latents that the U-Net was trained on.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from recipes.emoji.autoencoder import change_looks, scenes_at
from recipes.emoji.critic import Critic, balanced
from recipes.emoji.draw import SETTINGS, redraw
from recipes.emoji.editions import Edition
from recipes.emoji.folders import save_whole
from recipes.emoji.render import Glyphs
from recipes.emoji.scenes import spoken
from recipes.emoji.text_to_image import TextToImage
from undertow.pictures.pixels import from_uint8
from undertow.training.fit import FitSettings, Progress, fit
from undertow.training.log import StepRecord
from undertow.training.randomness import generator_for, seed_for, seeded
from undertow.vae.autoencoder import AutoencoderKL

FIRST_STEPS = range(11, 14)
"""Of the sampler's twenty, from noise of sigma 2.2 to 0.9: above, emoji come out in other shapes than they were; below,
hardly anything changes."""

TOGETHER = 16
"""Pictures that are drawn anew in one batch, from the same step on."""

REDRAWN = 0.5
"""Share of pictures that are decoded from latents that were drawn anew; the others from their own."""

EDGES = 0.5
"""Of the mean difference between neighboring pixels, beside that of pixels."""

PLEASING = 0.5
"""Of the critic's pull on a decoded picture, beside that of the picture that it should be; risen to over `WARM_UP`
steps."""

WARM_UP = 100

LESSONS = 0.1
"""Of the critic's own loss: its steps are those of the decoder's optimizer, whose size is the same whatever this is,
but the norm of both gradients is clipped together."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Redrawn:
    """Training pictures, and their latents as the model draws them."""

    pictures: UInt8[Tensor, "count 3 side side"]
    latents: Float[Tensor, "count channels height width"]


@torch.inference_mode()
def redraw_pictures(
    model: TextToImage,
    vae: AutoencoderKL,
    count: int,
    glyphs: Glyphs,
    *,
    edition: Edition,
    on_pictures: Callable[[int], None] = lambda count: None,
) -> Redrawn:
    """`count` random training scenes, drawn anew in bfloat16 as a user's pictures are; latents in float16."""
    half = copy.deepcopy(model).to(torch.bfloat16)
    random, pictures, latents = Random(seed_for(0, "redrawn")), [], []
    for start in range(0, count, TOGETHER):
        seeds = range(start, min(start + TOGETHER, count))
        scenes, rendered = edition.draw(random, len(seeds), glyphs, edition.on_cells)
        z = vae.encode(from_uint8(rendered)).mean.float()
        captions = [spoken(scene, random) for scene in scenes]
        latents.append(redraw(half, z, captions, seeds, random.choice(FIRST_STEPS), settings=SETTINGS).half())
        pictures.append(rendered)
        on_pictures(seeds.stop)
    return Redrawn(pictures=torch.cat(pictures), latents=torch.cat(latents))


def redrawn_in(
    path: Path,
    model: TextToImage,
    vae: AutoencoderKL,
    count: int,
    glyphs: Glyphs,
    *,
    edition: Edition,
    on_pictures: Callable[[int], None] = lambda count: None,
) -> Redrawn:
    """What `redraw_pictures` wrote to a file; where nothing lies there, they are drawn and written first."""
    if not path.is_file():
        found = redraw_pictures(model, vae, count, glyphs, edition=edition, on_pictures=on_pictures)
        save_whole({"pictures": found.pictures, "latents": found.latents}, path)
    return Redrawn(**torch.load(path, weights_only=True))


@dataclass(frozen=True, kw_only=True, eq=False)
class DecoderBatch:
    """Pictures in [-1, 1]; the first of them are decoded from these latents. pleasing: the share of the critic."""

    x: Float[Tensor, "batch 3 height width"]
    redrawn: Float[Tensor, "redrawn channels cells_high cells_wide"]
    pleasing: float


def train_decoder(
    vae: AutoencoderKL,
    redrawn: Redrawn,
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
    with seeded(settings.seed, "critic"):
        critic = Critic().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    count = round(REDRAWN * settings.batch_size)

    def batch_at(step: int) -> DecoderBatch:
        generator = generator_for(settings.seed, "decoder batch", step)
        chosen = torch.randint(len(redrawn.pictures), (count,), generator=generator)
        others = scenes_at("decoder scenes", step, settings.batch_size - count, glyphs, edition)
        x = torch.cat([from_uint8(redrawn.pictures[chosen]), change_looks(from_uint8(others), generator)])
        return DecoderBatch(
            x=x.to(memory_format=torch.channels_last),
            redrawn=redrawn.latents[chosen].float().to(memory_format=torch.channels_last),
            pleasing=PLEASING * min(1.0, step / WARM_UP),
        )

    def loss(batch: DecoderBatch) -> Tensor:
        with torch.no_grad():
            z = torch.cat([batch.redrawn, vae.encode(batch.x[count:]).mean.float()])
        decoded = vae.decode(z.to(memory_format=torch.channels_last)).float()
        right = crisp_loss(decoded, batch.x, count)
        pleasing = balanced(right, critic.displeasure(decoded), decoded, batch.pleasing)
        return pleasing + LESSONS * critic.lesson(batch.x, decoded)

    recipe = {
        "edition": repr(edition),
        "redrawn": [len(redrawn.pictures), REDRAWN, *FIRST_STEPS],
        "loss": [EDGES, PLEASING, WARM_UP, LESSONS],
    }
    trained = fit(
        nn.ModuleList([vae, critic]),
        batch_at,
        loss,
        settings,
        folder,
        recipe=recipe,
        on_record=on_record,
        on_checkpoint=lambda progress: on_checkpoint(replace(progress, network=_of(progress.network))),
    )
    return _of(trained)


def crisp_loss(
    decoded: Float[Tensor, "batch 3 height width"], x: Float[Tensor, "batch 3 height width"], doubtful: int
) -> Float[Tensor, ""]:
    """Mean absolute errors of pixels and of differences between neighbors, and the mean squared error of all but the
    first `doubtful`: of several answers, its least is their mean."""
    error = decoded - x
    edges = sum((error.diff(dim=dim).abs().mean() for dim in (2, 3)), torch.zeros(()))
    return error.abs().mean() + EDGES * edges + error[doubtful:].square().mean()


def _of(trained: nn.Module) -> AutoencoderKL:
    """The autoencoder in what was trained."""
    assert isinstance(trained, nn.ModuleList)
    vae = trained[0]
    assert isinstance(vae, AutoencoderKL)
    return vae
