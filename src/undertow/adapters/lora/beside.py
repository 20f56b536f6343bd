"""What differs between two models and is in no LoRA of their difference: parts, and the mathematics of their U-Nets."""

from collections.abc import Iterator

import torch

from undertow.checkpoints.read.model import LoadedModel
from undertow.diffusion.schedules import NoiseSchedule, Schedule
from undertow.state_dicts import Differences, compare_shapes, shapes_of
from undertow.vae.autoencoder import AutoencoderKL

SAME = 2e-3
"""Largest relative difference of levels of noise that rounding to float16 explains."""


def differences_beside(base: LoadedModel, tuned: LoadedModel) -> Iterator[str]:
    """A sentence for each: the autoencoder, what the U-Net predicts, and the levels of noise that it was trained on."""
    if base.vae is not None and tuned.vae is not None and _differ(base.vae, tuned.vae):
        yield "the VAE differs too, and a LoRA does not hold it"
    before, after = (model.report.identification.prediction.value for model in (base, tuned))
    if before != after:
        yield f"base predicts {before} and tuned {after}, which a LoRA does not hold: draw with --prediction {after}"
    if not _same_levels(base.schedule, tuned.schedule):
        low, high = sorted(model.schedule.sigma_max for model in (base, tuned))
        ends = "" if high <= low * (1 + SAME) else f" (up to a sigma of {low:.4g} and of {high:.4g})"
        yield f"base and tuned were trained on other levels of noise{ends}, which a LoRA does not hold"


def without_text(base: LoadedModel, tuned: LoadedModel) -> str:
    """Why the U-Nets alone can be compared; empty where both models have text encoders."""
    missing = [name for name, model in (("base", base), ("tuned", tuned)) if model.text is None]
    if not missing:
        return ""
    have = "have no text encoders" if len(missing) > 1 else "has no text encoders"
    return f"{' and '.join(missing)} {have}: the U-Nets alone are compared"


def _differ(before: AutoencoderKL, after: AutoencoderKL) -> bool:
    weights, others = (vae.state_dict() for vae in (before, after))
    if compare_shapes(shapes_of(weights), shapes_of(others)) != Differences():
        return True
    return any(not torch.equal(weights[name].float(), others[name].float()) for name in weights)


def _same_levels(before: Schedule, after: Schedule) -> bool:
    if not (isinstance(before, NoiseSchedule) and isinstance(after, NoiseSchedule)):
        return before == after
    return len(before) == len(after) and torch.allclose(before.sigmas, after.sigmas, rtol=SAME)
