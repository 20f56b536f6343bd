"""DPM-Solver with a step size that follows its error."""

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Tensor

from undertow.errors import InvalidInput
from undertow.sampling.dpm_fast import second_order_step, third_order_step
from undertow.sampling.entry import sampler
from undertow.sampling.euler import ancestral_split
from undertow.sampling.noise import NoiseSource
from undertow.sampling.options import Eta, NoiseScale, NumberRange
from undertow.sampling.protocol import ModelCall, Sampler, require_noise

MOST_TRIES = 1_000
"""Steps of one image, with those that are repeated: as many as the longest grid of ComfyUI has. Tolerances that nothing
meets would have it go on for ever."""


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


_Order = Annotated[float, NumberRange(meaning="order of the method", low=2, high=3, whole=True)]
_RelativeError = Annotated[float, NumberRange(meaning="allowed error relative to x", low=1e-8)]
_AbsoluteError = Annotated[float, NumberRange(meaning="allowed absolute error", low=1e-8)]
_FirstStep = Annotated[float, NumberRange(meaning="first step, in log sigma", low=1e-4)]
_Proportional = Annotated[float, NumberRange(meaning="proportional part of the step controller", high=10)]
_Integral = Annotated[float, NumberRange(meaning="integral part of the step controller", high=10)]
_Differential = Annotated[float, NumberRange(meaning="differential part of the step controller", high=10)]
_Safety = Annotated[
    float, NumberRange(meaning="a step is repeated when the controller would shrink it below this", high=1)
]


@dataclass(frozen=True, kw_only=True)
class _Tuning:
    """The options of both samplers."""

    order: int
    rtol: float
    atol: float
    h_init: float
    pcoeff: float
    icoeff: float
    dcoeff: float
    accept_safety: float
    eta: float
    s_noise: float

    def controller(self) -> _StepController:
        """A controller for one image."""
        p, i, d = self.pcoeff, self.icoeff, self.dcoeff
        first, second, third = (
            weight / (1.5 if self.eta > 0 else self.order) for weight in (p + i + d, -(p + 2 * d), d)
        )
        return _StepController(h=self.h_init, powers=(first, second, third), accept_safety=self.accept_safety)


@sampler(order=3, evaluations=None, a1111=("DPM adaptive",))
def dpm_adaptive(
    x: Tensor,
    sigmas: Sequence[float],
    *,
    noise: NoiseSource | None = None,
    order: _Order = 3,
    rtol: _RelativeError = 0.05,
    atol: _AbsoluteError = 0.0078,
    h_init: _FirstStep = 0.05,
    pcoeff: _Proportional = 0.0,
    icoeff: _Integral = 1.0,
    dcoeff: _Differential = 0.0,
    accept_safety: _Safety = 0.81,
    eta: Eta = 0.0,
    s_noise: NoiseScale = 1.0,
) -> Sampler:
    """DPM-Solver-12 or -23: as many steps as the tolerance needs, between the ends of the grid; its steps are ignored.

    arXiv:2206.00927, appendix C; k-diffusion `sample_dpm_adaptive`, with a last evaluation that steps to 0 when the
    grid does. The images of a batch are drawn one after the other, each with steps of its own.
    """
    tuning = _Tuning(
        order=int(order),
        rtol=rtol,
        atol=atol,
        h_init=h_init,
        pcoeff=pcoeff,
        icoeff=icoeff,
        dcoeff=dcoeff,
        accept_safety=accept_safety,
        eta=eta,
        s_noise=s_noise,
    )
    return (yield from _adaptive(x, sigmas, noise, tuning, to_zero=True))


@sampler(order=3, evaluations=None, comfyui=("dpm_adaptive",), options_of=dpm_adaptive)
def dpm_adaptive_comfyui(
    x: Tensor, sigmas: Sequence[float], *, noise: NoiseSource | None = None, order: float, **options: float
) -> Sampler:
    """`dpm_adaptive` that leaves the noise of sigma_min in x, as ComfyUI `ksampler("dpm_adaptive")` and k-diffusion."""
    return (yield from _adaptive(x, sigmas, noise, _Tuning(order=int(order), **options), to_zero=False))


def _adaptive(
    x: Tensor, sigmas: Sequence[float], noise: NoiseSource | None, tuning: _Tuning, *, to_zero: bool
) -> Sampler:
    last = sigmas[-2] if sigmas[-1] == 0 else sigmas[-1]
    rows = list(x.split(1))
    for row in range(len(rows)):
        controller = tuning.controller()
        sigma, here = sigmas[0], rows[row]
        before, tries = here, 0
        while math.log(sigma / last) > 1e-5:
            tries += 1
            target = max(last, sigma * math.exp(-controller.h))
            down = max(last, ancestral_split(sigma, target, tuning.eta)[0])
            if tries > MOST_TRIES or not down < sigma:  # or steps have become too small for a number to tell
                expected, remedy = (
                    f"to be done in {MOST_TRIES:,} steps",
                    "allow a larger error: raise rtol and atol, or lower eta",
                )
                raise InvalidInput("sampler_options", f"not done at a level of {sigma:g}", expected, remedy)
            low, high = yield from _two_orders(here, sigma, down, tuning.order)
            if controller.accepts(_error(low, high, before, tuning.rtol, tuning.atol)):
                before, here, sigma = low, high, target
                if (up := math.sqrt(target**2 - down**2)) > 0:
                    fresh = require_noise(noise, "dpm_adaptive with eta > 0").like_row(here, row)
                    here = here + tuning.s_noise * up * fresh
        rows[row] = (yield ModelCall(here, last)) if to_zero and sigmas[-1] == 0 else here
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
