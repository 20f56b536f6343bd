"""The words that guidance and the runner of the network share: which evaluations are needed, and their estimates."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from undertow.guidance_options.rules import Perturbation
from undertow.guidance_options.steps import Step
from undertow.shapes import Sigmas

Side = Literal["conditional", "unconditional", "image_only"]
"""Which conditioning of a request a branch is given: the prompt; the empty or negative prompt (of InstructPix2Pix,
without the picture); the empty or negative prompt with the picture to edit."""


@dataclass(frozen=True, kw_only=True)
class Branch:
    """One evaluation of the network at every step: whose conditioning, and what is done to the network.

    observed: names of modules ("mid_block") in whose first self-attention the evaluation observes how much attention
    each cell receives. They are no part of the branch's identity: one evaluation serves those who need an observation
    and those who do not.
    """

    side: Side = "conditional"
    perturbation: Perturbation | None = None
    observed: tuple[str, ...] = field(default=(), compare=False)


CONDITIONAL = Branch()
UNCONDITIONAL = Branch(side="unconditional")
IMAGE_ONLY = Branch(side="image_only")


def sigmas_at(step: Step, x: Float[Tensor, "batch ..."]) -> Sigmas:
    """The sigma of a step for every row of x."""
    return torch.full((len(x),), step.sigma, dtype=torch.float64)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A further evaluation that guidance asks for while it combines, at the sigma of the step."""

    x: Float[Tensor, "batch ..."]
    branch: Branch


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What an evaluation found.

    observations: by the names in the branch's `observed`, how much attention every cell receives: the mean over heads
    of the sum over queries, 1 on average.
    """

    denoised: Float[Tensor, "batch ..."]
    observations: Mapping[str, Float[Tensor, "batch _height _width"]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Guided:
    """What the sampler receives. unconditional: for samplers that step along it (CFG++, arXiv:2406.08070)."""

    denoised: Float[Tensor, "batch ..."]
    unconditional: Float[Tensor, "batch ..."] | None = None
