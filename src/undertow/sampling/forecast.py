"""Estimates that are forecast from earlier ones instead of being computed (Spectrum, arXiv:2603.01623).

Over the levels of a grid what a network estimates changes slowly, so that it can be extrapolated. Nothing of the
network and nothing of the sampler is known here: a sampler asks for its estimates as always, and some are answered
without asking anybody. The picture is another one than without, which is why nobody forecasts unless asked to.

A forecast is a sum of the estimates that were computed, with weights that follow from their places on the grid alone.
BLEND of it is a least-squares fit of Chebyshev polynomials up to DEGREE with a ridge penalty, over all of them
(section 3.2 of the paper), and the rest the straight line through the last two. The numbers are those of
stable-diffusion.cpp.

On the embedded model as many evaluations are spent better on a grid of fewer steps: docs/results/forecast-steps.md.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from torch import Tensor

from undertow.diffusion.guidance import Guided
from undertow.sampling.protocol import Sampler

DEGREE, RIDGE, BLEND = 3, 1.0, 0.4

CHURNED = 0.25
"""Of a step: levels that a sampler raised by so much belong to the step that it raised them from, and those in the
middle of a step to that step."""


def forecasting(sampler: Sampler, sigmas: Sequence[float], computed: Sequence[bool]) -> Sampler:
    """`sampler`, asking only for what has to be computed. sigmas: its grid. computed: for each step, whether what is
    asked at its level is; what comes before two levels are known is in any case."""
    places: list[float] = []
    known: list[Tensor | Guided] = []
    answer: Tensor | Guided | None = None  # a generator's first `send` must be None
    while True:
        try:
            call = sampler.send(answer)  # pyright: ignore[reportArgumentType]
        except StopIteration as finished:
            return finished.value
        place = place_of(call.sigma, sigmas)
        if computed[min(int(place + CHURNED), len(computed) - 1)] or len(set(places)) < 2:
            answer = yield call
            places.append(place)
            known.append(answer)
        else:
            answer = _sum(weights(places, place, len(computed)), known)


def place_of(sigma: float, sigmas: Sequence[float]) -> float:
    """Where a level lies on a grid, counted in steps: between two of its levels by the logarithm, and below the last
    one above 0 in proportion."""
    for step, (above, below) in enumerate(pairwise(sigmas)):
        if sigma >= above:
            return float(step)
        if sigma > below:
            share = math.log(above / sigma) / math.log(above / below) if below > 0 else 1 - sigma / above
            return step + share
    return float(len(sigmas) - 1)


def weights(places: Sequence[float], place: float, steps: int) -> list[float]:
    """How much of each estimate that was computed, at `places`, is in the forecast at `place`. steps: of the grid."""
    fitted = _fitted(np.array(places), place, steps)
    straight = _straight(places, place)
    return (BLEND * fitted + (1 - BLEND) * straight).tolist()


def _fitted(places: np.ndarray, place: float, steps: int) -> np.ndarray:
    scale = np.polynomial.chebyshev.chebvander
    values = scale(2 * places / steps - 1, DEGREE)
    wanted = scale(np.array([2 * place / steps - 1]), DEGREE)[0]
    return wanted @ np.linalg.solve(values.T @ values + RIDGE * np.eye(DEGREE + 1), values.T)


def _straight(places: Sequence[float], place: float) -> np.ndarray:
    """Samplers may ask twice at one level; the line goes through the newest estimates of the last two levels."""
    found = np.zeros(len(places))
    last = len(places) - 1
    before = max(index for index, one in enumerate(places) if one != places[last])
    share = (place - places[before]) / (places[last] - places[before])
    found[last], found[before] = share, 1 - share
    return found


def _sum(shares: Sequence[float], known: Sequence[Tensor | Guided]) -> Tensor | Guided:
    if isinstance(known[-1], Guided):
        guided = [one for one in known if isinstance(one, Guided)]
        unconditional = [one.unconditional for one in guided if one.unconditional is not None]
        return Guided(
            denoised=_weighted(shares, [one.denoised for one in guided]),
            unconditional=_weighted(shares, unconditional) if len(unconditional) == len(shares) else None,
        )
    return _weighted(shares, [one for one in known if isinstance(one, Tensor)])


def _weighted(shares: Sequence[float], parts: Sequence[Tensor]) -> Tensor:
    total = parts[0] * shares[0]
    for share, part in zip(shares[1:], parts[1:], strict=True):
        total = total.add(part, alpha=share)
    return total
