"""What a sampler is: a generator that yields the network evaluations it needs and returns the final x.

The loop reads like the paper, and whoever drives it decides how evaluations are batched: `drive` runs one sampler
alone; an engine holds many, concatenates what they yield, calls the network once and sends each its part. No sampler
keeps state outside its frame.

Samplers work in sampler space (`diffusion.paths`), with sigma in Python floats, and know nothing of networks. x is in
float32 or better from the first step to the last, whatever the precision of the start and of the network: x is about
sigma noise, and at sigma = 15 (4096 with zero terminal SNR) half precision would round away what a step changes.
`Denoiser.network_dtype` is where half precision begins.
"""

import inspect
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from undertow.diffusion.grids import require_grid
from undertow.diffusion.guidance import Guided
from undertow.diffusion.paths import working
from undertow.errors import InvalidInput
from undertow.sampling.noise import NoiseSource
from undertow.sampling.options import MEANINGS, Option


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


@runtime_checkable
class SamplerFunction(Protocol):
    """Starts a sampler at `x`, which is at sigmas[0]; it ends at sigmas[-1] in the dtype of `x`."""

    __name__: str
    options: Mapping[str, Option]

    def __call__(
        self,
        x: Float[Tensor, "batch ..."],
        sigmas: Sequence[float],
        *,
        noise: NoiseSource | None = None,
        **options: float,
    ) -> Sampler: ...


def sampler(algorithm: Callable[..., Sampler] | Callable[..., GuidedSampler], /, **ranges: Option) -> SamplerFunction:
    """Give an algorithm the face that all share, with its arguments checked when it is started.

    A generator runs nothing before its first step; bad input should be refused before that. An algorithm that draws
    noise has a parameter `noise`: without a default it needs one, with a default it depends on its options. Its other
    keywords are its options; `ranges` says what they may be where that is not any number from 0.
    """
    parameters = inspect.signature(algorithm).parameters
    options_known = {
        name: ranges.get(name, Option(default=parameter.default))
        for name, parameter in parameters.items()
        if name not in ("x", "sigmas", "noise")
    }
    assert options_known.keys() <= MEANINGS.keys()
    draws_noise = "noise" in parameters
    needs_noise = draws_noise and parameters["noise"].default is inspect.Parameter.empty

    @wraps(algorithm)
    def start(
        x: Float[Tensor, "batch ..."], sigmas: Sequence[float], *, noise: NoiseSource | None = None, **options: float
    ) -> Sampler:
        require_grid(sigmas)
        _require_options(algorithm.__name__, options, options_known)
        if needs_noise:
            require_noise(noise, algorithm.__name__)
        if noise is not None:
            noise.require_count(len(x))
        if draws_noise:
            return _ending_in(x.dtype, algorithm(working(x), sigmas, noise=noise, **options))
        return _ending_in(x.dtype, algorithm(working(x), sigmas, **options))

    start.options = options_known  # pyright: ignore[reportAttributeAccessIssue]
    return cast(SamplerFunction, start)


def sampler_with(**ranges: Option) -> Callable[[Callable[..., Sampler]], SamplerFunction]:
    """`sampler` with ranges for some of the algorithm's options."""
    return lambda algorithm: sampler(algorithm, **ranges)


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


def _ending_in(dtype: torch.dtype, sampler: Sampler | GuidedSampler) -> Sampler:
    return (yield from sampler).to(dtype)


def _require_options(name: str, options: Mapping[str, float], known: Mapping[str, Option]) -> None:
    for option, value in options.items():
        if option not in known:
            offered = f"one of {', '.join(known)}" if known else "no option"
            raise InvalidInput("sampler option", repr(option), f"{offered} for {name}")
        known[option].require(option, value, name)
