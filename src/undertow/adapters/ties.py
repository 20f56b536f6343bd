"""TIES (arXiv:2306.01708): several changes of one layer become one by trimming, electing a sign, and a disjoint mean.

Written so that every adapter keeps what is its own: of the merged change, the part that came from it. Their sum is TIES
at the scales that were elected with, and each part can still follow its adapter's schedule.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from undertow.adapters.lora.updates import AnyTensor, Kind, Shape, Update


def trimmed(change: AnyTensor, density: float) -> AnyTensor:
    """The change with its largest numbers alone, `density` of them and those equal to the last; the others are 0
    (section 4.2, step 1)."""
    sizes = change.abs()
    kept = max(1, int(density * sizes.numel()))
    # NumPy selects an order of magnitude faster than torch.topk on CPUs.
    least = float(np.partition(sizes.flatten().cpu().numpy(), -kept)[-kept])
    return torch.where(sizes >= least, change, 0.0)


def share(changes: Sequence[AnyTensor], own: int, density: float) -> AnyTensor:
    """How much of each number of one of the changes enters the merged one, which is `Σ shareᵢ · changeᵢ`.

    Where a change survives trimming and has the elected sign, that of the sum of all (step 2), the share is one over
    the number of those that do (step 3); elsewhere 0.
    """
    kept = [trimmed(change, density) for change in changes]
    positive = torch.stack(kept).sum(0) >= 0
    agrees = [torch.where(positive, change > 0, change < 0) for change in kept]
    return agrees[own] / torch.stack(agrees).sum(0, dtype=torch.float32).clamp(min=1)


@dataclass(frozen=True, kw_only=True, eq=False)
class TiesUpdate(Update):
    """What TIES leaves of one of several changes of a layer, computed when it is written: a layer at a time is dense.

    own: which of `updates` it is. gains: how strongly each acts, which weighs the election.
    """

    own: int
    updates: tuple[Update, ...]
    gains: tuple[float, ...]
    density: float

    @classmethod
    def of(cls, own: int, updates: Sequence[Update], gains: Sequence[float], density: float) -> "TiesUpdate":
        """With its bias elected too, among those that change it."""
        bias, biases = updates[own].bias_change, [update.bias_change for update in updates]
        if bias is not None:
            scaled = [
                torch.zeros_like(bias.float()) if each is None else gain * each.float().reshape(bias.shape)
                for each, gain in zip(biases, gains, strict=True)
            ]
            bias = bias.float() * share(scaled, own, density)
        return cls(own=own, updates=tuple(updates), gains=tuple(gains), density=density, bias_change=bias)

    @property
    def kind(self) -> Kind:
        return "full"

    def fits(self, shape: Shape) -> bool:
        return all(update.fits(shape) for update in self.updates)

    def change(self, base: AnyTensor) -> AnyTensor:
        changes = [update.change(base) for update in self.updates]
        scaled = [gain * change for gain, change in zip(self.gains, changes, strict=True)]
        return changes[self.own] * share(scaled, self.own, self.density)

    def on(self, device: torch.device | str) -> "TiesUpdate":
        bias = None if self.bias_change is None else self.bias_change.to(device)
        return replace(self, updates=tuple(update.on(device) for update in self.updates), bias_change=bias)

    @property
    def size_bytes(self) -> int:
        return self.updates[self.own].size_bytes
