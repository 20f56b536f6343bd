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
import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from undertow.diffusion.grids import require_grid
from undertow.diffusion.paths import working
from undertow.errors import InvalidInput
from undertow.sampling.noise import NoiseSource


@dataclass(frozen=True, slots=True)
class ModelCall:
    """A request of a sampler: the denoised estimate at `x`, all of whose rows are at `sigma`."""

    x: Float[Tensor, "batch ..."]
    sigma: float


Sampler = Generator[ModelCall, Tensor, Tensor]
"""Yields evaluations, receives denoised estimates shaped like their x, returns the last x."""


@runtime_checkable
class SamplerFunction(Protocol):
    """Starts a sampler at `x`, which is at sigmas[0]; it ends at sigmas[-1] in the dtype of `x`."""

    def __call__(
        self,
        x: Float[Tensor, "batch ..."],
        sigmas: Sequence[float],
        *,
        noise: NoiseSource | None = None,
        **options: float,
    ) -> Sampler: ...


def sampler(algorithm: Callable[..., Sampler]) -> SamplerFunction:
    """Give an algorithm the face that all share, with its arguments checked when it is started.

    A generator runs nothing before its first step; bad input should be refused before that. An algorithm that draws
    noise has a parameter `noise`: without a default it needs one, with a default it depends on its options.
    """
    parameters = inspect.signature(algorithm).parameters
    options_known = [name for name in parameters if name not in ("x", "sigmas", "noise")]
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

    return start


def require_noise(noise: NoiseSource | None, name: str) -> NoiseSource:
    """The source of a stochastic sampler. Errors: `InvalidInput` when there is none."""
    if noise is None:
        raise InvalidInput("noise", None, f"a NoiseSource, because {name} draws noise", "give NoiseSource(seeds)")
    return noise


def drive(sampler: Sampler, denoise: Callable[[Tensor, float], Tensor]) -> Tensor:
    """Run one sampler to its end; `denoise(x, sigma)` estimates x0."""
    denoised: Tensor | None = None  # a generator's first `send` must be None
    while True:
        try:
            call = sampler.send(denoised)  # pyright: ignore[reportArgumentType]
        except StopIteration as finished:
            return finished.value
        denoised = denoise(call.x, call.sigma)


def _ending_in(dtype: torch.dtype, sampler: Sampler) -> Sampler:
    return (yield from sampler).to(dtype)


def _require_options(name: str, options: dict[str, float], known: list[str]) -> None:
    for option, value in options.items():
        if option not in known:
            offered = f"one of {', '.join(known)}" if known else "no option"
            raise InvalidInput("sampler option", repr(option), f"{offered} for {name}")
        if not math.isfinite(value) or value < 0:
            raise InvalidInput(option, value, f"a finite number, at least 0, for {name}")
