"""One evaluation of a picture's denoiser: rows for conditionings and windows, an estimate for each conditioning."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from undertow.adapters.kind import RowAdapters
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
    some. perturbation, observed: as in guidance's `Branch`."""

    name: str
    conditioning: Conditioning
    extra: Float[Tensor, "1 channels height width"] | None = None
    adapters: tuple[RowAdapters, ...] = ()
    perturbation: Perturbation | None = None
    observed: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer:
    """prediction: as the network gave it. denoised: what it means. observations: as in guidance's `Estimate`."""

    name: str
    prediction: Float[Tensor, "1 channels height width"]
    denoised: Float[Tensor, "1 channels height width"]
    observations: Mapping[str, Float[Tensor, "1 _height _width"]] = field(default_factory=dict)


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
            observed=question.observed,
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
        observations = {name: parts[0].observations[name] for name in question.observed}
        answers.append(Answer(name=question.name, prediction=prediction, denoised=denoised, observations=observations))
    return answers


def _with_extra(inputs: Tensor, extra: Tensor | None) -> Tensor:
    return inputs if extra is None else torch.cat([inputs, extra.to(inputs)], dim=1)
