"""What becomes of a layer that several adapters change: pure functions from changes to changes.

Each adapter keeps changes of its own, so that it still follows its own schedule, and only its part in layers that it
shares with others is another one. A strategy sees scales as the largest of a schedule.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from undertow.adapters.lora.additive import Difference, LowRank
from undertow.adapters.lora.updates import AnyTensor, Kind, LayerUpdates, Matrix, Product, ScaledUpdates, Shape, Update
from undertow.adapters.stack import DENSITY, StrategyName
from undertow.adapters.stacking.overlap import Delta, delta

SAME_SPAN = 1e-5
"""Directions in which a change has a smaller share of its norm than this are rounding errors of float32."""

Basis = Float[Tensor, "inputs directions"]
"""Orthonormal columns: input directions that a change reacts to."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How layers are shared. weights: by adapter, for "weighted". density: for "ties"."""

    strategy: StrategyName
    weights: Mapping[str, float] | None = None
    density: float = DENSITY


def shared_layers(applied: Sequence[ScaledUpdates]) -> dict[str, list[ScaledUpdates]]:
    """Layers that several of these change, each with those that do, in the given order."""
    found: dict[str, list[ScaledUpdates]] = {}
    for scaled in applied:
        for layer in scaled.layers.updates:
            if scaled.layers.gain(layer, scaled.gain) != 0:
                found.setdefault(layer, []).append(scaled)
    return {layer: here for layer, here in found.items() if len(here) > 1}


def revised(applied: Sequence[ScaledUpdates], rule: Rule) -> dict[str, LayerUpdates]:
    """The updates of adapters that share layers, by title, as the rule changes them.

    applied: the highest priority first, with gains as the rule is to see them. In shared layers, updates must be
    additive (`Update.additive`), except for "priority".
    """
    shared = shared_layers(applied)
    if rule.strategy == "sum" or not shared:
        return {}
    concerned = [scaled for scaled in applied if any(scaled in here for here in shared.values())]
    updates = {scaled.layers.title: dict(scaled.layers.updates) for scaled in concerned}
    factors = {scaled.layers.title: dict(scaled.layers.factors) for scaled in concerned}
    for layer, here in shared.items():
        match rule.strategy:
            case "normalised" | "weighted":
                for scaled, factor in zip(here, _factors(layer, here, rule), strict=True):
                    factors[scaled.layers.title][layer] = scaled.layers.factors.get(layer, 1.0) * factor
            case _:
                own = [scaled.layers.updates[layer] for scaled in here]
                gains = [scaled.layers.gain(layer, scaled.gain) for scaled in here]
                for scaled, update in zip(here, _UPDATES[rule.strategy](own, gains, rule), strict=True):
                    if update is None:
                        del updates[scaled.layers.title][layer]
                    else:
                        updates[scaled.layers.title][layer] = update
    weights = tuple(sorted((rule.weights or {}).items()))
    company = tuple(scaled.signature for scaled in applied)
    return {
        title: LayerUpdates(
            key=(scaled.layers.key, rule.strategy, weights, rule.density, company),
            title=title,
            updates=updates[title],
            factors=factors[title],
        )
        for scaled in concerned
        if (title := scaled.layers.title) in updates
    }


def _factors(layer: str, here: Sequence[ScaledUpdates], rule: Rule) -> list[float]:
    if rule.strategy == "weighted":
        return [(rule.weights or {}).get(scaled.layers.title, 1.0) for scaled in here]
    total = sum(abs(scaled.layers.gain(layer, scaled.gain)) for scaled in here)
    return [1 / total] * len(here)


def _first(own: Sequence[Update], gains: Sequence[float], rule: Rule) -> list[Update | None]:  # noqa: ARG001
    return [own[0], *[None] * (len(own) - 1)]


def _ties(own: Sequence[Update], gains: Sequence[float], rule: Rule) -> list[Update | None]:
    return [TiesUpdate.of(index, own, gains, rule.density) for index in range(len(own))]


def _orthogonal(own: Sequence[Update], gains: Sequence[float], rule: Rule) -> list[Update | None]:  # noqa: ARG001
    """After Po et al. (arXiv:2312.02432), who train changes `A Bᵀ` with `Bᵢᵀ Bⱼ = 0`: an input that a higher one reacts
    to then gets nothing from a lower one. Here the lower one's rows are projected: `Δ (I - V Vᵀ)`, V the higher ones'
    row space (cells of a kernel count as inputs; a norm's vector is one row). Low-rank changes stay low-rank."""
    higher: list[Matrix] = []
    found: list[Update | None] = []
    for update in own:
        change = delta(update)
        if change is None or not higher:  # of the bias alone, or the highest
            found.append(update)
        else:
            found.append(_update(without(change, row_space(higher)), update))
        if change is not None:
            higher.append(rows(change))
    return found


_UPDATES: Mapping[str, Callable[[Sequence[Update], Sequence[float], Rule], list[Update | None]]] = {
    "priority": _first,
    "ties": _ties,
    "orthogonal": _orthogonal,
}


def rows(change: Delta) -> Matrix:
    """A matrix with the same response to every input as the change has, up to rotation, and few rows if its rank is
    low."""
    return torch.linalg.qr(change.left).R @ change.right if isinstance(change, Product) else change


def row_space(changes: Sequence[Float[Tensor, "_ inputs"]]) -> Basis:
    """An orthonormal basis, in columns, of the inputs that any of these changes responds to."""
    tiny = torch.finfo(torch.float32).tiny
    alike = torch.cat([change / change.norm().clamp(min=tiny) for change in changes])
    _, sizes, directions = torch.linalg.svd(alike, full_matrices=False)
    return directions[sizes > SAME_SPAN].T


def without(change: Delta, basis: Basis) -> Delta:
    """The change without its response to inputs in the span of the basis."""
    if isinstance(change, Product):
        return replace(change, right=change.right - change.right @ basis @ basis.T)
    return change - change @ basis @ basis.T


def _update(change: Delta, old: Update) -> Update:
    """A change as an update, with the bias of the update that it replaces."""
    if isinstance(change, Product):
        return LowRank(down=change.right, up=change.left, bias_change=old.bias_change)
    norm = isinstance(old, Difference) and old.norm
    return Difference(weight_change=change.flatten() if norm else change, norm=norm, bias_change=old.bias_change)


def trimmed(change: AnyTensor, density: float) -> AnyTensor:
    """The change with only its largest numbers: a share of `density`, and any equal to the smallest of them; the others
    are 0 (section 4.2, step 1)."""
    sizes = change.abs()
    kept = max(1, int(density * sizes.numel()))
    # NumPy selects an order of magnitude faster than torch.topk on CPUs.
    least = float(np.partition(sizes.flatten().cpu().numpy(), -kept)[-kept])
    return torch.where(sizes >= least, change, 0.0)


def share(changes: Sequence[AnyTensor], own: int, density: float) -> AnyTensor:
    """The factor by which each number of one change enters the merged one, which is `Σ shareᵢ · changeᵢ`.

    Where a change survives trimming and has the elected sign, that of the sum (step 2), it is one over the number of
    changes that do (step 3); elsewhere 0.
    """
    kept = [trimmed(change, density) for change in changes]
    positive = torch.stack(kept).sum(0) >= 0
    agrees = [torch.where(positive, change > 0, change < 0) for change in kept]
    return agrees[own] / torch.stack(agrees).sum(0, dtype=torch.float32).clamp(min=1)


@dataclass(frozen=True, kw_only=True, eq=False)
class TiesUpdate(Update):
    """The part of a TIES merge that comes from one of several updates of a layer. It is computed when it is written, so
    that only one layer at a time is dense.

    own: index of this one in `updates`. gains: of all updates, which weigh the election.
    """

    own: int
    updates: tuple[Update, ...]
    gains: tuple[float, ...]
    density: float

    @classmethod
    def of(cls, own: int, updates: Sequence[Update], gains: Sequence[float], density: float) -> "TiesUpdate":
        """The part of update `own`; its bias is merged in the same way, among the updates that have one."""
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
