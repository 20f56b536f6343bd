"""Tiny pipelines, pictures and runs for the tests of LoRA training."""

from dataclasses import replace

import torch

from undertow.checkpoints.read.model import LoadedModel
from undertow.checkpoints.read.model_loading import load_model
from undertow.training.captioned import CaptionedPictures, Crop
from undertow.training.fit import FitSettings
from undertow.training.lora import LoraSettings, TrainableLora, new_lora

FIT = FitSettings(
    steps=4,
    batch_size=4,
    learning_rate=5e-3,
    warmup_steps=2,
    ema_decay=0.9,
    precision="float32",
    log_every=1,
    checkpoint_every=2,
)
SETTINGS = LoraSettings(fit=FIT, rank=4, alpha=2.0)


def load(folder) -> LoadedModel:
    return load_model(folder, dtype=torch.float32, channels_last=True)


def settings(*, steps: int = FIT.steps, **changes) -> LoraSettings:
    return replace(SETTINGS, fit=replace(FIT, steps=steps), **changes)


def pictures(count: int = 4, size: int = 32) -> CaptionedPictures:
    """Noise, each with a caption of its own."""
    pixels = torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(9))
    crops = tuple(Crop(height=size + index, width=2 * size, top=0, left=size // 2) for index in range(count))
    return CaptionedPictures(
        pixels=pixels.to(torch.uint8),
        captions=("red apple", "owl", "a cat left of a dog", "rocket")[:count],
        crops=crops,
    )


def random_lora(model: LoadedModel, chosen: LoraSettings) -> TrainableLora:
    """Updates that change something, without training."""
    lora = new_lora(model.require_unet(), model.require_text(), chosen)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in lora.named_parameters():
            if name.endswith("up"):
                parameter.copy_(0.7 * torch.randn(parameter.shape, generator=generator))
    return lora
