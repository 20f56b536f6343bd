"""Restart sampling: back up to a higher level with fresh noise, and down again."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

from torch import Tensor

from undertow.diffusion.paths import Path, RectifiedFlow
from undertow.sampling.entry import sampler
from undertow.sampling.euler import raised
from undertow.sampling.heun import heun_step
from undertow.sampling.noise import NoiseSource
from undertow.sampling.options import NoiseScale, NumberRange
from undertow.sampling.protocol import Sampler


@sampler(order=2, evaluations=2, native_flow=True, a1111=("Restart",))
def restart(
    x: Tensor,
    sigmas: Sequence[float],
    *,
    noise: NoiseSource,
    path: Path,
    s_noise: NoiseScale = 1.0,
    restart_min: Annotated[
        float, NumberRange(meaning="where a restart begins: the level of the grid nearest to this sigma")
    ] = 0.1,
    restart_max: Annotated[
        float, NumberRange(meaning="how far up a restart goes: the level of the grid nearest to this sigma")
    ] = 2.0,
) -> Sampler:
    """Heun's method with restarts near the end: noise is added from restart_min up to restart_max, and removed again.

    arXiv:2306.14878, algorithm 1; A1111 and Forge `restart_sampler`: from 20 steps on, 9 of them (a quarter, twice,
    from 36 on) are spent in restarts, and the others go along Karras' levels between the ends of the grid. With fewer
    steps it is `heun`. On the flow path its levels are the flow's, and restart_min and restart_max ratios of noise to
    data.
    """
    here = sigmas[0]
    flow = isinstance(path, RectifiedFlow)
    low, high = (level / (1 + level) if flow else level for level in (restart_min, restart_max))
    for sigma, target in _plan(sigmas, low, high):
        if sigma > here:
            x = raised(x, path, here, sigma, s_noise * noise.like(x))
        x = yield from heun_step(x, sigma, target)
        here = target
    return x


def _plan(sigmas: Sequence[float], lowest: float, highest: float) -> list[tuple[float, float]]:
    """The ends of each step, with the restarts put where they belong."""
    steps = len(sigmas) - 1
    if steps < 20:
        return list(pairwise(sigmas))
    spent, times = (steps // 4, 2) if steps >= 36 else (9, 1)
    others = steps - spent * times
    if sigmas[-1] == 0:
        levels = [*_karras(sigmas[0], sigmas[-2], others), 0.0]
    else:
        levels = _karras(sigmas[0], sigmas[-1], others + 1)
    low, high = _nearest(levels, lowest), _nearest(levels, highest)
    plan = list(pairwise(levels))
    if high >= low:
        return plan
    again = list(pairwise(_karras(levels[high], levels[low], spent + 1)))
    return plan[:low] + again * times + plan[low:]


def _karras(first: float, last: float, count: int) -> list[float]:
    """arXiv:2206.00364, eq. 5, both ends included, exactly: an end that rounding raised would look like a restart."""
    start, end = first ** (1 / 7), last ** (1 / 7)
    inner = [(start + index / (count - 1) * (end - start)) ** 7 for index in range(1, count - 1)]
    return [first, *inner, last]


def _nearest(levels: Sequence[float], sigma: float) -> int:
    return min(range(len(levels)), key=lambda index: abs(levels[index] - sigma))
