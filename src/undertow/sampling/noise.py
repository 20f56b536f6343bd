"""Noise that belongs to an image, not to the batch it is made in."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from undertow.errors import InvalidInput
from undertow.sampling.brownian import BrownianNoise
from undertow.sampling.generators import generator_for


class NoiseSource:
    """One CPU generator per image, keyed by its seed (the `StackedRandomGenerator` of EDM2, arXiv:2312.02696).

    Every image draws its own stream, in float32 on the CPU: it does not depend on its neighbors, the device or the
    precision. The order of draws is the state: first the starting noise, then whatever a stochastic sampler draws.
    """

    def __init__(self, seeds: Sequence[int]):
        if len(seeds) == 0:
            raise InvalidInput("seeds", list(seeds), "one seed per image")
        for seed in seeds:
            if not 0 <= seed < 2**64:
                raise InvalidInput("seed", seed, "a whole number from 0 to 2^64 - 1")
        self.seeds = tuple(seeds)
        self._generators = [generator_for(seed) for seed in seeds]

    def __len__(self) -> int:
        return len(self.seeds)

    def draw(self, shape: Sequence[int]) -> Float[Tensor, "batch ..."]:
        """Standard normal noise [images, *shape] in float32 on the CPU; `shape` is one image's."""
        return torch.stack([torch.randn(tuple(shape), generator=generator) for generator in self._generators])

    def like(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """Standard normal noise in the shape, dtype and place of `x`. Errors: `InvalidInput` for another batch size."""
        self.require_count(len(x))
        return self.draw(x.shape[1:]).to(device=x.device, dtype=x.dtype)

    def like_row(self, x: Float[Tensor, "1 ..."], row: int) -> Float[Tensor, "1 ..."]:
        """The same for one image, from its stream alone."""
        drawn = torch.randn(x.shape[1:], generator=self._generators[row])[None]
        return drawn.to(device=x.device, dtype=x.dtype)

    def brownian(self, x: Float[Tensor, "batch ..."], sigmas: Sequence[float]) -> BrownianNoise:
        """Brownian paths for the images of `x` over the levels of a grid above 0; asking twice gives the same paths."""
        levels = [sigma for sigma in sigmas if sigma > 0]
        return BrownianNoise(self.seeds, x.shape[1:], min(levels), max(levels))

    def require_count(self, batch: int) -> None:
        """Refuse a batch that is not this source's. Errors: `InvalidInput`."""
        if batch != len(self):
            raise InvalidInput("seeds", f"{len(self)} seeds", f"{batch}, one for each image of the batch")
