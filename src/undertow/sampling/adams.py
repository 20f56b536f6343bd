"""Adams and Bashforth's linear multistep methods: LMS, iPNDM and PNDM."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

from torch import Tensor

from undertow.sampling.entry import sampler
from undertow.sampling.options import NumberRange
from undertow.sampling.protocol import ModelCall, Sampler
from undertow.sampling.quadrature import lagrange_weights

_Order = Annotated[float, NumberRange(meaning="order of the method", low=1, high=4, whole=True)]

# Weights of the newest slope first, for equal steps (Adams and Bashforth, 1883).
_EQUAL_STEPS = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


@sampler(order=4, native_flow=True, a1111=("LMS",), diffusers=("LMSDiscreteScheduler",))
def lms(x: Tensor, sigmas: Sequence[float], *, order: _Order = 4) -> Sampler:
    """Linear multistep with the exact weights of unequal steps; the first steps are of lower order.

    k-diffusion `sample_lms`; diffusers' LMSDiscreteScheduler.
    """
    return (yield from _lms(x, sigmas, int(order), to_estimate=False))


@sampler(order=4, native_flow=True, comfyui=("lms",))
def lms_comfyui(x: Tensor, sigmas: Sequence[float], *, order: _Order = 4) -> Sampler:
    """`lms` whose step to 0 goes to the estimate, as ComfyUI's `sample_lms` since 2025."""
    return (yield from _lms(x, sigmas, int(order), to_estimate=True))


def _lms(x: Tensor, sigmas: Sequence[float], order: int, *, to_estimate: bool) -> Sampler:
    slopes: list[Tensor] = []
    for index, (sigma, target) in enumerate(pairwise(sigmas)):
        denoised = yield ModelCall(x, sigma)
        if to_estimate and target == 0:
            return denoised
        slopes = [(x - denoised) / sigma, *slopes[: order - 1]]
        nodes = [sigmas[index - back] for back in range(len(slopes))]
        weights = lagrange_weights(nodes, sigma, target)
        x = x + sum(weight * slope for weight, slope in zip(weights, slopes, strict=True))
    return x


@sampler(order=2, native_flow=True, a1111=("IPNDM",), diffusers=("IPNDMScheduler",))
def ipndm(x: Tensor, sigmas: Sequence[float], *, order: _Order = 4) -> Sampler:
    """Improved PNDM: the weights of equal steps, whatever the steps; the first steps are of lower order.

    arXiv:2204.13902, section 3.2; zju-pi/diff-sampler `ipndm_sampler`, as in Forge and ComfyUI before 2025.
    """
    return (yield from _ipndm(x, sigmas, int(order), to_estimate=False))


@sampler(order=2, native_flow=True, comfyui=("ipndm",))
def ipndm_comfyui(x: Tensor, sigmas: Sequence[float], *, order: _Order = 4) -> Sampler:
    """`ipndm` whose step to 0 goes to the estimate, as ComfyUI's `sample_ipndm` since 2025."""
    return (yield from _ipndm(x, sigmas, int(order), to_estimate=True))


def _ipndm(x: Tensor, sigmas: Sequence[float], order: int, *, to_estimate: bool) -> Sampler:
    slopes: list[Tensor] = []
    for sigma, target in pairwise(sigmas):
        denoised = yield ModelCall(x, sigma)
        if to_estimate and target == 0:
            return denoised
        slopes = [(x - denoised) / sigma, *slopes[: order - 1]]
        x = x + (target - sigma) * _mean(_EQUAL_STEPS[len(slopes)], slopes)
    return x


@sampler(order=2, native_flow=True, a1111=("IPNDM_V",))
def ipndm_v(x: Tensor, sigmas: Sequence[float], *, order: _Order = 4) -> Sampler:
    """`ipndm` with weights for unequal steps, as published: they add up to 1 only where the steps shrink evenly.

    zju-pi/diff-sampler `ipndm_sampler` with variable steps, as in Forge, and in ComfyUI before 2025. `lms`
    has the exact weights.
    """
    return (yield from _ipndm_v(x, sigmas, int(order), to_estimate=False))


@sampler(order=2, native_flow=True, comfyui=("ipndm_v",))
def ipndm_v_comfyui(x: Tensor, sigmas: Sequence[float], *, order: _Order = 4) -> Sampler:
    """`ipndm_v` whose step to 0 goes to the estimate, as ComfyUI's `sample_ipndm_v` since 2025."""
    return (yield from _ipndm_v(x, sigmas, int(order), to_estimate=True))


def _ipndm_v(x: Tensor, sigmas: Sequence[float], order: int, *, to_estimate: bool) -> Sampler:
    slopes: list[Tensor] = []
    for index, (sigma, target) in enumerate(pairwise(sigmas)):
        denoised = yield ModelCall(x, sigma)
        if to_estimate and target == 0:
            return denoised
        slopes = [(x - denoised) / sigma, *slopes[: order - 1]]
        levels = [target, *(sigmas[index - back] for back in range(len(slopes)))]
        x = x + (target - sigma) * _mean(_unequal_steps([one - other for one, other in pairwise(levels)]), slopes)
    return x


def _unequal_steps(steps: Sequence[float]) -> list[float]:
    """Weights of the newest slope first; `steps` are this one, the last one, and so on."""
    if len(steps) == 1:
        return [1.0]
    h, a, *older = steps
    weights = [1 + h / a / 2, -h / a / 2]
    if not older:
        return weights
    b, *oldest = older
    third = (1 - h / (3 * (h + a)) * (h * (h + a)) / (a * (a + b))) / 2
    weights = [weights[0] + third, weights[1] - (1 + a / b) * third, third * a / b]
    if not oldest:
        return weights
    c = oldest[0]
    fourth = ((1 - h / (3 * (h + a))) / 2 + (1 - h / (2 * (h + a))) * h / (6 * (h + a + b))) * (
        h * (h + a) * (h + a + b) / (a * (a + b) * (a + b + c))
    )
    ratio = a * (a + b) / (b * (b + c))
    return [
        weights[0] + fourth,
        weights[1] - (1 + a / b + ratio) * fourth,
        weights[2] + (a / b + ratio * (1 + b / c)) * fourth,
        -fourth * ratio * a / b,
    ]


@sampler(order=2, native_flow=True, a1111=("PLMS",), diffusers=("PNDMScheduler",))
def pndm(x: Tensor, sigmas: Sequence[float]) -> Sampler:
    """Pseudo linear multistep: as `ipndm`, with a step of Heun's method first; one evaluation more in all.

    arXiv:2202.09778, section 3.3, "PLMS"; diffusers' PNDMScheduler with skip_prk_steps, A1111's PLMS. A single step
    is Euler's.
    """
    slopes: list[Tensor] = []
    for sigma, target in pairwise(sigmas):
        denoised = yield ModelCall(x, sigma)
        slopes = [(x - denoised) / sigma, *slopes[:3]]
        mean = _mean(_EQUAL_STEPS[len(slopes)], slopes)
        if len(slopes) == 1 and len(sigmas) > 2:
            there = denoised + target * slopes[0]
            denoised = yield ModelCall(there, target)
            mean = (slopes[0] + (there - denoised) / target) / 2
        x = x + (target - sigma) * mean
    return x


def _mean(weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    first, *others = [weight * slope for weight, slope in zip(weights, slopes, strict=True)]
    return sum(others, first)
