"""Finishes that keep a strongly guided estimate in range: Imagen's dynamic thresholding, and mimic guidance."""

from dataclasses import dataclass

import torch
from torch import Tensor

from undertow.diffusion.guidance.branches import UNCONDITIONAL, Branch
from undertow.diffusion.guidance.methods import Moment, Rows, Rule
from undertow.diffusion.guidance.rows import for_each_row
from undertow.diffusion.parameterizations import Parameterization
from undertow.diffusion.paths import path_name
from undertow.guidance_options.records import DynamicThresholdOptions, MimicOptions
from undertow.guidance_options.steps import Step, scale_at


@dataclass(frozen=True, kw_only=True)
class DynamicThreshold(DynamicThresholdOptions):
    """Imagen's (arXiv:2205.11487, section 2.3): the estimate is clamped to the `percentile` of its sizes, at least 1,
    and divided by it. For pixels in [-1, 1]; latents have no such range.

    largest: the threshold's upper bound; diffusers' `sample_max_value` is 1 unless told otherwise, which clamps only.
    """

    def asks(self, step: Step) -> tuple[Branch, ...]:
        return ()

    def start(self, steps: int, parameterization: Parameterization) -> Rule:
        self.require_run(steps, path_name(parameterization.path))
        return self._apply

    def _apply(self, estimate: Rows, at: Moment) -> Tensor:
        sizes = for_each_row(lambda row: row.abs().flatten().quantile(self.percentile), estimate)
        threshold = sizes.clamp(1, self.largest)
        return estimate.clamp(-threshold, threshold) / threshold


@dataclass(frozen=True, kw_only=True)
class Mimic(MimicOptions):
    """Dynamic thresholding for latents (mcmonkeyprojects' sd-dynamic-thresholding): every channel of the guided
    estimate is clamped and brought to the size that a lower guidance scale, `scale`, would have given it.

    percentile: of the guided sizes, that count as their largest. amount: how much of the result, the rest being the
    guided estimate (their `interpolate_phi`). space: "denoised" as their ComfyUI node, "prediction" as in A1111. Their
    defaults: channels apart, from the mean, by largest size.
    """

    def asks(self, step: Step) -> tuple[Branch, ...]:
        return (UNCONDITIONAL,)

    def start(self, steps: int, parameterization: Parameterization) -> Rule:
        self.require_run(steps, path_name(parameterization.path))
        return self._apply

    def _apply(self, estimate: Rows, at: Moment) -> Tensor:
        guided, conditional, unconditional = (
            at.express(part, self.space).flatten(2) for part in (estimate, at.denoised(), at.denoised(UNCONDITIONAL))
        )
        mimic = unconditional + scale_at(self.scale, at.step) * (conditional - unconditional)
        mean = _channel_means(guided)
        centered, mimic = guided - mean, mimic - _channel_means(mimic)
        size = mimic.abs().amax(2, keepdim=True)
        largest = torch.maximum(size, centered.abs().quantile(self.percentile, dim=2, keepdim=True))
        largest = largest.clamp_min(torch.finfo(largest.dtype).tiny)  # a channel may be flat
        tamed = centered.clamp(-largest, largest) / largest * size + mean
        result = self.amount * tamed + (1 - self.amount) * guided
        return at.read(result.unflatten(2, at.x.shape[2:]), self.space)


def _channel_means(rows: Tensor) -> Tensor:
    return torch.stack([row.mean(1, keepdim=True) for row in rows])
