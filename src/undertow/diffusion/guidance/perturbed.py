"""Terms that steer away from a network made worse: PAG, SEG and SAG."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from undertow.diffusion.guidance.branches import Branch, Evaluation, Side, sigmas_at
from undertow.diffusion.guidance.methods import FurtherEvaluations, Moment, Rows, Rule
from undertow.diffusion.parameterizations import Parameterization
from undertow.diffusion.paths import path_name, per_row
from undertow.guidance_options.records import PerturbedAttentionOptions, SelfAttentionOptions, SmoothedEnergyOptions
from undertow.guidance_options.rules import BLUR_REACH, Perturbation, require_blurred
from undertow.guidance_options.steps import Step, scale_at


@dataclass(frozen=True, kw_only=True)
class PerturbedAttention(PerturbedAttentionOptions):
    """PAG (arXiv:2403.17377): + scale (conditional - perturbed), where the identity replaces chosen self-attentions.

    layers: names of modules (`Perturbation`); diffusers' default is the middle block. At scale 0 nothing is run.
    """

    @property
    def branch(self) -> Branch:
        return Branch(perturbation=Perturbation(kind="identity", layers=self.layers))

    def asks(self, step: Step) -> tuple[Branch, ...]:
        return () if scale_at(self.scale, step) == 0 else (self.branch,)

    def start(self, steps: int, parameterization: Parameterization) -> Rule:
        self.require_run(steps, path_name(parameterization.path))
        return lambda estimate, at: _away_from(self.branch, scale_at(self.scale, at.step), estimate, at)


@dataclass(frozen=True, kw_only=True)
class SmoothedEnergy(SmoothedEnergyOptions):
    """SEG (arXiv:2408.00760): + scale (conditional - blurred), where queries of chosen self-attentions are blurred.

    blur: standard deviation in cells of the attention's map; infinity, the paper's choice, is the mean of all queries.
    At scale 0 nothing is run.
    """

    @property
    def branch(self) -> Branch:
        return Branch(perturbation=Perturbation(kind="blurred", layers=self.layers, sigma=self.blur))

    def asks(self, step: Step) -> tuple[Branch, ...]:
        return () if scale_at(self.scale, step) == 0 else (self.branch,)

    def start(self, steps: int, parameterization: Parameterization) -> Rule:
        self.require_run(steps, path_name(parameterization.path))
        return lambda estimate, at: _away_from(self.branch, scale_at(self.scale, at.step), estimate, at)


OBSERVED = "mid_block"
"""The module whose attention map SAG reads (arXiv:2210.00939, section 4.2)."""


@dataclass(frozen=True, kw_only=True)
class SelfAttention(SelfAttentionOptions):
    """SAG (arXiv:2210.00939): away from what the network makes of its own estimate with the attended parts blurred.

    The estimate is blurred where the bottleneck attends more than `threshold` times the average, noised again with the
    noise that the network saw, and evaluated a second time: + scale (blurred estimate - that evaluation), which is
    scale (noise - noise seen there) in predictions of noise. side: whose estimate; the paper's Eq. 25 takes the
    unconditional one beside classifier-free guidance, and without it there is only "conditional". blur: standard
    deviation in cells of x, in a kernel of 9; 1 is diffusers', 2 ComfyUI's. At scale 0 nothing is run.
    """

    def asks(self, step: Step) -> tuple[Branch, ...]:
        return () if scale_at(self.scale, step) == 0 else (_watched(self.side),)

    def start(self, steps: int, parameterization: Parameterization) -> Rule:
        self.require_run(steps, path_name(parameterization.path))
        return self._apply

    def _apply(self, estimate: Rows, at: Moment) -> Tensor | FurtherEvaluations:
        scale = scale_at(self.scale, at.step)
        return estimate if scale == 0 else self._steer(scale, estimate, at)

    def _steer(self, scale: float, estimate: Rows, at: Moment) -> FurtherEvaluations:
        branch = _watched(self.side)
        seen = at.denoised(branch)
        degraded = self.degrade(seen, at.estimates[branch].observations[OBSERVED])
        alpha = per_row(at.parameterization.path.alpha(sigmas_at(at.step, at.x)), at.x)
        again = yield Evaluation(x=(at.x + alpha * (degraded - seen)).to(at.x.dtype), branch=Branch(side=self.side))
        return estimate + scale * (degraded - again.denoised.to(degraded.dtype))

    def degrade(
        self,
        denoised: Float[Tensor, "batch channels height width"],
        attention: Float[Tensor, "batch cells_high cells_wide"],
    ) -> Float[Tensor, "batch channels height width"]:
        """The estimate, blurred where it is attended to."""
        attended = (attention > self.threshold).to(denoised.dtype)[:, None]
        mask = F.interpolate(attended, denoised.shape[2:])  # nearest, as all codes do
        return torch.where(mask > 0, gaussian_blur(denoised, self.blur), denoised)


def gaussian_blur(
    x: Float[Tensor, "batch channels height width"], sigma: float
) -> Float[Tensor, "batch channels height width"]:
    """x under a Gaussian of nine cells, reflected at the edges. Errors: `InvalidInput` for x of fewer than five."""
    require_blurred(*x.shape[2:])
    offsets = torch.arange(-BLUR_REACH, BLUR_REACH + 1, dtype=x.dtype, device=x.device)
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = (weights / weights.sum()).expand(x.shape[1], 1, 1, -1)
    padded = F.pad(x, (BLUR_REACH,) * 4, mode="reflect")
    across = F.conv2d(padded, kernel, groups=x.shape[1])
    return F.conv2d(across, kernel.mT, groups=x.shape[1])


def _watched(side: Side) -> Branch:
    return Branch(side=side, observed=(OBSERVED,))


def _away_from(branch: Branch, scale: float, estimate: Rows, at: Moment) -> Tensor:
    return estimate if scale == 0 else estimate + scale * (at.denoised() - at.denoised(branch))
