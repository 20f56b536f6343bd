"""Distillation of a text-to-image model: a student that needs one forward per step where the teacher needs two, a few
steps where it needs many, or fewer weights.

As for a LoRA (`training.lora`): what is trained for is the model's own, and the loop is `fit`. All of the student's
U-Net learns; autoencoder and text encoders stay the teacher's.
"""

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from undertow.checkpoints.read.model import LoadedModel
from undertow.diffusion.schedules import NoiseSchedule
from undertow.errors import InvalidInput
from undertow.free_memory import require_free
from undertow.training.base_model import (
    encode_pictures,
    fingerprint,
    require_own_folder,
    require_size,
    require_trainable,
)
from undertow.training.captioned import CaptionedPictures
from undertow.training.checkpointing import checkpointing
from undertow.training.consistency import DistilledLevels
from undertow.training.distillation_losses import (
    Consistency,
    ConsistencyTuning,
    GuidanceDistillation,
    LatentConsistency,
    Loss,
    loss_of,
)
from undertow.training.examples import base_recipe, model_objective, require_settings
from undertow.training.feature_distillation import FeatureDistillation, FeatureLoss, FeatureStudent, new_student
from undertow.training.fit import FitSettings, fit
from undertow.training.log import StepRecord
from undertow.training.lora import LEARNED_BYTES
from undertow.training.low_rank import frozen
from undertow.training.objective import weighting_of
from undertow.training.teacher import DistillationData, TeacherAndStudent
from undertow.unet.blocks import Checkpointing
from undertow.unet.diffusers_config import config_to_diffusers
from undertow.unet.unet import UNet

Method = GuidanceDistillation | Consistency | FeatureDistillation


@dataclass(frozen=True, kw_only=True)
class DistillationSettings:
    """The settings of a distillation. method: what is learned. timesteps, min_snr_gamma, gradient_checkpointing: see
    `LoraSettings`. Errors: `ConfigError`."""

    fit: FitSettings
    method: Method
    timesteps: str = "uniform"
    min_snr_gamma: float | None = None
    gradient_checkpointing: Checkpointing = False

    def __post_init__(self):
        require_settings(self.fit, self.timesteps)

    def recipe(self) -> dict[str, Any]:
        """What decides the weights besides the loop, the model and the pictures, as JSON."""
        fields = asdict(self.method)
        if isinstance(self.method, FeatureDistillation):
            fields["unet"] = config_to_diffusers(self.method.unet)
        return {"method": type(self.method).__name__, "min_snr_gamma": self.min_snr_gamma, **fields}


def require_method(model: LoadedModel, method: Method) -> None:
    """Errors: `InvalidInput` for a model whose samplers could not draw what the method gives; `ConfigError`."""
    if isinstance(method, GuidanceDistillation | FeatureDistillation):
        return
    if not isinstance(model.schedule, NoiseSchedule):
        raise InvalidInput(
            "method",
            f"consistency, for a model of {type(model.schedule).__name__}",
            "a model that was trained on DDPM's timesteps, from which LCMScheduler picks its steps",
            "guidance and features are distilled from every model",
        )
    if isinstance(method, LatentConsistency):
        DistilledLevels(schedule=model.schedule, count=method.original_steps)


def train_distilled(
    model: LoadedModel,
    pictures: CaptionedPictures,
    settings: DistillationSettings,
    folder: Path,
    *,
    start: UNet | None = None,
    on_resume: Callable[[int], None] = lambda step: None,
    on_record: Callable[[StepRecord], None] = lambda record: None,
    stop: Callable[[], bool] = lambda: False,
) -> UNet:
    """Trains a student of the model and returns it with its averaged weights (EMA); the model itself is not changed.

    start: the U-Net that a student of features begins as, such as a pruned one, of the method's config. folder,
    on_resume, on_record, stop: see `fit`. Errors: `InvalidInput` for models that cannot be distilled,
    `ConfigError` for a student that cannot take the teacher's place, `MissingComponent`; and those of `fit`.
    """
    teacher, text = require_trainable(model)
    require_size(model, pictures.size)
    require_own_folder(model, folder)
    require_method(model, settings.method)
    student = _new_student(teacher, settings, start)
    unet = student.unet if isinstance(student, FeatureStudent) else student
    assert isinstance(unet, UNet)
    networks = TeacherAndStudent.of(model, unet, pictures)
    objective = model_objective(model, settings.timesteps, settings.min_snr_gamma)
    data = DistillationData(
        latents=encode_pictures(model, pictures),
        fit=settings.fit,
        timesteps=objective.timesteps,
        device=teacher.device,
    )
    begun = {} if start is None else {"start": fingerprint(start)}
    recipe = {**base_recipe(model, pictures, objective), **settings.recipe(), **begun}
    with frozen(teacher, *text.encoders), checkpointing(unet, settings.gradient_checkpointing):
        trained = fit(
            student,
            data.at,
            _loss(student, networks, settings),
            settings.fit,
            folder,
            recipe=recipe,
            on_resume=on_resume,
            on_record=on_record,
            stop=stop,
        )
    result = trained.unet if isinstance(trained, FeatureStudent) else trained
    assert isinstance(result, UNet)
    return result


def _new_student(teacher: UNet, settings: DistillationSettings, start: UNet | None) -> nn.Module:
    numbers = sum(parameter.numel() for parameter in teacher.parameters())
    require_free(
        f"a student of up to {numbers:,} weights",
        numbers * LEARNED_BYTES,
        teacher.device,
        "train a LoRA instead, or a smaller student (--method features)",
    )
    if isinstance(settings.method, FeatureDistillation):
        return new_student(settings.method.unet, teacher, settings.fit.seed, start)
    return copy.deepcopy(teacher).requires_grad_(True)


def _loss(student: nn.Module, networks: TeacherAndStudent, settings: DistillationSettings) -> Loss:
    match settings.method:
        case FeatureDistillation() as method:
            assert isinstance(student, FeatureStudent)
            weighting = weighting_of(settings.min_snr_gamma)
            return FeatureLoss(networks=networks, student=student, weighting=weighting, method=method)
        case GuidanceDistillation() | LatentConsistency() | ConsistencyTuning() as method:
            return loss_of(method, networks, settings.min_snr_gamma)
