"""Classifier-free guidance: which branches a request needs, and how their results become one."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from undertow.diffusion.denoiser import Denoiser
from undertow.diffusion.paths import working
from undertow.errors import InvalidInput
from undertow.shapes import Sigmas

C = TypeVar("C")

Branch = Literal["unconditional", "conditional"]


@dataclass(frozen=True, kw_only=True)
class ClassifierFree:
    """unconditional + scale (conditional - unconditional) (arXiv:2207.12598, eq. 6, in the form all peers use).

    The paper's w is scale - 1. Denoised estimates and predictions are affine in each other at one x and sigma, so
    combining either gives the same picture.
    """

    scale: float

    def __post_init__(self):
        if not math.isfinite(self.scale):
            raise InvalidInput("guidance scale", self.scale, "a finite number", "1 turns guidance off")

    @property
    def branches(self) -> tuple[Branch, ...]:
        """What must be evaluated, in order; at scale 1 the unconditional branch cancels and is not run (trap T8)."""
        return ("conditional",) if self.scale == 1 else ("unconditional", "conditional")

    def combine(self, results: Sequence[Float[Tensor, "batch ..."]]) -> Float[Tensor, "batch ..."]:
        """One result from those of `branches`, in their order."""
        if len(results) == 1:
            return results[0]
        unconditional, conditional = map(working, results)
        return (unconditional + self.scale * (conditional - unconditional)).to(results[0].dtype)


@dataclass(frozen=True, kw_only=True)
class GuidedDenoiser(Generic[C]):
    """A denoiser with its conditioning and guidance filled in: what `sampling.drive` calls.

    All branches go through the network in one call. concatenate: joins conditionings row by row, whatever their token
    counts (`undertow.unet.conditioning.concatenate`).
    """

    denoiser: Denoiser[C]
    guidance: ClassifierFree
    conditional: C
    unconditional: C | None = None
    concatenate: Callable[[Sequence[C]], C]

    def __post_init__(self):
        if "unconditional" in self.guidance.branches and self.unconditional is None:
            raise InvalidInput(
                "unconditional",
                None,
                f"a conditioning, because the guidance scale is {self.guidance.scale:g}",
                "give the empty or negative conditioning, or use scale 1",
            )

    def __call__(self, x: Float[Tensor, "batch ..."], sigma: float | Sigmas) -> Float[Tensor, "batch ..."]:
        """Guided estimate of x0; a float is the sigma of every row."""
        if not isinstance(sigma, Tensor):
            sigma = torch.full((len(x),), sigma, dtype=torch.float64)
        branches = [self._conditioning(branch) for branch in self.guidance.branches]
        rows = torch.cat([x] * len(branches))
        denoised = self.denoiser(rows, sigma.repeat(len(branches)), self.concatenate(branches))
        return self.guidance.combine(denoised.chunk(len(branches)))

    def _conditioning(self, branch: Branch) -> C:
        conditioning = self.conditional if branch == "conditional" else self.unconditional
        assert conditioning is not None  # checked at construction
        return conditioning
