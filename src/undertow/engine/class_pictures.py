"""Pictures of a class, by a class-conditional pixel model: what `undertow sample`, previews and evaluation share."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import UInt8
from torch import Tensor

from undertow.checkpoints.read.class_model import ClassModel
from undertow.diffusion.paths import Path as NoisePath
from undertow.diffusion.paths import RectifiedFlow, VarianceExploding, VariancePreserving
from undertow.engine.direct import DirectModel, SamplingSettings
from undertow.errors import InvalidInput
from undertow.limits import STEPS
from undertow.pictures.pixels import to_uint8
from undertow.unet.conditioning import Conditioning


def sampling_settings(
    path: NoisePath,
    *,
    sampler: str | None = None,
    schedule: str | None = None,
    steps: int | None = None,
    guidance: float = 1.0,
) -> SamplingSettings:
    """Settings with what suits small pixel models on this path in the place of `None`."""
    match path:
        case VariancePreserving():
            defaults = SamplingSettings(sampler="ddim", schedule="normal", steps=50)
        case RectifiedFlow():
            defaults = SamplingSettings(sampler="flow_heun", schedule="normal", steps=20)
        case VarianceExploding():
            defaults = SamplingSettings(sampler="heun", schedule="karras", steps=18)
    if steps is not None:
        STEPS.require("steps", steps)
    return SamplingSettings(
        sampler=defaults.sampler if sampler is None else sampler,
        schedule=defaults.schedule if schedule is None else schedule,
        steps=defaults.steps if steps is None else steps,
        guidance=guidance,
    )


def sample_classes(
    model: ClassModel,
    labels: Sequence[int],
    seeds: Sequence[int],
    settings: SamplingSettings,
    *,
    batch_size: int = 100,
    on_pictures: Callable[[int], None] | None = None,
) -> UInt8[Tensor, "count channels height width"]:
    """One picture per label and seed; a picture depends on its own seed, not on its neighbors.

    on_pictures: called with the number of pictures finished since the last call. Errors: `InvalidInput` for labels the
    model does not have, an unknown sampler or schedule, and guidance without a null class; before any work.
    """
    if len(labels) != len(seeds) or len(labels) == 0:
        raise InvalidInput("seeds", f"{len(seeds)} seeds", f"one per label, of which there are {len(labels)}")
    if unknown := [label for label in labels if not 0 <= label < len(model.class_names)]:
        raise InvalidInput("label", unknown[0], f"a class from 0 to {len(model.class_names) - 1}")
    if settings.guidance != 1 and model.null_label is None:
        raise InvalidInput("guidance", settings.guidance, "1, because this model was trained without a null class")
    unet, side = model.unet, model.unet.config.sample_size
    direct = DirectModel(
        unet=unet,
        parameterization=model.scheduler.parameterization,
        schedule=model.scheduler.schedule,
        size=(side, side),
        clip=model.scheduler.clip,
    )
    conditional = [_of_class(label, unet.device) for label in labels]
    unconditional = None if model.null_label is None else _of_class(model.null_label, unet.device)
    done: list[Tensor] = []
    for latents in direct.draw(conditional, unconditional, seeds, settings, batch_size=batch_size):
        done.append(to_uint8(torch.cat(latents).cpu()))
        if on_pictures is not None:
            on_pictures(len(latents))
    return torch.cat(done)


def _of_class(label: int, device: torch.device) -> Conditioning:
    return Conditioning(class_labels=torch.tensor([label], device=device))
