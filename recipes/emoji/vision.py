"""The image encoder of the embedded model's image prompts: a small CLIP vision network, trained to tell emoji apart.

It sees emoji of many sizes anywhere, on plain backgrounds of any color and on pairs of them, brighter and darker,
blurred and noisy. What ships is its vision half with its projection; what names the emoji is left behind.
"""

import json
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from recipes.emoji.names import EMOJI
from recipes.emoji.render import SIDE, Glyphs, Place, lay, to_bytes
from undertow.checkpoints.files.atomic import write_text
from undertow.checkpoints.files.weights import write_tensors
from undertow.encoders.image import ImageEncoder, random_image_encoder
from undertow.encoders.image_config import ClipVisionConfig
from undertow.encoders.image_pixels import Preprocessing
from undertow.training.fit import FitSettings, fit
from undertow.training.log import StepRecord
from undertow.training.randomness import generator_for, seeded

CONFIG = ClipVisionConfig(
    width=128,
    layers=4,
    heads=4,
    intermediate=512,
    projection=128,
    activation="quick_gelu",
    image_size=SIDE,
    patch_size=8,
)
"""840,000 parameters."""

VISION = FitSettings(
    steps=1000, batch_size=64, learning_rate=1e-3, warmup_steps=100, ema_decay=0.99, checkpoint_every=100
)

SIZES = range(28, 61, 2)
"""Longer side of an emoji in pixels."""

HELD_OUT = 512

Batch = tuple[UInt8[Tensor, "batch 3 64 64"], Int[Tensor, "batch"]]


class EmojiClassifier(nn.Module):
    """The encoder, and a layer on its pooled vector that names emoji."""

    def __init__(self, encoder: ImageEncoder):
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.pooled_dim, len(EMOJI))

    def forward(self, pictures: UInt8[Tensor, "batch 3 64 64"]) -> Float[Tensor, "batch emoji"]:
        pooled = self.encoder(_normalized(pictures, self.encoder.preprocessing)).pooled
        return self.head(pooled)


def new_classifier(seed: int = 0) -> EmojiClassifier:
    """With random weights that learn."""
    with seeded(seed, "vision"):
        encoder = ImageEncoder.from_tensors(random_image_encoder(CONFIG), CONFIG, dtype=torch.float32)
        return EmojiClassifier(encoder.requires_grad_(True))


def train_vision(
    settings: FitSettings,
    folder: Path,
    glyphs: Glyphs,
    *,
    on_record: Callable[[StepRecord], None] = lambda record: None,
) -> EmojiClassifier:
    """The trained network, averaged. folder: see `fit`. Errors: as `fit`."""
    classifier = new_classifier(settings.seed)

    def batch_at(step: int) -> Batch:
        return varied(generator_for(settings.seed, "vision batch", step), settings.batch_size, glyphs)

    def loss(batch: Batch) -> Tensor:
        pictures, names = batch
        return F.cross_entropy(classifier(pictures).float(), names)

    recipe = {"vision": repr(CONFIG), "emoji": len(EMOJI), "sizes": repr(SIZES)}
    trained = fit(classifier, batch_at, loss, settings, folder, recipe=recipe, on_record=on_record)
    assert isinstance(trained, EmojiClassifier)
    return trained


@torch.no_grad()
def accuracy(classifier: EmojiClassifier, glyphs: Glyphs, count: int = HELD_OUT) -> float:
    """Share of pictures that it was not trained with, in which it names the emoji."""
    pictures, names = varied(generator_for(1, "vision held out"), count, glyphs)
    return float((classifier(pictures).argmax(-1) == names).float().mean())


def varied(generator: torch.Generator, count: int, glyphs: Glyphs) -> Batch:
    """Random emoji in pictures that vary as the module says, and the emoji's numbers."""
    names = torch.randint(len(EMOJI), (count,), generator=generator)
    pictures = _backgrounds(generator, count)
    for picture, name in zip(pictures, names.tolist(), strict=True):
        size = SIZES[int(torch.randint(len(SIZES), (), generator=generator))]
        left, top = torch.randint(SIDE - size + 1, (2,), generator=generator).tolist()
        lay(glyphs.at(EMOJI[name], size), picture, Place(size=size, left=left, top=top))
    return to_bytes(_degraded(pictures, generator)), names


def write_vision(encoder: ImageEncoder, folder: Path) -> Path:
    """A folder that transformers' CLIPVisionModelWithProjection and `load_image_encoder` read, in float16."""
    config, seen = encoder.config, encoder.preprocessing
    described = {
        "architectures": ["CLIPVisionModelWithProjection"],
        "model_type": "clip_vision_model",
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.intermediate,
        "projection_dim": config.projection,
        "hidden_act": config.activation,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": config.channels,
        "layer_norm_eps": config.norm_eps,
    }
    side = {"height": config.image_size, "width": config.image_size}
    prepared = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": config.image_size},
        "crop_size": side,
        "resample": seen.resample,
        "image_mean": list(seen.mean),
        "image_std": list(seen.std),
    }
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: tensor.detach().to("cpu", torch.float16).contiguous()
        for name, tensor in encoder.network.state_dict().items()
    }
    write_tensors(tensors, folder / "model.safetensors", {"format": "pt"})
    write_text(json.dumps(prepared, indent=2) + "\n", folder / "preprocessor_config.json")
    write_text(json.dumps(described, indent=2) + "\n", folder / "config.json")
    return folder


def _backgrounds(generator: torch.Generator, count: int) -> Float[Tensor, "count 3 64 64"]:
    """One random color each, or in every second picture two, that pass into each other across it or down."""
    first, second = torch.rand(2, count, 3, 1, 1, generator=generator)
    plain, across = torch.rand(2, count, 1, 1, 1, generator=generator) < 0.5
    ramp = torch.linspace(0, 1, SIDE)
    place = torch.where(across, ramp.expand(SIDE, SIDE), ramp[:, None].expand(SIDE, SIDE))
    return torch.where(plain, first, first + (second - first) * place).expand(count, 3, SIDE, SIDE).clone()


def _degraded(pictures: Float[Tensor, "count 3 64 64"], generator: torch.Generator) -> Float[Tensor, "count 3 64 64"]:
    """Of other contrast and brightness, noisy, every second one at half its resolution."""
    count = len(pictures)
    contrast, brightness, noise, coarse = torch.rand(4, count, 1, 1, 1, generator=generator)
    halved = F.interpolate(F.avg_pool2d(pictures, 2), scale_factor=2, mode="bilinear")
    pictures = torch.where(coarse < 0.5, halved, pictures)
    pictures = (pictures - 0.5) * (0.8 + 0.4 * contrast) + 0.5 + 0.2 * (brightness - 0.5)
    return pictures + 0.05 * noise * torch.randn(pictures.shape, generator=generator)


def _normalized(pictures: UInt8[Tensor, "batch 3 64 64"], seen: Preprocessing) -> Float[Tensor, "batch 3 64 64"]:
    """As `Preprocessing.pixels` gives pictures of the network's own size."""
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (seen.mean, seen.std))
    return (pictures.float() * seen.rescale - mean) / std
