"""GroupNorm's statistics gathered tile by tile: what makes tiles of a picture agree with the whole."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

PerChannel = Float[Tensor, "batch channels 1 1"]


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Mean and biased variance of every group over a whole map, in float64."""

    mean: Float[Tensor, "batch groups"]
    variance: Float[Tensor, "batch groups"]

    def affine(self, norm: nn.GroupNorm) -> tuple[PerChannel, PerChannel]:
        """GroupNorm with these statistics as scale and shift per channel, x · scale + shift, in float32 or better."""
        dtype = torch.promote_types(norm.weight.dtype, torch.float32)
        per_group = norm.num_channels // norm.num_groups
        deviation = (self.variance + norm.eps).sqrt().repeat_interleave(per_group, dim=1)
        scale = norm.weight.double() / deviation
        shift = norm.bias.double() - self.mean.repeat_interleave(per_group, dim=1) * scale
        return scale.to(dtype)[:, :, None, None], shift.to(dtype)[:, :, None, None]


class Moments:
    """Running statistics of groups: each tile's by two passes in float32, joined in float64 by Chan's formula
    (Chan, Golub and LeVeque 1983, Eq. 2.1), which loses nothing where means are large against deviations."""

    def __init__(self, groups: int):
        self._groups = groups
        self._count = 0
        self._mean: Tensor | float = 0.0
        self._squares: Tensor | float = 0.0

    def add(self, tile: Float[Tensor, "batch channels height width"]) -> None:
        dtype = torch.promote_types(tile.dtype, torch.float32)
        numbers = tile.to(dtype).reshape(tile.shape[0], self._groups, -1)
        count = numbers.shape[-1]
        mean = numbers.mean(-1)
        squares = torch.linalg.vector_norm(numbers - mean[..., None], dim=-1).double() ** 2
        total = self._count + count
        delta = mean.double() - self._mean
        self._mean = self._mean + delta * (count / total)
        self._squares = self._squares + squares + delta**2 * (self._count * count / total)
        self._count = total

    def finish(self) -> Statistics:
        assert isinstance(self._mean, Tensor)
        assert isinstance(self._squares, Tensor)
        return Statistics(mean=self._mean, variance=self._squares / self._count)
