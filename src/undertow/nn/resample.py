"""Halving and doubling the resolution."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from undertow.nn.adaptable import Conv2d, WeightRows
from undertow.shapes import FeatureMap

Halved = Float[Tensor, "batch channels half_height half_width"]
Doubled = Float[Tensor, "batch channels double_height double_width"]


class Downsample(nn.Module):
    """3x3 convolution with stride 2; an odd size rounds up."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = Conv2d(channels, channels, kernel_size=3, stride=2, padding=1)

    def forward(self, x: FeatureMap, weights: WeightRows | None = None) -> Halved:
        return self.conv(x, weights)


class Upsample(nn.Module):
    """Nearest-neighbor interpolation to `size`, then a 3x3 convolution.

    `size` is that of the next skip connection, which makes latents of any size work: twice the input, or one less where
    the encoder had rounded up.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv = Conv2d(channels, channels, kernel_size=3, padding=1)

    def forward(self, x: FeatureMap, size: tuple[int, int], weights: WeightRows | None = None) -> Doubled:
        return self.conv(F.interpolate(x, size=size, mode="nearest"), weights)
