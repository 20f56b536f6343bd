"""Training a ControlNet (arXiv:2302.05543): a copy of the encoder of a frozen text-to-image model learns to make it
follow hints, from pictures with captions and a hint each.

As for a LoRA (`training.lora`): what is trained for is the model's own, and the loop is `fit`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from undertow.adapters.control.controlnet import ControlNet
from undertow.checkpoints.read.model import LoadedModel
from undertow.errors import InvalidInput
from undertow.training.base_model import (
    encode_pictures,
    fingerprint,
    require_own_folder,
    require_size,
    require_trainable,
)
from undertow.training.captioned import CaptionedPictures
from undertow.training.checkpointing import checkpointing
from undertow.training.examples import (
    Examples,
    FixedCaptions,
    TrainingBatch,
    base_recipe,
    model_objective,
    require_settings,
)
from undertow.training.fit import FitSettings
from undertow.training.log import StepRecord
from undertow.training.low_rank import frozen
from undertow.training.randomness import seeded
from undertow.unet.blocks import Checkpointing
from undertow.unet.conditioning import Ports, Residuals
from undertow.unet.unet import UNet

HINT_CHANNELS = (16, 32, 96, 256)
"""Of every published ControlNet, whose autoencoder has 8 pixels to a cell; the first are taken for smaller cells."""


@dataclass(frozen=True, kw_only=True)
class ControlSettings:
    """The settings of a ControlNet training.

    dropped: the share of captions that are replaced by the empty caption, so that the network learns to rely on the
    hints (section 3.4). timesteps, min_snr_gamma, gradient_checkpointing: see `LoraSettings`. Errors: `ConfigError`.
    """

    fit: FitSettings
    dropped: float = 0.5
    timesteps: str = "uniform"
    min_snr_gamma: float | None = None
    gradient_checkpointing: Checkpointing = False

    def __post_init__(self):
        rules = (("dropped", self.dropped, 0 <= self.dropped < 1, "must lie in [0, 1)"),)
        require_settings(self.fit, self.timesteps, rules)


def train_controlnet(
    model: LoadedModel,
    pictures: CaptionedPictures,
    hints: UInt8[Tensor, "count channels size size"],
    settings: ControlSettings,
    folder: Path,
    *,
    on_resume: Callable[[int], None] = lambda step: None,
    on_record: Callable[[StepRecord], None] = lambda record: None,
    stop: Callable[[], bool] = lambda: False,
) -> ControlNet:
    """Trains a ControlNet and returns it with its averaged weights (EMA); the model itself is not changed.

    hints: one for each picture, of the same size. folder: see `fit`. Errors: `InvalidInput` for models that cannot be
    trained and for hints that do not match the pictures, `MissingComponent`; and those of `fit`.
    """
    unet, text = require_trainable(model)
    require_size(model, pictures.size)
    require_own_folder(model, folder)
    if len(hints) != len(pictures) or hints.shape[-1] != pictures.size:
        expected = f"{len(pictures)} of {pictures.size}x{pictures.size} pixels"
        raise InvalidInput("hints", f"{len(hints)} of {hints.shape[-1]}", expected, "give one for each picture")
    control = new_control(model, hint_in=hints.shape[1])
    objective = model_objective(model, settings.timesteps, settings.min_snr_gamma)
    latents = encode_pictures(model, pictures)
    examples = Examples(
        latents=latents, fit=settings.fit, objective=objective, purpose="control batch", device=unet.device
    )
    loss = _Loss(
        unet=unet,
        control=control,
        hints=hints,
        captions=FixedCaptions.of(text, unet.config, pictures),
        settings=settings,
    )
    recipe = {
        **base_recipe(model, pictures, objective),
        "hints": fingerprint(hints),
        "hint_channels": list(control.config.hint_channels),
        "dropped": settings.dropped,
    }

    control.gradient_checkpointing = settings.gradient_checkpointing
    with frozen(unet, *text.encoders), checkpointing(unet, settings.gradient_checkpointing):
        return examples.train(control, loss, folder, recipe, on_resume=on_resume, on_record=on_record, stop=stop)


def new_control(model: LoadedModel, *, hint_in: int = 3, seed: int = 0) -> ControlNet:
    """Returns a ControlNet whose outputs are zero, for hints of the size of the model's pictures."""
    halvings = model.require_vae().config.factor.bit_length() - 1
    widths = (HINT_CHANNELS + HINT_CHANNELS[-1:] * halvings)[: halvings + 1]
    with seeded(seed, "hint embedding"):
        return ControlNet.from_unet(model.require_unet(), widths, hint_in=hint_in)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Loss:
    """The loss of a batch."""

    unet: UNet
    control: ControlNet
    hints: UInt8[Tensor, "count channels size size"]
    captions: FixedCaptions
    settings: ControlSettings

    def __call__(self, batch: TrainingBatch) -> Tensor:
        device, dtype = self.unet.device, self.unet.dtype
        inputs = batch.example.inputs.to(memory_format=torch.channels_last)
        timesteps = batch.example.timesteps.to(torch.float32)
        hint = self.hints[batch.indices].to(device=device, dtype=dtype) / 255
        given = self.captions.conditioning(batch.indices, batch.uniform < self.settings.dropped).to(dtype=dtype)
        added = self.control(inputs, timesteps, given, self.control.embed_hint(hint))
        # Autocast networks answer in bfloat16, and the U-Net's door asks for its own type.
        residuals = Residuals(skips=tuple(skip.to(dtype) for skip in added.skips), middle=added.middle.to(dtype))
        prediction = self.unet(inputs, timesteps, given, Ports(residuals=residuals))
        return batch.example.loss(prediction)
