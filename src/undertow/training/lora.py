"""Training a LoRA (arXiv:2106.09685): low-rank updates of a frozen text-to-image model, from pictures with captions.

What the network is trained for is the model's own: its parameterization, its schedule, its latent space. Pictures are
encoded once, captions too unless the text encoders learn. The loop is `fit`: a killed run goes on where it was.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from undertow.checkpoints.read.model import LoadedModel
from undertow.encoders.text_stack import TextStack
from undertow.errors import InvalidInput
from undertow.free_memory import require_free
from undertow.lookup import counted
from undertow.nn.adaptable import WeightRows
from undertow.training.base_model import encode_pictures, require_own_folder, require_size, require_trainable
from undertow.training.caption_encoder import CaptionEncoder, Encoded
from undertow.training.captioned import CaptionedPictures
from undertow.training.checkpointing import checkpointing
from undertow.training.examples import Examples, TrainingBatch, base_recipe, model_objective, require_settings
from undertow.training.fit import FitSettings
from undertow.training.log import StepRecord
from undertow.training.lora_start import LoraStart
from undertow.training.low_rank import (
    TRANSFORMERS,
    TrainableUpdates,
    frozen,
    in_slots,
    text_sites,
    unet_sites,
    widths,
)
from undertow.training.objective import Objective
from undertow.training.randomness import generator_for
from undertow.unet.blocks import Checkpointing
from undertow.unet.conditioning import Ports
from undertow.unet.unet import UNet


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """The settings of a LoRA training.

    alpha: updates are scaled by alpha / rank. sites: patterns of the names of U-Net layers to adapt, see `unet_sites`.
    text_encoder: whether the text encoders are adapted too. dropped: the share of captions that are replaced by the
    empty caption, for classifier-free guidance. timesteps: "uniform" or "logit_normal". min_snr_gamma: `None` for a
    constant loss weighting. gradient_checkpointing: trades speed for memory; `True`, or names of the U-Net's blocks
    such as "up_blocks.3". Errors: `ConfigError`.
    """

    fit: FitSettings
    rank: int = 8
    alpha: float = 8.0
    sites: tuple[str, ...] = TRANSFORMERS
    text_encoder: bool = False
    dropped: float = 0.1
    timesteps: str = "uniform"
    min_snr_gamma: float | None = None
    gradient_checkpointing: Checkpointing = False

    def __post_init__(self):
        rules = (
            ("rank", self.rank, self.rank >= 1, "must be at least 1"),
            ("alpha", self.alpha, self.alpha > 0, "must be positive; the rank gives a scale of 1"),
            ("dropped", self.dropped, 0 <= self.dropped < 1, "must lie in [0, 1)"),
        )
        require_settings(self.fit, self.timesteps, rules)

    @property
    def gain(self) -> float:
        """The scale of every update."""
        return self.alpha / self.rank

    def objective(self, model: LoadedModel) -> Objective:
        """The model's own parameterization and schedule, with these weights and timesteps."""
        return model_objective(model, self.timesteps, self.min_snr_gamma)


class TrainableLora(nn.Module):
    """The trainable updates of the U-Net and, if they are adapted too, of the text encoders."""

    def __init__(self, unet: TrainableUpdates, text: list[TrainableUpdates]):
        super().__init__()
        self.unet = unet
        self.text = nn.ModuleList(text)

    def for_text(self) -> list[TrainableUpdates] | None:
        """Returns the updates of each text encoder, or `None` when they are not adapted."""
        return [cast(TrainableUpdates, updates) for updates in self.text] or None


def train_lora(
    model: LoadedModel,
    pictures: CaptionedPictures,
    settings: LoraSettings,
    folder: Path,
    *,
    start: LoraStart | None = None,
    on_resume: Callable[[int], None] = lambda step: None,
    on_record: Callable[[StepRecord], None] = lambda record: None,
    stop: Callable[[], bool] = lambda: False,
) -> TrainableLora:
    """Trains a LoRA and returns its averaged weights (EMA); the model itself is not changed.

    folder, on_resume, on_record, stop: see `fit`. start: an existing LoRA whose values the updates begin with.
    Errors: `InvalidInput` for models and sites that cannot be trained, `MissingComponent`; and those of `fit`.
    """
    unet, text = require_trainable(model)
    require_size(model, pictures.size)
    require_own_folder(model, folder)
    lora = new_lora(unet, text, settings)
    if start is not None:
        _fill(lora, text, start, settings)
    latents, captions = encode_pictures(model, pictures), CaptionEncoder(stack=text, config=unet.config)
    objective = settings.objective(model)
    examples = Examples(
        latents=latents, fit=settings.fit, objective=objective, purpose="lora batch", device=unet.device
    )
    loss = _Loss(
        unet=unet,
        lora=lora,
        pictures=pictures,
        captions=captions,
        encoded=None if settings.text_encoder else captions.encode_once([*pictures.captions, None]),
        settings=settings,
    )
    recipe = {
        **base_recipe(model, pictures, objective),
        "sites": [name for name, _ in lora.unet.items()],
        **{name: getattr(settings, name) for name in ("rank", "alpha", "text_encoder", "dropped")},
        **({} if start is None else {"start": start.content_hash}),
    }

    with in_slots(unet, lora.unet), frozen(*text.encoders), checkpointing(unet, settings.gradient_checkpointing):
        return examples.train(lora, loss, folder, recipe, on_resume=on_resume, on_record=on_record, stop=stop)


LEARNED_BYTES = 4 * 5
"""Of a number that is trained, in float32: its value, gradient and average, and AdamW's two moments."""


def new_lora(unet: UNet, text: TextStack, settings: LoraSettings) -> TrainableLora:
    """Returns new updates, which do not change the model yet. Errors: `InvalidInput` for unknown sites."""
    generator = generator_for(settings.fit.seed, "lora")
    sites = unet_sites(unet, settings.sites)
    numbers = settings.rank * sum(sum(widths(layer)) for layer in sites.values())
    require_free(
        f"a LoRA of rank {settings.rank} over {counted(len(sites), 'layer')}",
        numbers * LEARNED_BYTES,
        unet.device,
        "take a smaller rank (--rank), which is rarely above 128, or fewer layers (--sites)",
    )
    updates = TrainableUpdates(sites, settings.rank, generator)
    encoders = zip(text.encoders, text.selections, strict=True) if settings.text_encoder else ()
    others = [
        TrainableUpdates(text_sites(encoder, selection), settings.rank, generator) for encoder, selection in encoders
    ]
    return TrainableLora(updates, others).to(unet.device)


def _fill(lora: TrainableLora, text: TextStack, start: LoraStart, settings: LoraSettings) -> None:
    if start.has_text and not settings.text_encoder:
        raise InvalidInput("text_encoder", False, f"True, because {start.path} changes text encoders")
    start.fill("unet", lora.unet, settings.gain)
    for encoder, updates in zip(text.encoders, lora.for_text() or (), strict=False):
        start.fill(encoder.kind, updates, settings.gain)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Loss:
    """The loss of a batch. encoded: the caption of every picture and, last, the empty one; `None` if encoders learn."""

    unet: UNet
    lora: TrainableLora
    pictures: CaptionedPictures
    captions: CaptionEncoder
    encoded: Encoded | None
    settings: LoraSettings

    def __call__(self, batch: TrainingBatch) -> Tensor:
        device = self.unet.device
        indices, dropped, example = batch.indices, batch.uniform < self.settings.dropped, batch.example
        rows = WeightRows(
            slots=torch.zeros(len(indices), 1, dtype=torch.long, device=device),
            gains=torch.full((len(indices), 1), self.settings.gain, device=device),
        )
        encoded = self._encoded(indices, dropped)
        given = self.captions.conditioning(
            encoded, [self.pictures.crops[index] for index in indices.tolist()], self.pictures.size
        )
        # An autocast encoder answers in bfloat16, and the U-Net's door asks for its own type.
        given = given.to(dtype=self.unet.dtype)
        prediction = self.unet(
            example.inputs.to(memory_format=torch.channels_last),
            example.timesteps.to(torch.float32),
            given,
            Ports(weights=rows),
        )
        return example.loss(prediction)

    def _encoded(self, indices: Tensor, dropped: Tensor) -> Encoded:
        if self.encoded is not None:
            return self.encoded.rows(indices.masked_fill(dropped, len(self.pictures)).to(self.unet.device))
        captions = [
            None if drop else self.pictures.captions[index]
            for index, drop in zip(indices.tolist(), dropped.tolist(), strict=True)
        ]
        return self.captions.encode(captions, self.lora.for_text(), self.settings.gain)
