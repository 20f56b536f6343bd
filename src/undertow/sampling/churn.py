"""Churn: noise added before a deterministic step, which takes it away again with old errors."""

import math
from dataclasses import dataclass

from torch import Tensor

from undertow.sampling.noise import NoiseSource
from undertow.sampling.protocol import require_noise


@dataclass(frozen=True, kw_only=True)
class Churn:
    """arXiv:2206.00364, algorithm 2, lines 4-6, as in k-diffusion.

    Never above sigmas[0], which may be the last level that the network knows. first: that level; steps: of the run.
    """

    noise: NoiseSource | None
    first: float
    steps: int
    s_churn: float
    s_tmin: float
    s_tmax: float
    s_noise: float

    def __call__(self, x: Tensor, sigma: float) -> tuple[Tensor, float]:
        """x and its level, raised where there is churn at `sigma`."""
        if self.s_churn == 0 or not self.s_tmin <= sigma <= self.s_tmax:
            return x, sigma
        higher = min(sigma * (1 + min(self.s_churn / self.steps, math.sqrt(2) - 1)), self.first)
        if higher == sigma:
            return x, sigma
        fresh = require_noise(self.noise, "a sampler with s_churn > 0").like(x)
        return x + self.s_noise * math.sqrt(higher**2 - sigma**2) * fresh, higher
