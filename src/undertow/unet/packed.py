"""Networks that compute with packed weights (`nn.packed`), by copies that share everything else."""

from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from undertow.nn.packed import packed, packs_anything


class PackedNetworks:
    """Computes `predict` of networks with weights that are packed at the first call. They must not change afterwards.
    A network whose type oneDNN does not multiply here computes as it is."""

    def __init__(self) -> None:
        self._made: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()

    def __reduce__(self) -> tuple[type["PackedNetworks"], tuple[()]]:
        """A copy of a network that computes with them packs for itself."""
        return PackedNetworks, ()

    def predict(self, network: nn.Module, *inputs: Any) -> Any:
        """`network.predict(*inputs)`."""
        if network not in self._made and not packs_anything(network):
            return network.predict(*inputs)  # pyright: ignore[reportCallIssue]  networks have one
        if network not in self._made:
            self._made[network] = packed(network)
        return self._made[network].predict(*inputs)  # pyright: ignore[reportCallIssue]  so have their copies
