"""What a sampler is: a generator that yields the network evaluations it needs and returns the final x.

The loop reads like the paper, and whoever drives it decides how evaluations are batched: `drive` runs one sampler
alone; an engine holds many, concatenates what they yield, calls the network once and sends each its part. No sampler
keeps state outside its frame.

Samplers work in sampler space (`diffusion.paths`), with sigma in Python floats, and know nothing of networks. x is in
float32 or better from the first step to the last, whatever the precision of the start and of the network: x is about
sigma noise, and at sigma = 15 (4096 with zero terminal SNR) half precision would round away what a step changes.
`Denoiser.network_dtype` is where half precision begins.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from undertow.diffusion.guidance import Guided
from undertow.errors import InvalidInput
from undertow.sampling.noise import NoiseSource


@dataclass(frozen=True, slots=True)
class ModelCall:
    """A request of a sampler: the denoised estimate at `x`, all of whose rows are at `sigma`.

    unconditional: the unconditional estimate is needed beside the guided one. What is sent back is then a `Guided`
    with both; otherwise it is the guided estimate alone, a tensor.
    """

    x: Float[Tensor, "batch ..."]
    sigma: float
    unconditional: bool = False


Sampler = Generator[ModelCall, Tensor, Tensor]
"""Yields evaluations, receives denoised estimates shaped like their x, returns the last x."""

GuidedSampler = Generator[ModelCall, Guided, Tensor]
"""A sampler all of whose calls ask for the unconditional estimate too (CFG++, arXiv:2406.08070)."""


def require_noise(noise: NoiseSource | None, name: str) -> NoiseSource:
    """The source of a stochastic sampler. Errors: `InvalidInput` when there is none."""
    if noise is None:
        raise InvalidInput("noise", None, f"a NoiseSource, because {name} draws noise", "give NoiseSource(seeds)")
    return noise


def drive(sampler: Sampler, denoise: Callable[[Tensor, float], Tensor | Guided]) -> Tensor:
    """Run one sampler to its end; `denoise(x, sigma)` estimates x0.

    Errors: `InvalidInput` when the sampler needs the unconditional estimate and `denoise` gives none.
    """
    answer: Tensor | Guided | None = None  # a generator's first `send` must be None
    while True:
        try:
            call = sampler.send(answer)  # pyright: ignore[reportArgumentType]
        except StopIteration as finished:
            return finished.value
        answer = answered(call, denoise(call.x, call.sigma))


def answered(call: ModelCall, estimate: Tensor | Guided) -> Tensor | Guided:
    """What to send back for `call`. Errors: `InvalidInput` when the unconditional estimate it needs is missing."""
    if not call.unconditional:
        return estimate.denoised if isinstance(estimate, Guided) else estimate
    if not isinstance(estimate, Guided) or estimate.unconditional is None:
        expected = "the unconditional estimate too, because CFG++ steps along it"
        raise InvalidInput("the estimate", "the guided one alone", expected, "give a guidance that keeps it")
    return estimate
