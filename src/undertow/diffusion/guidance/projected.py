"""Bases in which the two branches are not simply subtracted: APG, CFG-Zero*, TCFG."""

from dataclasses import dataclass

import torch
from torch import Tensor

from undertow.diffusion.guidance.branches import UNCONDITIONAL, Branch
from undertow.diffusion.guidance.methods import Moment, Rows, Rule
from undertow.diffusion.guidance.rows import dot, norm
from undertow.diffusion.parameterizations import Parameterization
from undertow.diffusion.paths import path_name
from undertow.guidance_options.records import AdaptiveProjectedOptions, TangentialOptions, ZeroStarOptions
from undertow.guidance_options.steps import Step, scale_at


@dataclass(frozen=True, kw_only=True)
class AdaptiveProjected(AdaptiveProjectedOptions):
    """APG (arXiv:2410.02416): the difference of the branches with momentum, of limited length, and with only `eta` of
    its part along the conditional estimate, which is what saturates.

    momentum: the paper's beta, of the running sum; 0 remembers nothing. norm_limit: r; infinity does not limit. origin:
    what the update is added to. "conditional", (scale - 1) times, is the paper's; "unconditional", scale times, is
    diffusers' default; they agree for eta 1 without momentum and limit. space: the paper projects estimates of x0,
    diffusers predictions. The defaults lie where the paper recommends them for large latent models. At scale 1 only the
    conditional branch is run.
    """

    def asks(self, step: Step) -> tuple[Branch, ...]:
        return () if scale_at(self.scale, step) == 1 else (UNCONDITIONAL,)

    def start(self, steps: int, parameterization: Parameterization) -> Rule:
        self.require_run(steps, path_name(parameterization.path))
        return _Projecting(self)

    def project(self, difference: Rows, conditional: Rows) -> Rows:
        """The update: `difference` of limited length, `eta` of its part along `conditional` and all of the rest."""
        limited = difference * (self.norm_limit / norm(difference)).clamp(max=1)
        along = _part_along(limited, conditional)
        return limited - along + self.eta * along


@dataclass
class _Projecting:
    """APG for one request: the running sum is its state."""

    method: AdaptiveProjected
    running: Tensor | None = None

    def __call__(self, estimate: Rows, at: Moment) -> Tensor:
        method, scale = self.method, scale_at(self.method.scale, at.step)
        if scale == 1:
            return estimate
        conditional, unconditional = (
            at.express(part, method.space) for part in (at.denoised(), at.denoised(UNCONDITIONAL))
        )
        difference = conditional - unconditional
        if self.running is not None:
            difference = difference + method.momentum * self.running
        self.running = difference
        update = method.project(difference, conditional)
        guided = (
            conditional + (scale - 1) * update if method.origin == "conditional" else unconditional + scale * update
        )
        return at.read(guided, method.space)


@dataclass(frozen=True, kw_only=True)
class ZeroStar(ZeroStarOptions):
    """CFG-Zero* (arXiv:2503.18886): the unconditional prediction is scaled to what the conditional one holds of it, and
    the first `zero_steps` steps predict zero.

    A prediction of zero leaves x where it is for networks that predict a velocity or noise.
    """

    def asks(self, step: Step) -> tuple[Branch, ...]:
        plain = step.index < self.zero_steps or scale_at(self.scale, step) == 1
        return () if plain else (UNCONDITIONAL,)

    def start(self, steps: int, parameterization: Parameterization) -> Rule:
        self.require_run(steps, path_name(parameterization.path))
        return self._apply

    def _apply(self, estimate: Rows, at: Moment) -> Tensor:
        conditional = at.express(at.denoised(), "prediction")
        if at.step.index < self.zero_steps:
            return at.read(torch.zeros_like(conditional), "prediction")
        scale = scale_at(self.scale, at.step)
        if scale == 1:
            return estimate
        unconditional = at.express(at.denoised(UNCONDITIONAL), "prediction")
        fitted = _part_along(conditional, unconditional)
        return at.read(fitted + scale * (conditional - fitted), "prediction")


@dataclass(frozen=True, kw_only=True)
class Tangential(TangentialOptions):
    """TCFG (arXiv:2503.18137): the unconditional prediction keeps its part along the first singular direction of the
    two predictions, which they share; the rest would push across it."""

    def asks(self, step: Step) -> tuple[Branch, ...]:
        return () if scale_at(self.scale, step) == 1 else (UNCONDITIONAL,)

    def start(self, steps: int, parameterization: Parameterization) -> Rule:
        self.require_run(steps, path_name(parameterization.path))
        return self._apply

    def _apply(self, estimate: Rows, at: Moment) -> Tensor:
        scale = scale_at(self.scale, at.step)
        if scale == 1:
            return estimate
        conditional = at.express(at.denoised(), "prediction")
        unconditional = at.express(at.denoised(UNCONDITIONAL), "prediction")
        kept = _part_along(unconditional, _first_direction(conditional, unconditional))
        return at.read(kept + scale * (conditional - kept), "prediction")


def _part_along(rows: Rows, direction: Rows) -> Rows:
    """The projection of each row on that of `direction`, none on a row of zeros."""
    length = dot(direction, direction).clamp_min(torch.finfo(direction.dtype).tiny)
    return dot(rows, direction) / length * direction


def _first_direction(left: Rows, right: Rows) -> Rows:
    """The first right singular vector, of any length, of the matrix whose two rows are the two pictures."""
    # The main axis of [[left left, left right], [left right, right right]] lies at this angle.
    angle = 0.5 * torch.atan2(2 * dot(left, right), dot(left, left) - dot(right, right))
    return angle.cos() * left + angle.sin() * right
