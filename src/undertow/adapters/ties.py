"""TIES (arXiv:2306.01708): several changes of one layer become one by trimming, electing a sign, and a disjoint mean.

Written so that every adapter keeps what is its own: of the merged change, the part that came from it. Their sum is TIES
at the scales that were elected with, and each part can still follow its adapter's schedule.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from undertow.adapters.lora.updates import AnyTensor, Kind, Shape, Update

Stacked = Float[Tensor, "changes *shape"]


def trimmed(change: AnyTensor, density: float) -> AnyTensor:
    """The change with its largest numbers alone, `density` of them; the others are 0 (section 4.2, step 1)."""
    sizes = change.abs().flatten()
    kept = max(1, int(density * sizes.numel()))
    mask = torch.zeros_like(sizes)
    mask[sizes.topk(kept).indices] = 1
    return change * mask.reshape(change.shape)


def shares(changes: Sequence[AnyTensor], density: float) -> Stacked:
    """How much of each number of each change enters the merged one, `Σ shareᵢ · changeᵢ`.

    Where a change survives trimming and has the elected sign, that of the sum of all (step 2), the share is one over
    the number of those that do (step 3); elsewhere 0.
    """
    kept = torch.stack([trimmed(change, density) for change in changes])
    elected = torch.where(kept.sum(0) >= 0, 1.0, -1.0)
    agrees = (kept.sign() == elected).to(kept.dtype)
    return agrees / agrees.sum(0).clamp(min=1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Elected(Update):
    """What TIES leaves of one of several changes of a layer, computed when it is written: a layer at a time is dense.

    own: which of `updates` it is. gains: how strongly each acts, which weighs the election.
    """

    own: int
    updates: tuple[Update, ...]
    gains: tuple[float, ...]
    density: float

    @classmethod
    def of(cls, own: int, updates: Sequence[Update], gains: Sequence[float], density: float) -> "Elected":
        """With its bias elected too, among those that change it."""
        bias, biases = updates[own].bias_change, [update.bias_change for update in updates]
        if bias is not None:
            scaled = [
                torch.zeros_like(bias.float()) if each is None else gain * each.float().reshape(bias.shape)
                for each, gain in zip(biases, gains, strict=True)
            ]
            bias = bias.float() * shares(scaled, density)[own]
        return cls(own=own, updates=tuple(updates), gains=tuple(gains), density=density, bias_change=bias)

    @property
    def kind(self) -> Kind:
        return "full"

    def fits(self, shape: Shape) -> bool:
        return all(update.fits(shape) for update in self.updates)

    def change(self, base: AnyTensor) -> AnyTensor:
        changes = [update.change(base) for update in self.updates]
        scaled = [gain * change for gain, change in zip(self.gains, changes, strict=True)]
        return changes[self.own] * shares(scaled, self.density)[self.own]

    def on(self, device: torch.device | str) -> "Elected":
        bias = None if self.bias_change is None else self.bias_change.to(device)
        return replace(self, updates=tuple(update.on(device) for update in self.updates), bias_change=bias)

    @property
    def size_bytes(self) -> int:
        return self.updates[self.own].size_bytes
