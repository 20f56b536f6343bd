"""A denoiser with classifier-free guidance filled in, for runs of one request by itself."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from undertow.diffusion.denoiser import Denoiser
from undertow.diffusion.guidance.classifier_free import ClassifierFree
from undertow.errors import InvalidInput
from undertow.shapes import Sigmas

C = TypeVar("C")


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
                f"a conditioning, because the guidance scale is {self.guidance.scale}",
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

    def _conditioning(self, branch: str) -> C:
        conditioning = self.conditional if branch == "conditional" else self.unconditional
        assert conditioning is not None  # checked at construction
        return conditioning
