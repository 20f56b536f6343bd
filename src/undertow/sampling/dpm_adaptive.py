"""DPM-Solver with a step size that follows its error."""

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from undertow.sampling.dpm_fast import second_order_step, third_order_step
from undertow.sampling.euler import ancestral_split
from undertow.sampling.noise import NoiseSource
from undertow.sampling.options import Option
from undertow.sampling.protocol import ModelCall, Sampler, require_noise, sampler_with


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


@sampler_with(
    order=Option(default=3, low=2, high=3, whole=True),
    h_init=Option(default=0.05, low=1e-4),
    rtol=Option(default=0.05, low=1e-8),
    atol=Option(default=0.0078, low=1e-8),
)
def dpm_adaptive(
    x: Tensor,
    sigmas: Sequence[float],
    *,
    noise: NoiseSource | None = None,
    order: float = 3,
    rtol: float = 0.05,
    atol: float = 0.0078,
    h_init: float = 0.05,
    pcoeff: float = 0.0,
    icoeff: float = 1.0,
    dcoeff: float = 0.0,
    accept_safety: float = 0.81,
    eta: float = 0.0,
    s_noise: float = 1.0,
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
