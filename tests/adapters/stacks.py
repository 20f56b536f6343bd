"""Random changes of a few layers, as adapters of a stack."""

import torch

from tests.adapters.lora.files import normal
from undertow import Adapter
from undertow.adapters.lora.additive import Difference, LowRank
from undertow.adapters.lora.updates import LayerUpdates
from undertow.adapters.lora.weight_dependent import WeightDecomposed
from undertow.adapters.stacking.summary import AdapterSummary

SHAPES = {"a": (12, 10), "b": (12, 10), "c": (8, 6, 3, 3), "n": (16,)}
"""Two linear layers, a convolution and a norm."""


def low_rank(seed, layer, rank=3, scale=0.5, bias=False):
    outputs, *inputs = SHAPES[layer]
    return LowRank(
        down=normal(rank, *inputs, seed=f"{seed}{layer}down"),
        up=normal(outputs, rank, *[1] * (len(inputs) - 1), seed=f"{seed}{layer}up"),
        scale=scale,
        bias_change=normal(outputs, seed=f"{seed}{layer}bias") if bias else None,
    )


def full(seed, layer):
    shape = SHAPES[layer]
    return Difference(weight_change=normal(*shape, seed=f"{seed}{layer}"), norm=len(shape) == 1)


def dora(seed, layer):
    return WeightDecomposed(inner=low_rank(seed, layer), magnitude=1 + normal(SHAPES[layer][0], seed=seed).abs())


def changes(name, updates, factors=None):
    return LayerUpdates(key=name, title=name, updates=updates, factors=factors or {})


def summary(name, updates, *, scale=1.0, priority=0, factors=None, size_bytes=0, **more):
    adapter = Adapter(f"{name}.safetensors", scale=scale, priority=priority)
    acts = None if updates is None else changes(name, updates, factors)
    return AdapterSummary(adapter=adapter, layers=acts, size_bytes=size_bytes, **more)


def base(layer):
    return torch.randn(SHAPES[layer], generator=torch.Generator().manual_seed(3))


def dense(update, layer):
    """The change in float64, written out independently of `overlap`: by what it does to a weight."""
    return update.change(base(layer)).double()


def total(summaries, changed, layer):
    """What all together change in a layer, in float64, at their scales."""
    whole = torch.zeros(SHAPES[layer], dtype=torch.float64)
    for each in summaries:
        acts = changed.get(each.name, each.layers)
        update = acts.updates.get(layer)
        if update is not None:
            whole += acts.gain(layer, each.adapter.scales[0]) * dense(update, layer)
    return whole
