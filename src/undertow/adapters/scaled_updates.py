"""A file's changes as one request uses them, and how strongly they act in one row of a batch."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from undertow.adapters.lora.updates import Update


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerUpdates:
    """Changes of a U-Net's layers. key: equal for equal changes, of whatever request. factors: of single layers, where
    they are not 1."""

    key: Hashable
    title: str
    updates: Mapping[str, Update]
    factors: Mapping[str, float]

    def gain(self, layer: str, gain: float) -> float:
        """How strongly they act in one layer."""
        return gain * self.factors.get(layer, 1.0)


@dataclass(frozen=True, kw_only=True, eq=False)
class ScaledUpdates:
    """Changes that act in a row, at their gain, which is not 0."""

    layers: LayerUpdates
    gain: float

    @property
    def signature(self) -> Hashable:
        """Equal for what has equal effects."""
        return self.layers.key, self.gain


def changed_layers(scaled: Sequence[ScaledUpdates]) -> list[str]:
    """Every layer that something changes, once."""
    return list(dict.fromkeys(layer for each in scaled for layer in each.layers.updates))


def updates_for(layer: str, scaled: Sequence[ScaledUpdates]) -> list[tuple[Update, float]]:
    """What changes a layer and how strongly: first, in the given order, what looks at the weight (DoRA, OFT, ...), then
    all that simply adds up."""
    found = [
        (update, each.layers.gain(layer, each.gain))
        for each in scaled
        if (update := each.layers.updates.get(layer)) is not None
    ]
    return sorted(found, key=lambda one: one[0].additive)
