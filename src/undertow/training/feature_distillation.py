"""Feature distillation: a smaller U-Net learns to predict as the teacher does, and to compute as it does on the way
(BK-SDM, arXiv:2305.15798, section 3.2)."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from undertow.diffusion.paths import per_row
from undertow.errors import ConfigError
from undertow.shapes import Latents
from undertow.training.distillation_losses import drawn_sigmas
from undertow.training.objective import Weighting
from undertow.training.randomness import seeded
from undertow.training.teacher import DistillationBatch, TeacherAndStudent
from undertow.unet.blocks import Stage
from undertow.unet.config import UNetConfig
from undertow.unet.unet import UNet

Features = dict[str, Float[Tensor, "batch channels height width"]]
"""What stages return, by their names."""


@dataclass(frozen=True, kw_only=True)
class FeatureDistillation:
    """The student is another U-Net, which starts with those of the teacher's tensors that it has too, and random ones
    elsewhere. Three errors are added up: that of the prediction against the noise of the pictures, that against the
    teacher's prediction, and that of the activations behind every down, middle and up block. unet: the student's
    architecture. prediction_weight, feature_weight: 1 and 1 in the paper. dropped: share of empty captions, which
    guidance asks the student for. Errors: `ConfigError`."""

    unet: UNetConfig
    prediction_weight: float = 1.0
    feature_weight: float = 1.0
    dropped: float = 0.1

    def __post_init__(self):
        if not 0 <= self.dropped <= 1:
            raise ConfigError("dropped", self.dropped, "must be a share, from 0 to 1")
        for name in ("prediction_weight", "feature_weight"):
            if not getattr(self, name) >= 0:
                raise ConfigError(name, getattr(self, name), "must not be negative")


class FeatureStudent(nn.Module):
    """A student, and a linear map from each cell of its activations to the teacher's where their widths differ (1x1
    convolutions; arXiv:1412.6550, section 2.2). Only the U-Net is kept."""

    def __init__(self, unet: UNet, teacher: UNet):
        super().__init__()
        self.unet = unet
        widths, wanted = stage_widths(unet.config), stage_widths(teacher.config)
        self.projections = nn.ModuleDict(
            {
                name.replace(".", "/"): nn.Conv2d(widths[name], wanted[name], 1)
                for name in widths
                if widths[name] != wanted[name]
            }
        )

    def as_teacher(self, name: str, feature: Tensor) -> Tensor:
        """Activations of a stage in as many channels as the teacher has there."""
        key = name.replace(".", "/")
        return self.projections[key](feature) if key in self.projections else feature


def stage_widths(config: UNetConfig) -> dict[str, int]:
    """How many channels each stage returns, by its name."""
    widths = [level.channels for level in config.levels]
    return {
        **{f"down_blocks.{index}": width for index, width in enumerate(widths)},
        "mid_block": widths[-1],
        **{f"up_blocks.{index}": width for index, width in enumerate(reversed(widths))},
    }


def require_student(config: UNetConfig, teacher: UNetConfig) -> None:
    """Errors: `ConfigError` for an architecture that cannot take the teacher's place, or whose stages do not match."""
    for name in ("in_channels", "out_channels", "context_dim", "added", "guidance_dim"):
        ours, theirs = getattr(config, name), getattr(teacher, name)
        if ours != theirs:
            raise ConfigError(f"student.{name}", ours, f"must be {theirs!r}, as the teacher's")
    if len(config.levels) != len(teacher.levels):
        raise ConfigError("student.levels", len(config.levels), f"must be {len(teacher.levels)}, as the teacher's")


def new_student(config: UNetConfig, teacher: UNet, seed: int, start: UNet | None = None) -> FeatureStudent:
    """The student before training. start: a U-Net of this config, whose weights it begins with; without one, it begins
    with those of the teacher's that it has too. Errors: `ConfigError`."""
    require_student(config, teacher.config)
    with seeded(seed, "student"):
        unet = UNet(config)
        own, known = unet.state_dict(), (teacher if start is None else start).state_dict()
        shared = {name: known[name] for name in own.keys() & known.keys() if known[name].shape == own[name].shape}
        unet.load_state_dict({**own, **shared})
        unet = unet.to(teacher.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        return FeatureStudent(unet, teacher).to(teacher.device)


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureLoss:
    """The sum of three errors, see `FeatureDistillation`. Those of features are shares of the teacher's mean square, so
    that no stage outweighs the others."""

    networks: TeacherAndStudent
    student: FeatureStudent
    weighting: Weighting
    method: FeatureDistillation

    def __call__(self, batch: DistillationBatch) -> Tensor:
        networks, parameterization = self.networks, self.networks.preconditioning.parameterization
        sigma = drawn_sigmas(networks, batch)
        x = networks.noisy(batch, sigma)
        dropped = batch.uniform < self.method.dropped
        with observed(networks.teacher) as wanted, torch.no_grad():
            taught = networks.predicted(networks.teacher, x, sigma, batch.indices, dropped)
        with observed(self.student.unet) as features:
            learned = networks.predicted(networks.student, x, sigma, batch.indices, dropped)
        target = parameterization.target(batch.x0, batch.noise, sigma)
        weights = per_row(self.weighting.weights(parameterization, sigma), learned)

        def error(other: Latents) -> Tensor:
            return (weights * (learned - other).square()).mean()

        shares = [
            (self.student.as_teacher(name, features[name]).float() - one.float()).square().mean()
            / one.float().square().mean()
            for name, one in wanted.items()
        ]
        of_features = torch.stack(shares).mean()
        return error(target) + self.method.prediction_weight * error(taught) + self.method.feature_weight * of_features


@contextmanager
def observed(unet: UNet) -> Generator[Features]:
    """Within it, what every stage returned last is kept in the dictionary; gradients flow through it."""
    features: Features = {}

    def keep(name: str):
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            features[name] = cast(Tensor, output[0] if isinstance(output, tuple) else output)

        return hook

    handles = [stage.register_forward_hook(keep(stage.name)) for stage in unet.modules() if isinstance(stage, Stage)]
    try:
        yield features
    finally:
        for handle in handles:
            handle.remove()
