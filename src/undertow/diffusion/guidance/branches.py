"""The words that guidance and the runner of the network share: which evaluations are needed, and their estimates."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from undertow.errors import InvalidInput
from undertow.shapes import Sigmas

Kind = Literal["identity", "blurred"]

Side = Literal["conditional", "unconditional", "image_only"]
"""Which conditioning of a request a branch is given: the prompt; the empty or negative prompt (of InstructPix2Pix,
without the picture); the empty or negative prompt with the picture to edit."""


@dataclass(frozen=True, kw_only=True)
class Perturbation:
    """The network made worse on purpose, in the self-attention of some layers, for guidance away from it.

    kind: "identity", every cell attends to itself alone (PAG, arXiv:2403.17377); "blurred", queries under a
    Gaussian of `sigma` cells, infinity for their mean (SEG, arXiv:2408.00760). layers: names of modules;
    each stands for all self-attentions in it ("mid_block", "up_blocks.0.attentions.1").
    """

    kind: Kind
    layers: tuple[str, ...] = ("mid_block",)
    sigma: float | None = None

    def __post_init__(self):
        require_word("kind", self.kind, Kind)
        if not self.layers:
            raise InvalidInput("layers", "empty", "at least one layer whose self-attention is perturbed", "mid_block")
        if self.kind == "identity" and self.sigma is not None:
            raise InvalidInput("sigma", self.sigma, "nothing: an identity is not blurred")
        if self.kind == "blurred" and (self.sigma is None or not self.sigma > 0):
            raise InvalidInput(
                "sigma", self.sigma, "a number above 0, in cells", "infinity means the mean of all cells"
            )


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


@dataclass(frozen=True, kw_only=True)
class Step:
    """Where a run is. index: of the step in a run of `count`. sigma: of this evaluation, which lies inside the step
    for samplers that evaluate twice."""

    index: int
    count: int
    sigma: float

    @property
    def fraction(self) -> float:
        """0 at the first step; 1 would be the end."""
        return self.index / self.count

    def sigmas(self, x: Float[Tensor, "batch ..."]) -> Sigmas:
        """`sigma` for every row of x."""
        return torch.full((len(x),), self.sigma, dtype=torch.float64)


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


def require_word(name: str, value: object, words: Any) -> None:
    """Errors: `InvalidInput` for what is none of the words of a `Literal`: they may come from a command line."""
    allowed = get_args(words)
    if value not in allowed:
        raise InvalidInput(name, repr(value), f"one of {', '.join(map(str, allowed))}")
