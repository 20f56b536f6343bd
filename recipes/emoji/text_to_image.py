"""Stage 4: text encoder and U-Net, trained together on cached latents and their captions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from random import Random

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from recipes.emoji.editions import FIRST, Edition
from recipes.emoji.render import Glyphs, draw_places, render
from recipes.emoji.scenes import RELATIONS, draw_training_scene, spoken
from recipes.emoji.tokenizer import POSITIONS
from undertow.diffusion.parameterizations import VPrediction
from undertow.diffusion.schedules import NoiseSchedule
from undertow.encoders.clip import OutputSelection, TextEncoder
from undertow.encoders.clip_config import ClipTextConfig
from undertow.encoders.clip_tensors import random_clip
from undertow.encoders.tokenizer import Tokenizer
from undertow.pictures.pixels import from_uint8
from undertow.training.fit import FitSettings, Progress, fit
from undertow.training.log import StepRecord
from undertow.training.objective import Example, Objective, TruncatedSNRWeighting
from undertow.training.precision import autocast
from undertow.training.randomness import generator_for, seed_for, seeded
from undertow.training.timesteps import LogitNormalTimesteps
from undertow.unet.conditioning import Conditioning
from undertow.unet.config import UNetConfig
from undertow.unet.diffusers_config import config_to_diffusers
from undertow.unet.unet import UNet
from undertow.vae.autoencoder import AutoencoderKL

OBJECTIVE = Objective(
    parameterization=VPrediction(),
    # Noisier at the end than Stable Diffusion (sigma 64, not 15): nothing of the background's color is left to see.
    schedule=NoiseSchedule.scaled_linear(beta_end=0.02),
    weighting=TruncatedSNRWeighting(limit=3.0),
    timesteps=LogitNormalTimesteps(mean=0.0, std=1.0, stratified=True),
)
OUTPUT_SELECTION = OutputSelection(skip=1, final_norm=True)

DROPPED = 0.1
"""Share of captions that become empty, for guidance."""

UNKNOWN_WORDS = 0.1
"""Share of captions that get a word without meaning, which the model learns to pass over."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CachedLatents:
    """Training pictures as the U-Net sees them, each with its scene's captions to choose from."""

    latents: Float[Tensor, "count channels height width"]
    captions: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.captions)

    def mostly_pairs(self) -> "CachedLatents":
        """All pictures of several emoji, and a third as many of one, so that those are not forgotten."""
        several = [any(f" {relation} " in caption for relation in RELATIONS) for caption in self.captions]
        pairs = [index for index, more in enumerate(several) if more]
        singles = [index for index, more in enumerate(several) if not more][: len(pairs) // 3]
        chosen = pairs + singles
        return CachedLatents(latents=self.latents[chosen], captions=tuple(self.captions[index] for index in chosen))


@torch.no_grad()
def cache_latents(
    vae: AutoencoderKL,
    count: int,
    glyphs: Glyphs,
    *,
    edition: Edition = FIRST,
    batch_size: int = 64,
    on_pictures: Callable[[int], None] = lambda count: None,
) -> CachedLatents:
    """`count` random training scenes on whole cells, encoded: means of the posteriors, in float16."""
    random, latents, captions = Random(seed_for(0, "latents")), [], []
    for start in range(0, count, batch_size):
        pictures = []
        for _ in range(min(batch_size, count - start)):
            scene = draw_training_scene(random, edition.mix)
            places = draw_places(scene, random, edition.on_cells)
            pictures.append(render(scene, places, glyphs, edition.side))
            captions.append(with_unknown_word(spoken(scene, random), random))
        with autocast("bf16", vae.device):
            latents.append(vae.encode(from_uint8(torch.stack(pictures))).mean.half())
        on_pictures(len(captions))
    return CachedLatents(latents=torch.cat(latents), captions=tuple(captions))


def with_unknown_word(caption: str, random: Random) -> str:
    """At times with a made-up word before or after it."""
    if random.random() >= UNKNOWN_WORDS:
        return caption
    word = "".join(random.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(random.randint(2, 8)))
    return f"{word} {caption}" if random.random() < 0.5 else f"{caption} {word}"


class TextToImage(nn.Module):
    """The two networks that learn together. clip: transformers' modules of `text`."""

    def __init__(self, text: TextEncoder, unet: UNet):
        super().__init__()
        self.text = text
        self.unet = unet

    def forward(
        self,
        x: Float[Tensor, "batch channels height width"],
        timesteps: Float[Tensor, "batch"],
        ids: Int[Tensor, "batch tokens"],
    ) -> Float[Tensor, "batch channels height width"]:
        """The prediction for captions given as token ids."""
        unique, places = ids.unique(dim=0, return_inverse=True)
        context = self.text(unique, OUTPUT_SELECTION).tokens[places]
        return self.unet(x, timesteps, Conditioning(context=context))


@dataclass(frozen=True, kw_only=True, eq=False)
class Asked:
    """What the text encoder is asked while the U-Net learns: a module that learns too, and a loss of token ids and
    their captions. weight: as the loss has it."""

    reader: nn.Module
    loss: Callable[[Int[Tensor, "batch tokens"], Sequence[str]], Tensor]
    weight: float


def new_model(unet: UNetConfig, *, layers: int, heads: int, tokenizer: Tokenizer, seed: int) -> TextToImage:
    """Both networks with random weights."""
    assert unet.context_dim is not None
    clip = ClipTextConfig(
        width=unet.context_dim,
        layers=layers,
        heads=heads,
        intermediate=4 * unet.context_dim,
        projection=unet.context_dim,
        activation="quick_gelu",
        vocabulary=tokenizer.eos + 1,  # the last of its tokens
        positions=POSITIONS,
    )
    with seeded(seed, "text to image"):
        text = TextEncoder.from_tensors("clip_l", random_clip(clip), config=clip, tokenizer=tokenizer)
        network = UNet(unet).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        return TextToImage(text.requires_grad_(True), network)


def train_text_to_image(
    model: TextToImage,
    data: CachedLatents,
    settings: FitSettings,
    folder: Path,
    *,
    edition: Edition = FIRST,
    objective: Objective = OBJECTIVE,
    text_learns: bool = True,
    asked: Asked | None = None,
    on_record: Callable[[StepRecord], None] = lambda record: None,
    on_checkpoint: Callable[[Progress], None] = lambda progress: None,
) -> TextToImage:
    """The trained networks, averaged. text_learns: or the U-Net alone. asked: of the text encoder of `model`, at each
    step."""
    model.unet.requires_grad_(True)  # an average that an earlier stage gave is frozen
    model.text.requires_grad_(text_learns)
    encode = lru_cache(maxsize=None)(lambda caption: token_ids(caption, model.text.tokenizer))

    def batch_at(step: int) -> tuple[Example, Tensor, list[str]]:
        random = Random(seed_for(settings.seed, "captions", step))
        generator = generator_for(settings.seed, "text to image batch", step)
        chosen = torch.randint(len(data), (settings.batch_size,), generator=generator)
        x0 = data.latents[chosen].float()
        captions = ["" if random.random() < DROPPED else data.captions[index] for index in chosen.tolist()]
        u = objective.timesteps.draw(len(x0), generator)
        example = objective.example(x0, torch.randn(x0.shape, generator=generator), u)
        return example, torch.tensor([encode(caption) for caption in captions]), captions

    def loss(batch: tuple[Example, Tensor, list[str]]) -> Tensor:
        example, ids, captions = batch
        inputs = example.inputs.to(memory_format=torch.channels_last)
        error = example.loss(model(inputs, example.timesteps.to(torch.float32), ids))
        return error if asked is None else error + asked.loss(ids, captions)

    recipe = {
        "unet": config_to_diffusers(model.unet.config),
        "pictures": len(data),
        "edition": repr(edition),
        "objective": repr(objective),
        **({} if text_learns else {"text_learns": False}),
        **({} if asked is None else {"asked": asked.weight}),
    }
    module = model if asked is None else nn.ModuleList([model, asked.reader])
    trained = fit(
        module,
        batch_at,
        loss,
        settings,
        folder,
        recipe=recipe,
        on_record=on_record,
        on_checkpoint=lambda progress: on_checkpoint(replace(progress, network=_of(progress.network))),
    )
    return _of(trained)


def _of(trained: nn.Module) -> TextToImage:
    """The model in what was trained."""
    model = trained[0] if isinstance(trained, nn.ModuleList) else trained
    assert isinstance(model, TextToImage)
    return model


def token_ids(text: str, tokenizer: Tokenizer) -> list[int]:
    """Marks around the tokens, end marks behind: as many as the encoder has positions."""
    ids = tokenizer.encode(text)[: POSITIONS - 2]
    return [tokenizer.bos, *ids, *[tokenizer.eos] * (POSITIONS - 1 - len(ids))]
