"""Finishes that keep a strongly guided estimate in range: Imagen's dynamic thresholding, and mimic guidance."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from undertow.diffusion.guidance.branches import UNCONDITIONAL, Branch, Step, require_word
from undertow.diffusion.guidance.methods import Moment, Role, Rows, Rule, Space, require_space
from undertow.diffusion.guidance.rows import for_each_row
from undertow.diffusion.guidance.scales import Scale, require_range, require_scale, require_steps, scale_at
from undertow.diffusion.parameterizations import Parameterization
from undertow.errors import InvalidInput


@dataclass(frozen=True, kw_only=True)
class DynamicThreshold:
    """Imagen's (arXiv:2205.11487, section 2.3): the estimate is clamped to the `percentile` of its sizes, at least 1,
    and divided by it. For pixels in [-1, 1]; latents have no such range.

    largest: the threshold's upper bound; diffusers' `sample_max_value` is 1 unless told otherwise, which clamps only.
    """

    percentile: float = 0.995
    largest: float = math.inf
    role: Role = field(default="finish", init=False, repr=False)

    def __post_init__(self):
        require_range("percentile", self.percentile, 0, 1)
        if not self.largest >= 1:
            raise InvalidInput("largest", self.largest, "a number, at least 1")

    def asks(self, step: Step) -> tuple[Branch, ...]:
        return ()

    def start(self, steps: int, parameterization: Parameterization) -> Rule:
        return self._apply

    def _apply(self, estimate: Rows, at: Moment) -> Tensor:
        sizes = for_each_row(lambda row: row.abs().flatten().quantile(self.percentile), estimate)
        threshold = sizes.clamp(1, self.largest)
        return estimate.clamp(-threshold, threshold) / threshold


@dataclass(frozen=True, kw_only=True)
class Mimic:
    """Dynamic thresholding for latents (mcmonkeyprojects' sd-dynamic-thresholding): every channel of the guided
    estimate is clamped and brought to the size that a lower guidance scale, `scale`, would have given it.

    percentile: of the guided sizes, that count as their largest. amount: how much of the result, the rest being the
    guided estimate (their `interpolate_phi`). space: "denoised" as their ComfyUI node, "prediction" as in A1111. Their
    defaults: channels apart, from the mean, by largest size.
    """

    scale: Scale = 7.0
    percentile: float = 1.0
    amount: float = 1.0
    space: Space = "denoised"
    role: Role = field(default="finish", init=False, repr=False)

    def __post_init__(self):
        require_scale("mimic scale", self.scale)
        require_range("percentile", self.percentile, 0, 1)
        require_range("mimic amount", self.amount, 0, 1)
        require_word("space", self.space, Space)

    def asks(self, step: Step) -> tuple[Branch, ...]:
        return (UNCONDITIONAL,)

    def start(self, steps: int, parameterization: Parameterization) -> Rule:
        require_steps("mimic scale", self.scale, steps)
        require_space("mimic", self.space, parameterization)
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
