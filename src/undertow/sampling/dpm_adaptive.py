"""DPM-Solver with a step size that follows its error."""

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Tensor

from undertow.sampling.dpm_fast import second_order_step, third_order_step
from undertow.sampling.entry import sampler
from undertow.sampling.euler import ancestral_split
from undertow.sampling.noise import NoiseSource
from undertow.sampling.options import Eta, NoiseScale, NumberRange
from undertow.sampling.protocol import ModelCall, Sampler, require_noise


@dataclass(kw_only=True)
class _StepController:
    """Chooses the next step from the last errors (k-diffusion `PIDStepSizeController`). h: step in log sigma."""

    h: float
    powers: tuple[float, float, float]
    accept_safety: float
    _inverse_errors: list[float] = field(default_factory=list)

    def accepts(self, error: float) -> bool:
        """Whether the step was good enough; sets the next one either way."""
        inverse = 1 / (error + 1e-8)
        errors = self._inverse_errors or [inverse] * 3
        errors[0] = inverse
        factor = math.prod(value**power for value, power in zip(errors, self.powers, strict=True))
        factor = 1 + math.atan(factor - 1)
        accepted = factor >= self.accept_safety
        self._inverse_errors = [errors[0], errors[0], errors[1]] if accepted else errors
        self.h *= factor
        return accepted


@sampler(order=3, evaluations=None, comfyui=("dpm_adaptive",), a1111=("DPM adaptive",))
def dpm_adaptive(
    x: Tensor,
    sigmas: Sequence[float],
    *,
    noise: NoiseSource | None = None,
    order: Annotated[float, NumberRange(meaning="order of the method", low=2, high=3, whole=True)] = 3,
    rtol: Annotated[float, NumberRange(meaning="allowed error relative to x", low=1e-8)] = 0.05,
    atol: Annotated[float, NumberRange(meaning="allowed absolute error", low=1e-8)] = 0.0078,
    h_init: Annotated[float, NumberRange(meaning="first step, in log sigma", low=1e-4)] = 0.05,
    pcoeff: Annotated[float, NumberRange(meaning="proportional part of the step controller")] = 0.0,
    icoeff: Annotated[float, NumberRange(meaning="integral part of the step controller")] = 1.0,
    dcoeff: Annotated[float, NumberRange(meaning="differential part of the step controller")] = 0.0,
    accept_safety: Annotated[
        float, NumberRange(meaning="a step is repeated when the controller would shrink it below this")
    ] = 0.81,
    eta: Eta = 0.0,
    s_noise: NoiseScale = 1.0,
) -> Sampler:
    """DPM-Solver-12 or -23: as many steps as the tolerance needs, between the ends of the grid; its steps are ignored.

    arXiv:2206.00927, appendix C; k-diffusion `sample_dpm_adaptive`, with a last evaluation that steps to 0 when the
    grid does. The images of a batch are drawn one after the other, each with steps of its own.
    """
    weights = (pcoeff + icoeff + dcoeff, -(pcoeff + 2 * dcoeff), dcoeff)
    powers = tuple(weight / (1.5 if eta > 0 else order) for weight in weights)
    last = sigmas[-2] if sigmas[-1] == 0 else sigmas[-1]
    rows = list(x.split(1))
    for row in range(len(rows)):
        controller = _StepController(h=h_init, powers=(powers[0], powers[1], powers[2]), accept_safety=accept_safety)
        sigma, here = sigmas[0], rows[row]
        before = here
        while math.log(sigma / last) > 1e-5:
            target = max(last, sigma * math.exp(-controller.h))
            down = max(last, ancestral_split(sigma, target, eta)[0])
            low, high = yield from _two_orders(here, sigma, down, int(order))
            if controller.accepts(_error(low, high, before, rtol, atol)):
                before, here, sigma = low, high, target
                if (up := math.sqrt(target**2 - down**2)) > 0:
                    fresh = require_noise(noise, "dpm_adaptive with eta > 0").like_row(here, row)
                    here = here + s_noise * up * fresh
        rows[row] = (yield ModelCall(here, last)) if sigmas[-1] == 0 else here
    return torch.cat(rows)


def _two_orders(
    x: Tensor, sigma: float, target: float, order: int
) -> Generator[ModelCall, Tensor, tuple[Tensor, Tensor]]:
    """x after a step of order - 1 and of `order`, which share evaluations."""
    denoised = yield ModelCall(x, sigma)
    slope = (x - denoised) / sigma
    if order == 2:
        return x + (target - sigma) * slope, (yield from second_order_step(x, sigma, target, slope, 1 / 2))[0]
    low, at_third = yield from second_order_step(x, sigma, target, slope, 1 / 3)
    return low, (yield from third_order_step(x, sigma, target, slope, at_third))


def _error(low: Tensor, high: Tensor, before: Tensor, rtol: float, atol: float) -> float:
    allowed = torch.maximum(low.abs(), before.abs()).mul(rtol).clamp(min=atol)
    return ((low - high) / allowed).square().mean().sqrt().item()
