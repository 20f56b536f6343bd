"""DPM-Solver's own steps of order 1, 2 and 3, and the fast solver made of them."""

import math
from collections.abc import Generator, Sequence
from itertools import pairwise

from torch import Tensor

from undertow.diffusion.paths import Path
from undertow.sampling.entry import sampler
from undertow.sampling.euler import level_below, raised
from undertow.sampling.noise import NoiseSource
from undertow.sampling.options import Eta, NoiseScale
from undertow.sampling.protocol import ModelCall, Sampler, require_noise


@sampler(order=3, native_flow=True, a1111=("DPM fast",))
def dpm_fast(
    x: Tensor,
    sigmas: Sequence[float],
    *,
    noise: NoiseSource | None = None,
    path: Path,
    eta: Eta = 0.0,
    s_noise: NoiseScale = 1.0,
) -> Sampler:
    """DPM-Solver-fast: as many evaluations as the grid has steps, on steps of its own, equal in log sigma.

    arXiv:2206.00927, section 3.4; k-diffusion `sample_dpm_fast` from sigmas[0] to the last sigma above 0, to which one
    evaluation belongs that steps to 0 when the grid does (k-diffusion leaves the noise of sigma_min in x).
    """
    ends_at_zero = sigmas[-1] == 0
    last = sigmas[-2] if ends_at_zero else sigmas[-1]
    x = yield from _fast(x, sigmas[0], last, len(sigmas) - 1 - ends_at_zero, path, noise, eta, s_noise)
    if ends_at_zero:
        x = yield ModelCall(x, last)
    return x


@sampler(order=3, native_flow=True, comfyui=("dpm_fast",), options_of=dpm_fast)
def dpm_fast_comfyui(
    x: Tensor, sigmas: Sequence[float], *, noise: NoiseSource | None = None, path: Path, **options: float
) -> Sampler:
    """`dpm_fast` as ComfyUI counts: a step to 0 is one more evaluation above it, and the noise of sigma_min stays in x.

    ComfyUI `ksampler("dpm_fast")`, with k-diffusion's `sample_dpm_fast`.
    """
    last = sigmas[-2] if sigmas[-1] == 0 else sigmas[-1]
    return (yield from _fast(x, sigmas[0], last, len(sigmas) - 1, path, noise, **options))


def _fast(
    x: Tensor,
    first: float,
    last: float,
    evaluations: int,
    path: Path,
    noise: NoiseSource | None,
    eta: float,
    s_noise: float,
) -> Sampler:
    for order, (sigma, target) in _plan(first, last, evaluations):
        down = max(level_below(path, sigma, target, eta), last) if eta > 0 else target
        denoised = yield ModelCall(x, sigma)
        x = yield from solver_step(x, sigma, down, (x - denoised) / sigma, order)
        if down < target:
            x = raised(x, path, down, target, s_noise * require_noise(noise, "dpm_fast with eta > 0").like(x))
    return x


def _plan(first: float, last: float, evaluations: int) -> list[tuple[int, tuple[float, float]]]:
    """The order and the ends of each step."""
    if evaluations == 0:
        return []
    groups = evaluations // 3 + 1
    rest = evaluations % 3
    orders = [3] * (groups - 2) + [2, 1] if rest == 0 else [3] * (groups - 1) + [rest]
    levels = [first * (last / first) ** (index / groups) for index in range(groups)] + [last]
    return list(zip(orders, pairwise(levels), strict=True))


def solver_step(x: Tensor, sigma: float, target: float, slope: Tensor, order: int) -> Sampler:
    """One step of DPM-Solver of order 1, 2 or 3 from a known slope (arXiv:2206.00927, algorithms 1 and 2)."""
    match order:
        case 1:
            return x + (target - sigma) * slope
        case 2:
            return (yield from second_order_step(x, sigma, target, slope, 1 / 2))[0]
        case _:
            return (yield from third_order_step(x, sigma, target, slope, None))


def second_order_step(
    x: Tensor, sigma: float, target: float, slope: Tensor, r: float
) -> Generator[ModelCall, Tensor, tuple[Tensor, Tensor]]:
    """x after the step, and the slope found at r of it."""
    middle = sigma * (target / sigma) ** r
    x_middle = x + (middle - sigma) * slope
    denoised = yield ModelCall(x_middle, middle)
    found = (x_middle - denoised) / middle
    return x + (target - sigma) * (slope + (found - slope) / (2 * r)), found


def third_order_step(x: Tensor, sigma: float, target: float, slope: Tensor, at_third: Tensor | None) -> Sampler:
    """x after the step. at_third: the slope at a third of it, where that is known."""
    h = math.log(sigma / target)
    third, two_thirds = sigma * (target / sigma) ** (1 / 3), sigma * (target / sigma) ** (2 / 3)
    if at_third is None:
        x_third = x + (third - sigma) * slope
        denoised = yield ModelCall(x_third, third)
        change = (x_third - denoised) / third - slope
    else:
        change = at_third - slope
    curved = 2 * (math.expm1(2 * h / 3) / (2 * h / 3) - 1)
    x_later = x + (two_thirds - sigma) * slope - two_thirds * curved * change
    denoised = yield ModelCall(x_later, two_thirds)
    later = (x_later - denoised) / two_thirds
    return x + (target - sigma) * slope - target * 1.5 * (math.expm1(h) / h - 1) * (later - slope)
