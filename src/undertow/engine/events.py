"""What an observer of a run is told."""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class StepEvent:
    """A sampler step begins. step counts from 0. denoised: the newest estimate of the latents, `None` at the first."""

    step: int
    steps: int
    sigma: float
    denoised: Float[Tensor, "count channels height width"] | None


Observer = Callable[[StepEvent], None]


def unobserved(event: StepEvent) -> None:
    """Nobody watches."""
    del event
