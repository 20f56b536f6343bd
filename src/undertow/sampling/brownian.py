"""Noise of a stochastic differential equation: increments of one Brownian path per image."""

import math
from collections.abc import Sequence
from typing import cast

import torch
import torchsde
from jaxtyping import Float
from torch import Tensor

from undertow.errors import InvalidInput


class BrownianNoise:
    """A Brownian path over sigma for every image, keyed by its seed: what is drawn between two levels belongs to them.

    However many steps lie between, they add up to the same path, so that a picture changes little with the number of
    steps. arXiv:2001.01328, section 4; k-diffusion `BrownianTreeNoiseSampler` with one seed per image, as A1111.
    Drawn in float32 on the CPU, like all noise here.
    """

    def __init__(self, seeds: Sequence[int], shape: Sequence[int], low: float, high: float):
        if not 0 < low < high < math.inf:
            raise InvalidInput("the range of a Brownian path", (low, high), "two positive numbers, the lower one first")
        # The tree knows its times to six digits.
        self.low, self.high = round(low, 6), round(high, 6)
        start = torch.zeros(tuple(shape))
        self._trees = [torchsde.BrownianTree(t0=self.low, w0=start, t1=self.high, entropy=seed) for seed in seeds]

    def between(self, sigma: float, target: float, like: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """Standard normal noise: the increment from `sigma` down to `target`, divided by its deviation."""
        low, high = max(target, self.low), min(sigma, self.high)
        # A tree gives tuples only when asked for its integrals too.
        increments = torch.stack([cast(Tensor, tree(low, high)) for tree in self._trees])
        return (-increments / math.sqrt(high - low)).to(device=like.device, dtype=like.dtype)
