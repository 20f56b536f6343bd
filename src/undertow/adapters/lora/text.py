"""Text encoders under adapters: other weights for one call, and no change to the network."""

from collections.abc import Mapping

import torch
from torch import Tensor

from undertow.adapters.lora.updates import Update
from undertow.adapters.scaled_updates import ScaledUpdates, changed_layers, updates_for
from undertow.checkpoints.keymap.text_names import ROOT
from undertow.encoders.clip import TextEncoder


@torch.no_grad()
def adapted_weights(encoder: TextEncoder, scaled: list[ScaledUpdates]) -> dict[str, Tensor]:
    """The encoder's parameters that differ under the changes, by their names in it."""
    changed: dict[str, Tensor] = {}
    for layer in changed_layers(scaled):
        changed |= _layer(encoder, parameter_module(layer), updates_for(layer, scaled))
    return changed


def parameter_module(layer: str) -> str:
    """The name in `TextEncoder` of one of transformers' layers."""
    return "clip." + layer.removeprefix(ROOT) if layer.startswith(ROOT) else layer.removeprefix("text_")


def _layer(encoder: TextEncoder, module: str, here: list[tuple[Update, float]]) -> Mapping[str, Tensor]:
    layer = encoder.get_submodule(module)
    before = {name: getattr(layer, name, None) for name in ("weight", "bias")}
    weight, bias = before["weight"], before["bias"]
    assert weight is not None  # every target has one
    for update, gain in here:
        weight, bias = update.weight(weight, gain), update.bias(bias, gain)
    found = {"weight": weight, "bias": bias}
    return {
        f"{module}.{name}": tensor.to(old.dtype).reshape(old.shape)
        for name, tensor in found.items()
        if (old := before[name]) is not None and tensor is not None
    }
