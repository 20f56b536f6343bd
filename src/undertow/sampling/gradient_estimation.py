"""Gradient estimation: Euler's method along an extrapolated direction."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

from torch import Tensor

from undertow.sampling.entry import sampler
from undertow.sampling.options import NumberRange
from undertow.sampling.protocol import ModelCall, Sampler

Extrapolation = Annotated[float, NumberRange(meaning="how far the direction is extrapolated; 1 does not")]


@sampler(order=1, native_flow=True, comfyui=("gradient_estimation",))
def gradient_estimation(x: Tensor, sigmas: Sequence[float], *, ge_gamma: Extrapolation = 2.0) -> Sampler:
    """Euler steps along gamma slope + (1 - gamma) last slope; gamma = 1 is `euler`.

    Permenter and Yuan, arXiv:2306.04848, section 4 (gamma = 2); ComfyUI `sample_gradient_estimation`. A step to 0 gives
    the estimate.
    """
    last_slope: Tensor | None = None
    for sigma, target in pairwise(sigmas):
        denoised = yield ModelCall(x, sigma)
        if target == 0:
            return denoised
        slope = (x - denoised) / sigma
        x = denoised + target * slope
        if last_slope is not None:
            x = x + (target - sigma) * (ge_gamma - 1) * (slope - last_slope)
        last_slope = slope
    return x
