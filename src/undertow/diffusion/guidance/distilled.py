"""Guidance that a network was trained for: two conditionings (InstructPix2Pix), or the scale as an input (LCM)."""

from dataclasses import dataclass

from torch import Tensor

from undertow.diffusion.guidance.branches import IMAGE_ONLY, UNCONDITIONAL, Branch
from undertow.diffusion.guidance.methods import Guidance, Moment, Rows, Rule
from undertow.diffusion.parameterizations import Parameterization
from undertow.diffusion.paths import path_name
from undertow.guidance_options.records import DualGuidanceOptions, EmbeddedScaleOptions
from undertow.guidance_options.steps import Step, scale_at


@dataclass(frozen=True, kw_only=True)
class DualGuidance(DualGuidanceOptions):
    """InstructPix2Pix (arXiv:2211.09800, Eq. 3): unconditional + image_scale (image only - unconditional)
    + scale (conditional - image only), where "image only" sees the picture and not the instruction.

    Branches whose factor is 0 are not run: at scale 1 the image alone, at image_scale equal to scale 1 neither.
    """

    def asks(self, step: Step) -> tuple[Branch, ...]:
        _, image_only, unconditional = self._factors(step)
        return (IMAGE_ONLY,) * (image_only != 0) + (UNCONDITIONAL,) * (unconditional != 0)

    def start(self, steps: int, parameterization: Parameterization) -> Rule:
        self.require_run(steps, path_name(parameterization.path))
        return self._apply

    def _factors(self, step: Step) -> tuple[float, float, float]:
        """Of conditional, image only and unconditional; their sum is 1."""
        scale, image_scale = scale_at(self.scale, step), scale_at(self.image_scale, step)
        return scale, image_scale - scale, 1 - image_scale

    def _apply(self, estimate: Rows, at: Moment) -> Tensor:
        conditional, image_only, unconditional = self._factors(at.step)
        result = conditional * at.denoised()
        if image_only != 0:
            result = result + image_only * at.denoised(IMAGE_ONLY)
        if unconditional != 0:
            result = result + unconditional * at.denoised(UNCONDITIONAL)
        return result


@dataclass(frozen=True, kw_only=True)
class EmbeddedScale(EmbeddedScaleOptions):
    """The guidance scale as an input of a network distilled with it (LCM, arXiv:2310.04378, section 4.3): one branch,
    no unconditional one.

    Whoever runs the network gives `embedded_scale` as `Conditioning.guidance` to every row; only networks with
    `UNetConfig.guidance_dim`, diffusers' `time_cond_proj_dim`, take it.
    """

    def asks(self, step: Step) -> tuple[Branch, ...]:
        return ()

    def start(self, steps: int, parameterization: Parameterization) -> Rule:
        self.require_run(steps, path_name(parameterization.path))
        return lambda estimate, at: estimate


def embedded_scale(guidance: Guidance, step: Step) -> float | None:
    """What the network is told of the guidance scale at a step; `None` for guidance that it does not know of."""
    scales = [scale_at(method.scale, step) for method in guidance.methods if isinstance(method, EmbeddedScale)]
    return scales[0] if scales else None
