"""Merged residency: changes written into the weights in place, always from a pristine copy.

Never by adding and later subtracting, which does not give back the same bits (trap T7). Writing in place does not
recompile, and costs nothing while drawing.
"""

from collections.abc import Hashable, Mapping, Sequence
from datetime import UTC, datetime

import torch
from torch import Tensor, nn

from undertow.adapters.lora.updates import AnyTensor, ScaledUpdates, Update, changed_layers, updates_for
from undertow.checkpoints.keymap.text_names import ROOT
from undertow.encoders.clip import TextEncoder
from undertow.errors import UndertowError
from undertow.nn.quantized import QuantizedLinear


class MergedWeights:
    """A network's weights, and what is merged into them. present, titles: signatures and names of the merged updates.
    changed_at: when the weights were last written.

    Copies of the changed weights are kept on the host until nothing is merged any more, so base weights that are
    replaced in the meantime stay replaced.
    """

    def __init__(self, network: nn.Module):
        self.present: tuple[Hashable, ...] = ()
        self.titles: tuple[str, ...] = ()
        self.changed_at = datetime.now(UTC)
        self._network = network
        self._pristine: dict[str, Tensor] = {}
        self._changed: set[str] = set()

    @property
    def pristine_bytes(self) -> int:
        """Memory of the copies, which are kept on the host."""
        return sum(tensor.nbytes for tensor in self._pristine.values())

    def set_active(self, scaled: Sequence[ScaledUpdates]) -> None:
        """Makes the weights those of the base with these updates merged, and no others.

        Updates that depend on the weight (DoRA, OFT, ...) are applied to the base first, one after the other; then the
        sum of all others is added. Errors: `UndertowError` when a weight stops being finite; the base weights are
        restored then.
        """
        signature = tuple(each.signature for each in scaled)
        if signature == self.present:
            return
        self.changed_at = datetime.now(UTC)
        try:
            self._write(scaled)
        except BaseException:
            self._restore(self._changed)
            self._pristine.clear()
            self.present, self.titles = (), ()
            raise
        self.present, self.titles = signature, tuple(each.layers.title for each in scaled)
        if not scaled:
            self._pristine.clear()

    @property
    def pristine(self) -> Mapping[str, AnyTensor]:
        """Copies of the base weights, by name, of everything that was changed since nothing was merged."""
        return dict(self._pristine)

    def adopt(self, present: tuple[Hashable, ...], titles: tuple[str, ...], pristine: Mapping[str, AnyTensor]) -> None:
        """Records what is merged, after the weights themselves were restored from a snapshot."""
        self.present, self.titles = present, titles
        self._pristine, self._changed = dict(pristine), set(pristine)
        self.changed_at = datetime.now(UTC)

    @torch.no_grad()
    def _write(self, scaled: Sequence[ScaledUpdates]) -> None:
        titles = " and ".join(each.layers.title for each in scaled)
        written: set[str] = set()
        for layer in changed_layers(scaled):
            module = self._network.get_submodule(layer)
            weight, bias = self._base(f"{layer}.weight"), None
            if getattr(module, "bias", None) is not None:
                bias = self._base(f"{layer}.bias")
            for update, gain in updates_for(layer, scaled):
                weight, bias = update.weight(weight, gain), update.bias(bias, gain)
            for name, tensor in ((f"{layer}.weight", weight), (f"{layer}.bias", bias)):
                if tensor is None:
                    continue
                self._put(name, tensor, titles)
                written.add(name)
        self._restore(self._changed - written)

    def _base(self, name: str) -> Tensor:
        """The base weight, on the device of the network."""
        current = self._network.get_parameter(name)
        if name not in self._pristine:
            self._pristine[name] = current.detach().to("cpu", copy=True)
        return self._pristine[name].to(current.device)

    def _put(self, name: str, tensor: Tensor, titles: str) -> None:
        target = self._network.get_parameter(name)
        cast = tensor.to(target.dtype)
        if not cast.isfinite().all():
            raise UndertowError(
                f"with {titles} merged, {name} is no longer finite in {target.dtype}; "
                "use a smaller scale, or load the model in float32"
            )
        self._changed.add(name)
        target.copy_(cast.reshape(target.shape))

    @torch.no_grad()
    def _restore(self, names: set[str]) -> None:
        for name in names:
            self._network.get_parameter(name).copy_(self._pristine[name])
        self._changed -= names


@torch.no_grad()
def adapted_weights(encoder: TextEncoder, scaled: list[ScaledUpdates]) -> dict[str, Tensor]:
    """The parameters of an encoder that these updates change, by their names in it."""
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
    if isinstance(layer, QuantizedLinear):  # which computes with plain weights where a call brings them
        before["weight"] = layer.dequantized()
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
