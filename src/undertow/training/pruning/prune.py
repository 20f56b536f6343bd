"""Prunes the U-Net of a text-to-image model: whole blocks first, then the width of what is left."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from undertow.checkpoints.read.model import LoadedModel
from undertow.errors import InvalidInput
from undertow.training.base_model import encode_pictures, require_size, require_trainable
from undertow.training.captioned import CaptionedPictures
from undertow.training.distillation_losses import drawn_sigmas
from undertow.training.examples import model_objective
from undertow.training.fit import FitSettings
from undertow.training.low_rank import frozen
from undertow.training.pruning.blocks import most_removals, removals
from undertow.training.pruning.importance import measured
from undertow.training.pruning.narrowing import narrow
from undertow.training.pruning.widths import groups_for, narrowed
from undertow.training.randomness import seed_for
from undertow.training.teacher import DistillationBatch, DistillationData, TeacherAndStudent
from undertow.unet.config import UNetConfig
from undertow.unet.unet import UNet

DROPPED = 0.1
"""Share of calibration rows without their caption, which guidance asks for too."""


@dataclass(frozen=True, kw_only=True)
class PruningSettings:
    """width: share of the channels that stay, see `narrowed`; `None` keeps all. blocks: how many leave. batches,
    batch_size: of pictures, on which importance is measured. Errors: `InvalidInput`."""

    width: float | None = None
    blocks: int = 0
    batches: int = 16
    batch_size: int = 4
    seed: int = 0

    def __post_init__(self):
        for name, least in (("blocks", 0), ("batches", 1), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise InvalidInput(name, getattr(self, name), f"at least {least}")
        if self.width is None and not self.blocks:
            raise InvalidInput("width", None, "a share of the channels that stay, or a number of blocks that leave")


@dataclass(frozen=True, kw_only=True, eq=False)
class Pruned:
    """unet: the smaller network. removed: the blocks that left, in words, in their order. error: mean squared
    difference of its predictions and the unpruned network's, as a share of the latter's mean square."""

    unet: UNet
    removed: tuple[str, ...]
    error: float


def require_prunable(config: UNetConfig, settings: PruningSettings) -> None:
    """Errors: `InvalidInput` where nothing would be left, with the most that works."""
    most = most_removals(config) if settings.blocks else 0
    if settings.blocks > most:
        expected = f"at most {most} for this U-Net, of whose levels a layer stays each, and a block of each transformer"
        raise InvalidInput(
            "blocks", settings.blocks, expected, "narrow it too (width)" if most else "narrow it (width)"
        )
    if settings.width is not None:
        groups_for(config, settings.width)


def prune(
    model: LoadedModel,
    pictures: CaptionedPictures,
    settings: PruningSettings,
    *,
    on_stage: Callable[[str], None] = lambda title: None,
) -> Pruned:
    """Prunes a copy of the model's U-Net; the model itself is not changed. on_stage: called with what begins.

    Errors: `InvalidInput` for models that cannot be trained and for what leaves nothing, `MissingComponent`.
    """
    teacher, text = require_trainable(model)
    require_size(model, pictures.size)
    require_prunable(teacher.config, settings)
    with frozen(teacher, *text.encoders):
        calibration = Calibration.of(model, pictures, settings)
        unet, removed = copy.deepcopy(teacher), []
        for left in range(settings.blocks, 0, -1):
            on_stage(f"which of the blocks matters least, {left} to remove")
            title, unet = _without_least(unet, calibration)
            removed.append(title)
        if settings.width is not None:
            on_stage("how much each channel matters")
            current = unet
            importance, moments = measured(
                current, lambda batch: calibration.predicted(current, batch), settings.batches, settings.seed
            )
            unet = narrow(unet, narrowed(unet.config, groups_for(unet.config, settings.width)), importance, moments)
        on_stage("how far predictions are apart")
        return Pruned(unet=unet, removed=tuple(removed), error=calibration.error(unet))


def _without_least(unet: UNet, calibration: "Calibration") -> tuple[str, UNet]:
    """Without the block whose removal changes predictions least, as in arXiv:2305.15798, appendix A, measured."""
    best = min(removals(unet.config), key=lambda removal: calibration.error(removal.apply(unet)))
    return best.title, best.apply(unet)


@dataclass(frozen=True, kw_only=True, eq=False)
class Calibration:
    """Noisy pictures with their captions, on which networks are compared with the model's own."""

    networks: TeacherAndStudent
    data: DistillationData
    batches: int

    @classmethod
    def of(cls, model: LoadedModel, pictures: CaptionedPictures, settings: PruningSettings) -> "Calibration":
        """Encodes pictures and captions once."""
        teacher = model.require_unet()
        fit = FitSettings(
            steps=settings.batches,
            batch_size=settings.batch_size,
            learning_rate=1e-5,
            warmup_steps=0,
            seed=seed_for(settings.seed, "pruning") % 2**31,
        )
        data = DistillationData(
            latents=encode_pictures(model, pictures),
            fit=fit,
            timesteps=model_objective(model, "uniform", None).timesteps,
            device=teacher.device,
        )
        return cls(networks=TeacherAndStudent.of(model, teacher, pictures), data=data, batches=settings.batches)

    def predicted(self, unet: UNet, step: int) -> Tensor:
        """What a network predicts for a batch."""
        return self._predicted(unet, self.data.at(step))

    @torch.no_grad()
    def error(self, unet: UNet) -> float:
        """Mean squared difference of predictions to the model's own, as a share of the mean square of those."""
        teacher = self.networks.teacher
        batches = [self.data.at(step) for step in range(1, self.batches + 1)]
        pairs = [(self._predicted(unet, one), self._predicted(teacher, one)) for one in batches]
        difference = sum(float((ours - theirs).square().sum()) for ours, theirs in pairs)
        return difference / sum(float(theirs.square().sum()) for _, theirs in pairs)

    def _predicted(self, unet: UNet, batch: DistillationBatch) -> Tensor:
        sigma = drawn_sigmas(self.networks, batch)
        x = self.networks.noisy(batch, sigma)
        return self.networks.predicted(unet, x, sigma, batch.indices, batch.uniform < DROPPED)
