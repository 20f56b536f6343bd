"""Layers whose weights are packed once, as oneDNN multiplies them.

PyTorch's kernels bring the weights of a product or a convolution into an order of their own at every call. Over few
cells that takes as long as the products themselves (`undertow bench backends`); packed once, it takes memory instead:
that of the weights again.
"""

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from undertow.nn.adaptable import Conv2d, Linear, Slots
from undertow.nn.matmul import is_inference_on_cpu
from undertow.processor import has_bfloat16
from undertow.shapes import FeatureMap

LINEAR_ROWS = 256
"""For which weights of linear layers are packed; what is packed for one row alone is slower with more."""

ORDERS = 2
"""Of the weight of a convolution that are kept at a time."""

Network = TypeVar("Network", bound=nn.Module)


class PackedLinear(Linear):
    """A linear layer that shares weight, bias and slots with another, and packs the weight at its first product, which
    is right for any number of rows."""

    packed: Tensor | None = None

    @classmethod
    def of(cls, layer: Linear) -> "PackedLinear":
        has_bias = "bias" in dict(layer.named_parameters(recurse=False))
        with torch.device("meta"):
            made = cls(layer.in_features, layer.out_features, bias=has_bias)
        made.weight, made.bias, made.slots = layer.weight, layer.bias, layer.slots
        return made

    def product(self, x: Tensor) -> Tensor:
        if not (is_inference_on_cpu(x) and x.dtype == self.weight.dtype):
            return super().product(x)
        if self.packed is None:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight, LINEAR_ROWS)
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


class PackedConv2d(Conv2d):
    """A convolution that shares weight, bias and slots with another, and packs the weight for the sizes of its input.

    Which order oneDNN wants depends on the size, and weights in another one cost many times what packing saves. Most
    layers have one order for all sizes; of those with more, the weights of `ORDERS` are kept.
    """

    packed: dict[int, Tensor]
    """By order."""
    orders: dict[torch.Size, int]
    """By size of the input."""

    @classmethod
    def of(cls, layer: Conv2d) -> "PackedConv2d":
        with torch.device("meta"):
            made = cls(
                layer.in_channels,
                layer.out_channels,
                layer.kernel_size[0],
                stride=layer.stride[0],
                padding=int(layer.padding[0]),
            )
        made.weight, made.bias, made.slots = layer.weight, layer.bias, layer.slots
        made.packed, made.orders = {}, {}
        return made

    def product(self, x: FeatureMap) -> Tensor:
        if not (is_inference_on_cpu(x) and x.dtype == self.weight.dtype):
            return super().product(x)
        how = (self.padding, self.stride, self.dilation, self.groups)
        order = self.orders.get(x.shape)
        if order not in self.packed:
            order = self._pack(x.shape, how)
        return torch.ops.mkldnn._convolution_pointwise(x, self.packed[order], self.bias, *how, "none", [], "")

    def _pack(self, size: torch.Size, how: tuple[Any, ...]) -> int:
        """The order for inputs of this size, after what is packed in it is there."""
        found = torch.ops.mkldnn._reorder_convolution_weight(self.weight.contiguous(), *how, list(size))
        order = self.orders[size] = hash(torch.ops.mkldnn._get_mkldnn_serialized_md(found).numpy().tobytes())
        if order not in self.packed and len(self.packed) == ORDERS:
            del self.packed[next(iter(self.packed))]  # the oldest
        self.packed[order] = found
        return order


def can_pack(weight: Tensor) -> bool:
    """Whether oneDNN multiplies weights of this type here."""
    kind = weight.dtype
    return weight.device.type == "cpu" and (kind == torch.float32 or (kind == torch.bfloat16 and has_bfloat16()))


def packed(network: Network) -> Network:
    """A copy of a network that shares all tensors and slots with it, with packed weights in its linear layers and
    convolutions. The weights must not change afterwards. Hooks stay with the network."""
    shared: dict[int, object] = {id(one): one for one in (*network.parameters(), *network.buffers())}
    shared |= {id(one): one for one in network.modules() if isinstance(one, Slots)}
    made = copy.deepcopy(network, shared)  # pyright: ignore[reportArgumentType]  copies by id, of any kind
    for module in list(made.modules()):
        for hooks in ("_forward_hooks", "_forward_pre_hooks"):
            vars(module)[hooks].clear()
        for name, child in list(module.named_children()):
            if type(child) is Linear:
                setattr(module, name, PackedLinear.of(child))
            elif type(child) is Conv2d:
                setattr(module, name, PackedConv2d.of(child))
    return made
