"""Data augmentation: small random distortions of training pictures, which keep a network from memorizing them."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from undertow.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """A random affine map for each picture, whose parameters are uniform between minus and plus the given values.

    shift: in fractions of the picture's side. rotation: in degrees. scale, shear: in fractions. flip: whether pictures
    are mirrored horizontally with probability 1/2. background: the value in [-1, 1] of pixels that enter at the edges;
    `None` reflects the picture there. Errors: `ConfigError`.
    """

    shift: float = 0.0
    rotation: float = 0.0
    scale: float = 0.0
    shear: float = 0.0
    flip: bool = False
    background: float | None = None

    def __post_init__(self):
        for name, limit in (("shift", 0.5), ("rotation", 180.0), ("scale", 0.5), ("shear", 0.5)):
            if not 0 <= getattr(self, name) <= limit:
                raise ConfigError(f"augmentation.{name}", getattr(self, name), f"must lie between 0 and {limit:g}")

    def __call__(
        self, pictures: Float[Tensor, "batch channels height width"], generator: torch.Generator
    ) -> Float[Tensor, "batch channels height width"]:
        """Returns the pictures, each distorted by its own map and resampled bilinearly. generator: a CPU generator."""
        draws = torch.rand(len(pictures), 6, generator=generator).to(pictures.device)
        if self.flip:
            pictures = torch.where((draws[:, 5] < 0.5)[:, None, None, None], pictures.flip(-1), pictures)
        if not any((self.shift, self.rotation, self.scale, self.shear)):
            return pictures
        grid = F.affine_grid(self._maps(draws), list(pictures.shape), align_corners=False)
        if self.background is None:
            return F.grid_sample(pictures, grid, padding_mode="reflection", align_corners=False)
        return F.grid_sample(pictures - self.background, grid, align_corners=False) + self.background

    def _maps(self, draws: Float[Tensor, "batch draws"]) -> Float[Tensor, "batch 2 3"]:
        """Returns affine maps from output to input positions, in coordinates in which the picture spans [-1, 1]."""
        angle, scale, shear, right, down = (2 * draws[:, :5] - 1).unbind(1)
        angle, scale, shear = angle * math.radians(self.rotation), 1 + scale * self.scale, shear * self.shear
        cos, sin = scale * angle.cos(), scale * angle.sin()
        rows = (
            torch.stack((cos, shear - sin, 2 * self.shift * right), dim=1),
            torch.stack((sin, cos, 2 * self.shift * down), dim=1),
        )
        return torch.stack(rows, dim=1)
