"""Layers whose weights are packed once, as oneDNN multiplies them.

PyTorch's kernels bring the weights of a product or a convolution into an order of their own at every call. Over few
cells that takes as long as the products themselves (`undertow bench backends`); packed once, it takes memory instead:
that of the weights again.
"""

import copy
from collections import OrderedDict
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from undertow.nn.adaptable import Conv2d, Linear, Slots
from undertow.nn.matmul import is_inference_on_cpu
from undertow.processor import has_bfloat16
from undertow.shapes import FeatureMap

LINEAR_ROWS = 256
"""For which weights of linear layers are packed; what is packed for one row alone is slower with more."""
PATIENCE = 8
"""Calls in another order, one after the other, after which a convolution's weight is packed in that one."""

Network = TypeVar("Network", bound=nn.Module)


class Kept:
    """A packed weight. of: the weight as it was then, by its place and by how often it was changed. order: in which a
    convolution has it. orders: that oneDNN wants, by size of the input. others: calls since the last one in `order`.
    Copies of a layer pack for themselves."""

    def __init__(self) -> None:
        self.packed: Tensor | None = None
        self.of: tuple[int, int] | None = None
        self.order: int | None = None
        self.orders: dict[torch.Size, int] = {}
        self.others = 0

    def __deepcopy__(self, memo: dict[int, object]) -> "Kept":
        return Kept()


class PackedLinear(Linear):
    """A linear layer that shares weight, bias and slots with another, and packs the weight at its first product, which
    is right for any number of rows."""

    kept: Kept

    @classmethod
    def of(cls, layer: Linear) -> "PackedLinear":
        has_bias = "bias" in dict(layer.named_parameters(recurse=False))
        with torch.device("meta"):
            made = cls(layer.in_features, layer.out_features, bias=has_bias)
        made.weight, made.bias, made.slots, made.kept = layer.weight, layer.bias, layer.slots, Kept()
        return made

    def product(self, x: Tensor) -> Tensor:
        if not _multiplies(x, self.weight):
            return super().product(x)
        kept, now = self.kept, _stamp(self.weight)
        packed = kept.packed
        if packed is None or kept.of != now:
            packed = kept.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight, LINEAR_ROWS)
            kept.of = now
        return torch.ops.mkldnn._linear_pointwise(x, packed, self.bias, "none", [], "")


class PackedConv2d(Conv2d):
    """A convolution that shares weight, bias and slots with another, and packs the weight for the sizes of its input.

    Which order oneDNN wants depends on the size, and weights that are packed in another cost many times what packing
    saves. Most layers have one order for all sizes. Of those with more, one is kept; inputs of other sizes are
    multiplied by the plain weight, to the same bits, until `PATIENCE` of them came one after the other.
    """

    kept: Kept

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
        made.weight, made.bias, made.slots, made.kept = layer.weight, layer.bias, layer.slots, Kept()
        return made

    def product(self, x: FeatureMap) -> Tensor:
        if not _multiplies(x, self.weight):
            return super().product(x)
        how = (self.padding, self.stride, self.dilation, self.groups)
        weight = self._weight_for(x.shape, how)
        return torch.ops.mkldnn._convolution_pointwise(x, weight, self.bias, *how, "none", [], "")

    def _weight_for(self, size: torch.Size, how: tuple[Any, ...]) -> Tensor:
        """The packed weight where its order is that of such inputs."""
        kept, now = self.kept, _stamp(self.weight)
        packed, order = kept.packed, kept.orders.get(size)
        if packed is not None and kept.of == now:
            if order == kept.order:
                kept.others = 0
                return packed
            if order is not None and kept.others < PATIENCE:
                kept.others += 1
                return self.weight
        packed = torch.ops.mkldnn._reorder_convolution_weight(self.weight.contiguous(), *how, list(size))
        order = kept.orders[size] = hash(torch.ops.mkldnn._get_mkldnn_serialized_md(packed).numpy().tobytes())
        if kept.packed is not None and kept.of == now and order != kept.order and kept.others < PATIENCE:
            kept.others += 1
            return packed
        kept.packed, kept.of, kept.order, kept.others = packed, now, order, 0
        return packed


def can_pack(weight: Tensor) -> bool:
    """Whether oneDNN multiplies weights of this type here."""
    kind = weight.dtype
    return weight.device.type == "cpu" and (kind == torch.float32 or (kind == torch.bfloat16 and has_bfloat16()))


def packs_anything(network: nn.Module) -> bool:
    """Whether a network has a layer whose weight can be packed."""
    layers = (one for one in network.modules() if isinstance(one, Linear | Conv2d) and type(one) in (Linear, Conv2d))
    return any(can_pack(one.weight) for one in layers)


def packed(network: Network) -> Network:
    """A copy of a network that shares all tensors and slots with it, with packed weights in its linear layers and
    convolutions. Hooks stay with the network."""
    shared: dict[int, object] = {id(one): one for one in (*network.parameters(), *network.buffers())}
    for module in network.modules():
        if isinstance(module, Slots):
            shared[id(module)] = module
        for name in ("_forward_hooks", "_forward_pre_hooks"):
            shared[id(vars(module)[name])] = OrderedDict[int, Any]()
    made = copy.deepcopy(network, shared)  # pyright: ignore[reportArgumentType]  copies by id, of any kind
    for module in list(made.modules()):
        for name, child in list(module.named_children()):
            if type(child) is Linear:
                setattr(module, name, PackedLinear.of(child))
            elif type(child) is Conv2d:
                setattr(module, name, PackedConv2d.of(child))
    return made


def _multiplies(x: Tensor, weight: Tensor) -> bool:
    return is_inference_on_cpu(x) and x.dtype == weight.dtype


def _stamp(weight: Tensor) -> tuple[int, int]:
    """Another one once the weight was changed, or is another."""
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version
