"""Updates whose change is made of the weight itself: GLoRA (arXiv:2306.07967), IA3 (arXiv:2205.05638), DoRA
(arXiv:2402.09353), OFT and BOFT (arXiv:2306.07280; arXiv:2311.06243)."""

from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

from undertow.adapters.lora.updates import (
    AnyTensor,
    Kind,
    Matrix,
    Shape,
    Update,
    flat,
    product_shape,
    tucker,
    tucker_shape,
    vector_fits,
)


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


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightDecomposed(Update):
    """`W' = m · V / ‖V‖` with `V = W + change of inner` (Eq. 5).

    magnitude: m, one number per output or per input, in any shape. over_inputs: the norm is taken of each column of V,
    over outputs and kernel, as LyCORIS did until 2025; else of each row. inner: LoRA, LoHa or LoKr.
    """

    inner: Update
    magnitude: AnyTensor
    over_inputs: bool = False

    @property
    def kind(self) -> Kind:
        return "dora"

    @property
    def rank(self) -> int | None:
        return self.inner.rank

    @property
    def additive(self) -> bool:
        return False

    def fits(self, shape: Shape) -> bool:
        return self.inner.fits(shape) and self.magnitude.numel() == shape[1 if self.over_inputs else 0]

    def change(self, base: AnyTensor) -> AnyTensor:
        whole = base.float()
        turned = whole + self.inner.change(base)
        kept = 1 if self.over_inputs else 0
        others = [dim for dim in range(base.ndim) if dim != kept]
        length = torch.linalg.vector_norm(turned, dim=others, keepdim=True)
        # A row of zeros has no direction; LyCORIS and ours keep it zero.
        length = length + torch.finfo(torch.float32).eps
        return turned * (self.magnitude.float().reshape(length.shape) / length) - whole


TINY = 1e-8
"""LyCORIS adds it to the norm that the constraint is compared with."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Orthogonal(Update):
    """`W' = rescale · R W`, where R has one rotation per block of outputs, the Cayley transform of `blocks`.

    blocks: OFT's [count, size, size], or BOFT's [stages, count, size, size], where every stage shuffles the outputs
    (a butterfly) so that blocks mix. constraint: the largest norm of the skew-symmetric matrices; 0 is none.
    rescale: one factor per output.
    """

    blocks: AnyTensor
    constraint: float = 0.0
    rescale: AnyTensor | None = None

    @property
    def kind(self) -> Kind:
        return "boft" if self.blocks.ndim == 4 else "oft"

    @property
    def rank(self) -> int | None:
        return self.blocks.shape[-1]

    @property
    def additive(self) -> bool:
        return False

    def fits(self, shape: Shape) -> bool:
        if len(shape) < 2 or self.blocks.ndim not in (3, 4):
            return False
        count, size, columns = self.blocks.shape[-3:]
        if size != columns or count * size != shape[0] or not vector_fits(self.rescale, shape[0]):
            return False
        # A stage of a butterfly shuffles groups of `2 ** stage` blocks.
        return self.kind == "oft" or (size % 2 == 0 and count % 2 ** (self.blocks.shape[0] - 1) == 0)

    def change(self, base: AnyTensor) -> AnyTensor:
        rotations = self._rotations()
        weight = flat(base)
        if rotations.ndim == 3:
            rotated = _rotate(rotations.mT, weight)
        else:
            rotated = weight
            for stage, rotation in enumerate(rotations):
                rotated = _rotate_shuffled(rotation, rotated, 2**stage)
        if self.rescale is not None:
            rotated = rotated * self.rescale.float().reshape(-1, 1)
        return (rotated - weight).reshape(base.shape)

    def _rotations(self) -> Float[Tensor, "*stages count size size"]:
        """Cayley: `(I + Q)(I - Q)⁻¹` is orthogonal for a skew-symmetric Q."""
        blocks = self.blocks.float()
        skew = blocks - blocks.mT
        norm = torch.linalg.vector_norm(skew) + TINY
        if self.constraint > 0 and norm > self.constraint:
            skew = skew * self.constraint / norm
        identity = torch.eye(blocks.shape[-1], device=blocks.device)
        return (identity + skew) @ torch.linalg.inv(identity - skew)


def _rotate(rotations: Float[Tensor, "count size size"], weight: Matrix) -> Matrix:
    return (rotations @ weight.unflatten(0, rotations.shape[:2])).flatten(0, 1)


def _rotate_shuffled(rotations: Float[Tensor, "count size size"], weight: Matrix, stride: int) -> Matrix:
    """One stage of the butterfly: outputs `stride` half blocks apart meet in a block (arXiv:2311.06243, section 4)."""
    half = stride * (rotations.shape[-1] // 2)
    shuffled = weight.unflatten(0, (-1, 2, half)).transpose(1, 2).flatten(0, 2)
    return _rotate(rotations, shuffled).unflatten(0, (-1, half, 2)).transpose(1, 2).flatten(0, 2)
