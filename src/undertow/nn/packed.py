"""Layers whose weights are packed once, as oneDNN multiplies them.

PyTorch's kernels bring the weights of a product or a convolution into an order of their own at every call. Over few
cells that takes as long as the products themselves (`undertow bench backends`); packed once, it takes memory instead:
that of the weights again.
"""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from undertow.nn.adaptable import Conv2d, Linear, Slots
from undertow.nn.matmul import is_inference_on_cpu
from undertow.processor import has_bfloat16
from undertow.shapes import FeatureMap

Network = TypeVar("Network", bound=nn.Module)


class PackedLinear(Linear):
    """A linear layer that shares weight, bias and slots with another, and packs the weight at its first product."""

    packed: Tensor | None = None

    @classmethod
    def of(cls, layer: Linear) -> "PackedLinear":
        with torch.device("meta"):
            made = cls(layer.in_features, layer.out_features, bias=layer.bias is not None)
        made.weight, made.bias, made.slots = layer.weight, layer.bias, layer.slots
        return made

    def product(self, x: Tensor) -> Tensor:
        if not (is_inference_on_cpu(x) and x.dtype == self.weight.dtype):
            return super().product(x)
        if self.packed is None:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight, x.numel() // x.shape[-1])
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


class PackedConv2d(Conv2d):
    """A convolution that shares weight, bias and slots with another, and packs the weight when it is first called."""

    packed: Tensor | None = None

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
        return made

    def product(self, x: FeatureMap) -> Tensor:
        if not (is_inference_on_cpu(x) and x.dtype == self.weight.dtype):
            return super().product(x)
        how = (self.padding, self.stride, self.dilation, self.groups)
        if self.packed is None:
            self.packed = torch.ops.mkldnn._reorder_convolution_weight(self.weight.contiguous(), *how, list(x.shape))
        return torch.ops.mkldnn._convolution_pointwise(x, self.packed, self.bias, *how, "none", [], "")


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
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            hooks.clear()
        for name, child in list(module.named_children()):
            if type(child) is Linear:
                setattr(module, name, PackedLinear.of(child))
            elif type(child) is Conv2d:
                setattr(module, name, PackedConv2d.of(child))
    return made
