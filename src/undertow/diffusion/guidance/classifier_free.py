"""Classifier-free guidance and its rescaling."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from undertow.diffusion.guidance.branches import UNCONDITIONAL, Branch
from undertow.diffusion.guidance.methods import Moment, Rows, Rule
from undertow.diffusion.guidance.rows import deviation
from undertow.diffusion.parameterizations import Parameterization
from undertow.diffusion.paths import path_name, working
from undertow.errors import InvalidInput
from undertow.guidance_options.records import ClassifierFreeOptions, RescaleOptions
from undertow.guidance_options.steps import Step, scale_at


@dataclass(frozen=True, kw_only=True)
class ClassifierFree(ClassifierFreeOptions):
    """unconditional + scale (conditional - unconditional) (arXiv:2207.12598, eq. 6, in the form all peers use).

    The paper's w is scale - 1. Denoised estimates and predictions are affine in each other at one x and sigma, so
    combining either gives the same picture. At scale 1 the unconditional branch cancels and is not run (trap T8).
    """

    def asks(self, step: Step) -> tuple[Branch, ...]:
        return () if scale_at(self.scale, step) == 1 else (UNCONDITIONAL,)

    def start(self, steps: int, parameterization: Parameterization) -> Rule:
        self.require_run(steps, path_name(parameterization.path))
        return self._apply

    def _apply(self, estimate: Rows, at: Moment) -> Tensor:
        scale = scale_at(self.scale, at.step)
        return estimate if scale == 1 else _guided(scale, at.denoised(UNCONDITIONAL), at.denoised())

    @property
    def branches(self) -> tuple[Literal["unconditional", "conditional"], ...]:
        """For one prediction by itself, what `combine` expects, in order."""
        return ("conditional",) if self._number == 1 else ("unconditional", "conditional")

    def combine(self, results: Sequence[Float[Tensor, "batch ..."]]) -> Float[Tensor, "batch ..."]:
        """One prediction, or denoised estimate, from those of `branches`, in their order."""
        if len(results) == 1:
            return results[0]
        unconditional, conditional = map(working, results)
        return _guided(self._number, unconditional, conditional).to(results[0].dtype)

    @property
    def _number(self) -> float:
        if isinstance(self.scale, tuple) or callable(self.scale):
            raise InvalidInput("guidance scale", "one for every step", "one number: a prediction by itself has no step")
        return self.scale


@dataclass(frozen=True, kw_only=True)
class Rescale(RescaleOptions):
    """Gives the guided estimate the standard deviation of the conditional one, by `amount` from 0 to 1
    (arXiv:2305.08891, section 3.4, which recommends 0.7).

    space: the deviation of what; "prediction" is diffusers' `guidance_rescale` and the paper's for networks that
    predict v, "v" is ComfyUI's RescaleCFG. They agree for those networks only.
    """

    def asks(self, step: Step) -> tuple[Branch, ...]:
        return ()

    def start(self, steps: int, parameterization: Parameterization) -> Rule:
        self.require_run(steps, path_name(parameterization.path))
        return self._apply

    def _apply(self, estimate: Rows, at: Moment) -> Tensor:
        guided, conditional = at.express(estimate, self.space), at.express(at.denoised(), self.space)
        rescaled = guided * (deviation(conditional) / deviation(guided))
        return at.read(self.amount * rescaled + (1 - self.amount) * guided, self.space)


def _guided(scale: float, unconditional: Tensor, conditional: Tensor) -> Tensor:
    return unconditional + scale * (conditional - unconditional)
