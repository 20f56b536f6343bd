"""How strongly each residual of a ControlNet counts, by its mode."""

import torch

from undertow.adapters.adapter import ControlMode

WEAKEST = -1.0
"""Logarithm, base 10, of the first residual's factor in the soft modes."""


def mode_gains(count: int, mode: ControlMode) -> tuple[float, ...]:
    """Factors of `count` residuals, the middle last: 1, or from 0.1 to 1 in equal ratios where the prompt or the
    guidance shall count for more (diffusers' guess mode, lllyasviel's `0.825 ** (12 - i)` within 1 %)."""
    if mode == "balanced":
        return (1.0,) * count
    return tuple(torch.logspace(WEAKEST, 0, count, dtype=torch.float64).tolist())
