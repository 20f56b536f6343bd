"""FreeU (arXiv:2309.11497): a decoder that trusts its backbone more and the low frequencies of its skips less."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from undertow.shapes import FeatureMap


@dataclass(frozen=True, kw_only=True)
class FreeUFactors:
    """The factors of one decoder layer, per row; 1 and 1 leave a row as it is, bit for bit.

    backbone: b, on the first half of the channels. skip: s, on the lowest frequencies of the skip. structural: True for
    rows of version 2, whose b acts where the mean over channels is high.
    """

    backbone: Float[Tensor, "batch"]
    skip: Float[Tensor, "batch"]
    structural: Bool[Tensor, "batch"]


def scale_backbone(hidden: FeatureMap, factors: FreeUFactors) -> FeatureMap:
    """The first half of the channels times b, or in version 2 times 1 + (b - 1) m, where m is the mean over channels,
    moved to 0..1 over each map."""
    backbone = factors.backbone.to(hidden.dtype)[:, None, None, None]
    mean = hidden.mean(1, keepdim=True)
    low, high = mean.amin((2, 3), keepdim=True), mean.amax((2, 3), keepdim=True)
    spread = (high - low).clamp_min(torch.finfo(hidden.dtype).tiny)  # a map of one cell has none
    structural = (backbone - 1) * ((mean - low) / spread) + 1
    scale = torch.where(factors.structural[:, None, None, None], structural, backbone)
    first_half = torch.arange(hidden.shape[1], device=hidden.device)[:, None, None] < hidden.shape[1] // 2
    return hidden * torch.where(first_half, scale, 1.0)


def scale_low_frequencies(skip: FeatureMap, factors: FreeUFactors) -> FeatureMap:
    """The skip with its frequencies 0 and -1, in both directions, times s (the threshold 1 that all codes use).

    These are the two times two in the centre of the shifted spectrum. Four frequencies need no Fourier transform: the
    real part of what they hold is a projection onto seven waves.
    """
    waves = _low_waves(skip.shape[2], skip.shape[3], skip.device)
    numbers = skip.float()
    low = (numbers.flatten(2) @ waves.mT) @ waves / waves.shape[1]
    gain = factors.skip.float()[:, None, None, None] - 1
    # A sum, which has the memory layout of the skip: the next convolution is the one that it would be without.
    return (numbers + gain * low.reshape(skip.shape)).to(skip.dtype)


def _low_waves(height: int, width: int, device: torch.device) -> Float[Tensor, "waves cells"]:
    """Cosines and sines of the frequencies 0 and -1, over the cells of a map; -1 is 0 where there is one cell."""
    rows = torch.arange(height, device=device) * (2 * math.pi / height)
    columns = torch.arange(width, device=device) * (2 * math.pi / width)
    waves = []
    for down in (0,) if height == 1 else (0, -1):
        for across in (0,) if width == 1 else (0, -1):
            angle = (down * rows[:, None] + across * columns).flatten()
            waves += [angle.cos(), angle.sin()]
    return torch.stack(waves)
