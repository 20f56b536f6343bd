"""How strongly a control network acts: gains per residual, modes, masks.

Residuals are counted as a network's `points` name them: the skips in order, or the places of `running` that are given,
and the middle last.
"""

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from undertow.adapters.adapter import ControlMode
from undertow.errors import InvalidInput
from undertow.unet.conditioning import Residuals

WEAKEST = 0.1
"""Gain of the first residual in the modes "prompt" and "control"; the middle's is 1."""

Residual = Float[Tensor, "..."]
Mask = Float[Tensor, "batch 1 height width"]


def mode_gains(count: int, mode: ControlMode) -> tuple[float, ...]:
    """A mode's gain for each of `count` residuals, the middle's last: 10^(-1) to 10^0 in equal ratios (diffusers'
    `logspace(-1, 0, count)`; lllyasviel's 0.825^(count - 1 - i) is within 1 % of it for 13)."""
    if mode == "balanced" or count == 1:
        return (1.0,) * count
    return tuple(WEAKEST ** (1 - index / (count - 1)) for index in range(count))


def residual_gains(
    count: int,
    scale: float | Sequence[float] = 1.0,
    mode: ControlMode = "balanced",
    *,
    conditional: bool = True,
    global_pool: bool = False,
) -> tuple[float, ...]:
    """The gain of each residual on one side of guidance.

    scale: for all, or one for each. conditional: on the side of the prompt. global_pool: of a network whose residuals
    count by their mean, which never acts on the other side and has no weaker residuals (diffusers). Errors:
    `InvalidInput` for another number of scales.
    """
    scales = (scale,) * count if isinstance(scale, int | float) else tuple(scale)
    if len(scales) != count:
        raise InvalidInput("scale", f"{len(scales)} numbers", f"one, or {count}: the skips in order, then the middle")
    if not conditional and (mode == "control" or global_pool):
        return (0.0,) * count
    soft = mode_gains(count, "balanced" if global_pool else mode)
    return tuple(one * gain for one, gain in zip(scales, soft, strict=True))


def scaled(residuals: Residuals, gains: Float[Tensor, "batch points"]) -> Residuals:
    """Every residual times its gain, row by row. Errors: `InvalidInput` for another number of gains."""
    given = sum(one is not None for one in (*residuals.skips, *residuals.running, residuals.middle))
    if gains.shape[1] != given:
        raise InvalidInput("gains", list(gains.shape), f"[batch, {given}], one for each residual")
    return _changed(residuals, lambda index, one: one * gains[:, index, None, None, None].to(one.dtype))


def pooled(residuals: Residuals) -> Residuals:
    """Every residual as its mean over the picture, in every cell (global pooling, ControlNet 1.1 shuffle)."""
    return _changed(residuals, lambda _, one: one.mean((2, 3), keepdim=True).expand_as(one))


def masked(residuals: Residuals, mask: Mask) -> Residuals:
    """Every residual where `mask`, of any resolution, lets it act."""
    return _changed(residuals, lambda _, one: one * resized(mask, one.shape[2], one.shape[3]).to(one.dtype))


def resized(mask: Mask, height: int, width: int) -> Float[Tensor, "batch 1 rows columns"]:
    """A mask at another resolution: a smaller one takes the mean over the area that each of its cells covers, a larger
    one is bilinear."""
    shrinks = height <= mask.shape[2] and width <= mask.shape[3]
    size = (height, width)
    return F.adaptive_avg_pool2d(mask, size) if shrinks else F.interpolate(mask, size, mode="bilinear")


def _changed(residuals: Residuals, change: Callable[[int, Residual], Residual]) -> Residuals:
    """`change(index, residual)` of every residual that is there."""
    index = iter(range(len(residuals.skips) + len(residuals.running) + 1))
    return Residuals(
        skips=tuple(change(next(index), one) for one in residuals.skips),
        running=tuple(None if one is None else change(next(index), one) for one in residuals.running),
        middle=None if residuals.middle is None else change(next(index), residuals.middle),
    )
