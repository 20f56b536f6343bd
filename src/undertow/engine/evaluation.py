"""One evaluation of a picture's denoiser: rows for conditionings and windows, an estimate for each conditioning."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from undertow.adapters.manager import RowAdapters
from undertow.diffusion.denoiser import Preconditioning
from undertow.diffusion.guidance import Perturbation
from undertow.diffusion.paths import working
from undertow.engine.layout import Layout
from undertow.engine.rows import Row, Steps
from undertow.unet.conditioning import Conditioning
from undertow.unet.free_u import FreeU
from undertow.unet.unet import UNet


@dataclass(frozen=True, kw_only=True, eq=False)
class Network:
    """A U-Net with the mathematics that it was trained with."""

    unet: UNet
    preconditioning: Preconditioning


@dataclass(frozen=True, kw_only=True, eq=False)
class Question:
    """What to ask a network about a canvas. name: in debug output. extra: channels beside the latents, for models that
    read a picture (inpainting, editing, depth). adapters: what acts meanwhile in each window, for networks that have
    some. perturbation, middle_attention: as in
    guidance's `Branch`."""

    name: str
    conditioning: Conditioning
    extra: Float[Tensor, "1 channels height width"] | None = None
    adapters: tuple[RowAdapters, ...] = ()
    perturbation: Perturbation | None = None
    middle_attention: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer:
    """prediction: as the network gave it. denoised: what it means."""

    name: str
    prediction: Float[Tensor, "1 channels height width"]
    denoised: Float[Tensor, "1 channels height width"]
    attention: Float[Tensor, "1 cells_high cells_wide"] | None = None


def ask(
    network: Network,
    layout: Layout,
    x: Float[Tensor, "1 channels height width"],
    sigma: float,
    questions: Sequence[Question],
    free_u: FreeU | None = None,
) -> Steps[list[Answer]]:
    """The answers to all questions about `x`, which stands at `sigma`."""
    level = torch.tensor([sigma], dtype=torch.float64)
    inputs, timestep = network.preconditioning.inputs(x, level)
    rows = [
        Row(
            unet=network.unet,
            latents=part,
            timestep=timestep,
            conditioning=question.conditioning,
            adapters=question.adapters[window] if question.adapters else None,
            perturbation=question.perturbation,
            free_u=free_u,
            middle_attention=question.middle_attention,
        )
        for question in questions
        for window, part in enumerate(layout.spread(_with_extra(inputs, question.extra)))
    ]
    outcomes = yield rows
    each = len(rows) // len(questions)
    answers = []
    for index, question in enumerate(questions):
        parts = outcomes[index * each : (index + 1) * each]
        prediction = layout.gather([working(part.prediction) for part in parts])
        denoised = network.preconditioning.denoised(prediction, x, level)
        attention = parts[0].attention if question.middle_attention else None
        answers.append(Answer(name=question.name, prediction=prediction, denoised=denoised, attention=attention))
    return answers


def _with_extra(inputs: Tensor, extra: Tensor | None) -> Tensor:
    return inputs if extra is None else torch.cat([inputs, extra.to(inputs)], dim=1)
