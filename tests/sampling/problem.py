"""Problems whose answers are known: data drawn from N(0, SPREAD^2), for which the best denoiser is linear.

The probability flow only rescales x, which stays proportional to the standard deviation of the noisy data.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from undertow.diffusion import Path, RectifiedFlow, VariancePreserving
from undertow.diffusion.guidance import Guided
from undertow.sampling import SAMPLERS, NoiseSource, answered, drive, start_sampler

SPREAD = 0.5

FORWARD = [name for name, entry in SAMPLERS.items() if not entry.inverse]


def alpha(path: Path, sigma: float) -> float:
    return 1 - sigma if isinstance(path, RectifiedFlow) else 1.0


def deviation(path: Path, sigma: float) -> float:
    return math.hypot(alpha(path, sigma) * SPREAD, sigma)


def best_denoiser(path: Path) -> Callable[[Tensor, float], Tensor]:
    def denoise(x: Tensor, sigma: float) -> Tensor:
        return x * (alpha(path, sigma) * SPREAD**2 / deviation(path, sigma) ** 2)

    return denoise


def smooth(x: Tensor, sigma: float) -> Tensor:
    """Nothing known about it, but that it is smooth and no row looks at another."""
    return torch.sin(x / math.hypot(1, sigma)) * math.cos(sigma / 5)


def with_unconditional(denoise: Callable[[Tensor, float], Tensor], apart: float = 0.0):
    """As a driver with guidance: both estimates, of which the unconditional one is `apart` from the other."""

    def estimate(x: Tensor, sigma: float) -> Guided:
        denoised = denoise(x, sigma)
        return Guided(denoised=denoised, unconditional=denoised + apart * torch.cos(x / math.hypot(1, sigma)))

    return estimate


def path_of(name: str) -> Path:
    """The first path that a sampler runs on."""
    return SAMPLERS[name].paths[0]()


def run(
    name: str,
    x: Tensor,
    sigmas: list[float],
    denoise: Callable[[Tensor, float], Tensor],
    *,
    path: Path | None = None,
    seeds: list[int] | None = None,
    noise: NoiseSource | None = None,
    **options: float,
) -> Tensor:
    """A sampler from start to end."""
    noise = NoiseSource(list(range(len(x))) if seeds is None else seeds) if noise is None else noise
    path = path_of(name) if path is None else path
    sampler = start_sampler(name, x, sigmas, path=path, noise=noise, **options)
    return drive(sampler, with_unconditional(denoise, apart=0.1 if denoise is smooth else 0.0))


def trace(
    name: str,
    x: Tensor,
    sigmas: list[float],
    estimate: Callable[[Tensor, float], Guided],
    noise: NoiseSource,
    **options: float,
) -> tuple[list[float], list[Tensor]]:
    """The level and the x of every evaluation; the last x comes after them."""
    sampler = SAMPLERS[name].function(x, sigmas, noise=noise, **options)
    levels, points = [], []
    call = next(sampler)
    while True:
        levels.append(call.sigma)
        points.append(call.x)
        try:
            call = sampler.send(answered(call, estimate(call.x, call.sigma)))  # pyright: ignore[reportArgumentType]
        except StopIteration as finished:
            return levels, [*points, finished.value]


def without_noise(name: str) -> dict[str, float]:
    """Options that leave of a stochastic sampler its solver of the ordinary differential equation."""
    return {option: 0.0 for option in ("eta", "s_noise") if option in SAMPLERS[name].options}


def geometric(high: float, low: float, steps: int) -> list[float]:
    return [high * (low / high) ** (index / steps) for index in range(steps + 1)]


def graded(high: float, low: float, steps: int) -> list[float]:
    """Geometric, with first steps that grow from tiny ones: what a multistep method lacks at its start stays small."""
    sizes = [1.5**-power for power in range(int(math.log(steps, 1.5)), 0, -1)] + [1.0] * steps
    places = [sum(sizes[:count]) for count in range(len(sizes) + 1)]
    return [high * (low / high) ** (place / places[-1]) for place in places]


def karras(high: float, low: float, steps: int) -> list[float]:
    """arXiv:2206.00364, eq. 5: the ratio of its steps changes all the time."""
    start, end = high ** (1 / 7), low ** (1 / 7)
    return [(start + index / steps * (end - start)) ** 7 for index in range(steps + 1)]


LEVELS = {VariancePreserving: (8.0, 0.05), RectifiedFlow: (0.9, 0.05)}


def error(name: str, path: Path, steps: int, grid: Callable[[float, float, int], list[float]]) -> float:
    """How far a run ends from the exact solution, relative to the start."""
    high, low = LEVELS[type(path)]
    if SAMPLERS[name].inverse:
        high, low = low, high
    x = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    sigmas = grid(max(high, low), min(high, low), steps)
    end = run(name, x, sigmas, best_denoiser(path), path=path, **without_noise(name))
    expected = deviation(path, low) / deviation(path, high)
    return (end / x - expected).abs().max().item()
