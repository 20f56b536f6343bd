"""Kinds whose change is made of the weight itself: GLoRA (arXiv:2306.07967) and IA3 (arXiv:2205.05638)."""

from dataclasses import dataclass
from math import prod

import torch

from undertow.adapters.lora.updates import AnyTensor, Kind, Shape, Update, flat, product_shape, tucker, tucker_shape


@dataclass(frozen=True, kw_only=True, eq=False)
class GeneralizedLora(Update):
    """GLoRA: `W' = W + scale · (W a1 a2 + b1 b2)`, the products over input channels.

    a1 [inputs, rank], a2 [rank, inputs], b1 [outputs, rank], b2 [rank, inputs, (kh, kw)]. bm [rank, rank, kh, kw]: the
    kernel of a Tucker form, with b2 a 1x1 convolution.
    """

    a1: AnyTensor
    a2: AnyTensor
    b1: AnyTensor
    b2: AnyTensor
    bm: AnyTensor | None = None
    scale: float = 1.0

    @property
    def kind(self) -> Kind:
        return "glora"

    @property
    def rank(self) -> int | None:
        return self.a2.shape[0]

    @property
    def additive(self) -> bool:
        return False

    def fits(self, shape: Shape) -> bool:
        if self.bm is None:
            added = product_shape(self.b1, self.b2)
        else:
            added = tucker_shape(self.bm, self.b1.transpose(0, 1), self.b2)
        return (
            len(shape) > 1
            and product_shape(self.a1, self.a2) == (shape[1], shape[1])
            and added == (shape[0], prod(shape[1:]))
        )

    def change(self, base: AnyTensor) -> AnyTensor:
        mixed = torch.einsum("oi...,ir,rj->oj...", base.float(), flat(self.a1), flat(self.a2))
        if self.bm is None:
            added = flat(self.b1) @ flat(self.b2)
        else:
            added = tucker(self.bm, flat(self.b1).T, flat(self.b2)).matrix()
        return self.scale * (mixed + added.reshape(base.shape))


@dataclass(frozen=True, kw_only=True, eq=False)
class ChannelScale(Update):
    """IA3: `W' = W · (1 + factor)`, one factor per output, or per input with `on_input`. The bias is not scaled."""

    factor: AnyTensor
    on_input: bool = False

    @property
    def kind(self) -> Kind:
        return "ia3"

    @property
    def additive(self) -> bool:
        return False

    def fits(self, shape: Shape) -> bool:
        return len(shape) > 1 and self.factor.numel() == shape[1 if self.on_input else 0]

    def change(self, base: AnyTensor) -> AnyTensor:
        channel = 1 if self.on_input else 0
        shape = [-1 if dim == channel else 1 for dim in range(base.ndim)]
        return base.float() * self.factor.float().reshape(shape)
