"""Updates that simply add up, since none depends on the weight: LoRA (arXiv:2106.09685) with LoCon, its form for
convolutions; LoHa and LoKr, Hadamard and Kronecker products of low-rank matrices (arXiv:2108.06098; arXiv:2309.14859,
3.2); whole differences."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from undertow.adapters.lora.updates import (
    AnyTensor,
    Kind,
    Matrix,
    MatrixUpdate,
    Product,
    Shape,
    Update,
    flat,
    product_shape,
    tucker,
    tucker_shape,
)
from undertow.state_dicts import without_trailing_ones


@dataclass(frozen=True, kw_only=True, eq=False)
class LowRank(MatrixUpdate):
    """`up @ down` (Eq. 3).

    down [rank, inputs, (kh, kw)], up [outputs, rank, (1, 1)]. mid [rank, rank, kh, kw]: LoCon's Tucker form, in which
    `down` is a 1x1 convolution and `mid` has the kernel.
    """

    down: AnyTensor
    up: AnyTensor
    mid: AnyTensor | None = None

    @property
    def kind(self) -> Kind:
        convolves = self.down.ndim > 2 and self.down.shape[2:].numel() > 1
        return "locon" if convolves or self.mid is not None else "lora"

    @property
    def rank(self) -> int | None:
        return self.down.shape[0]

    @property
    def factored_rank(self) -> int | None:
        return None if self.bias_change is not None else self.up.shape[1]

    def matrix_shape(self) -> tuple[int, int] | None:
        if self.mid is None:
            return product_shape(self.up, self.down)
        return tucker_shape(self.mid, self.up.transpose(0, 1), self.down)

    def matrix(self) -> Matrix:
        return self.product().matrix()

    def product(self) -> Product:
        if self.mid is None:
            return Product(left=flat(self.up), right=flat(self.down))
        return tucker(self.mid, flat(self.up).T, flat(self.down))


@dataclass(frozen=True, kw_only=True, eq=False)
class Difference(Update):
    """`W' = W + weight_change`, of any layer with a weight: `diff` of a linear layer or convolution, `w_norm` of a
    norm. weight_change: `None` where only the bias changes. norm: whether the file calls it a norm's."""

    weight_change: AnyTensor | None = None
    norm: bool = False

    @property
    def kind(self) -> Kind:
        return "norm" if self.norm else "full"

    def fits(self, shape: Shape) -> bool:
        if self.norm != (len(shape) == 1):
            return False
        return self.weight_change is None or without_trailing_ones(tuple(self.weight_change.shape)) == (
            without_trailing_ones(shape)
        )

    def change(self, base: AnyTensor) -> AnyTensor:
        if self.weight_change is None:
            return torch.zeros_like(base, dtype=torch.float32)
        return self.weight_change.float().reshape(base.shape)


@dataclass(frozen=True, kw_only=True, eq=False)
class Hadamard(MatrixUpdate):
    """LoHa: `(w1_a w1_b) ⊙ (w2_a w2_b)`.

    a [outputs, rank], b [rank, inputs]. With Tucker cores t1 and t2 [rank, rank, kh, kw], a is [rank, outputs].
    """

    w1_a: AnyTensor
    w1_b: AnyTensor
    w2_a: AnyTensor
    w2_b: AnyTensor
    t1: AnyTensor | None = None
    t2: AnyTensor | None = None

    @property
    def kind(self) -> Kind:
        return "loha"

    @property
    def rank(self) -> int | None:
        return self.w1_b.shape[0]

    @property
    def factored_rank(self) -> int | None:
        return None if self.bias_change is not None else self.w1_b.shape[0] * self.w2_b.shape[0]

    def matrix_shape(self) -> tuple[int, int] | None:
        first, second = _shape(None, self.w1_a, self.w1_b, self.t1), _shape(None, self.w2_a, self.w2_b, self.t2)
        return first if first == second else None

    def matrix(self) -> Matrix:
        first, second = self._operands()
        return first.matrix() * second.matrix()

    def product(self) -> Product:
        """`(A B) ⊙ (C D) = (A ∗ C)(B ⋆ D)`: row-wise and column-wise Khatri-Rao products, rank r²."""
        first, second = self._operands()
        return Product(
            left=torch.einsum("or,os->ors", first.left, second.left).flatten(1),
            right=torch.einsum("ri,si->rsi", first.right, second.right).flatten(0, 1),
        )

    def _operands(self) -> tuple[Product, Product]:
        return _operand(self.w1_a, self.w1_b, self.t1), _operand(self.w2_a, self.w2_b, self.t2)


@dataclass(frozen=True, kw_only=True, eq=False)
class Kronecker(MatrixUpdate):
    """LoKr: `w1 ⊗ w2`, each a matrix (a kernel, for w2) or low-rank, `w_a w_b`.

    t2: Tucker core of w2, with w2_a [rank, outputs]. Where neither is low-rank, files have no use for alpha: `scale`
    is then 1 (PEFT's files excepted).
    """

    w1: AnyTensor | None = None
    w1_a: AnyTensor | None = None
    w1_b: AnyTensor | None = None
    w2: AnyTensor | None = None
    w2_a: AnyTensor | None = None
    w2_b: AnyTensor | None = None
    t2: AnyTensor | None = None

    @property
    def kind(self) -> Kind:
        return "lokr"

    @property
    def rank(self) -> int | None:
        for factor in (self.w2_b, self.w1_b):
            if factor is not None:
                return factor.shape[0]
        return None

    @property
    def factored_rank(self) -> int | None:
        if self.bias_change is not None or self.rank is None:
            return None
        return _rank(self.w1, self.w1_b) * _rank(self.w2, self.w2_b)

    def matrix_shape(self) -> tuple[int, int] | None:
        first = _shape(self.w1, self.w1_a, self.w1_b, None)
        second = _shape(self.w2, self.w2_a, self.w2_b, self.t2)
        return None if first is None or second is None else (first[0] * second[0], first[1] * second[1])

    def matrix(self) -> Matrix:
        return _kron(_whole(self.w1, self.w1_a, self.w1_b, None), _whole(self.w2, self.w2_a, self.w2_b, self.t2))

    def product(self) -> Product | None:
        """`(A B) ⊗ (C D) = (A ⊗ C)(B ⊗ D)`; a whole matrix is its own product with an identity on its shorter side."""
        if self.rank is None:
            return None
        first = _split(self.w1, self.w1_a, self.w1_b, None)
        second = _split(self.w2, self.w2_a, self.w2_b, self.t2)
        return Product(left=_kron(first.left, second.left), right=_kron(first.right, second.right))


def _kron(one: Float[Tensor, "rows columns"], other: Float[Tensor, "inner_rows inner_columns"]) -> Matrix:
    """torch.kron, which refuses some transposed views (torch 2.13: strides of sides of length 1)."""
    return torch.einsum("ij,kl->ikjl", one, other).flatten(2).flatten(0, 1)


def _operand(a: AnyTensor, b: AnyTensor, core: AnyTensor | None) -> Product:
    return Product(left=flat(a), right=flat(b)) if core is None else tucker(core, flat(a), flat(b))


def _rank(whole: AnyTensor | None, b: AnyTensor | None) -> int:
    if b is not None:
        return b.shape[0]
    assert whole is not None
    return min(whole.shape[0], whole[0].numel())


def _shape(
    whole: AnyTensor | None, a: AnyTensor | None, b: AnyTensor | None, core: AnyTensor | None
) -> tuple[int, int] | None:
    if whole is not None:
        return None if whole.ndim < 2 else (whole.shape[0], whole.shape[1:].numel())
    assert a is not None
    assert b is not None
    return product_shape(a, b) if core is None else tucker_shape(core, a, b)


def _whole(whole: AnyTensor | None, a: AnyTensor | None, b: AnyTensor | None, core: AnyTensor | None) -> Matrix:
    if whole is not None:
        return flat(whole)
    assert a is not None
    assert b is not None
    return _operand(a, b, core).matrix()


def _split(whole: AnyTensor | None, a: AnyTensor | None, b: AnyTensor | None, core: AnyTensor | None) -> Product:
    if whole is None:
        assert a is not None
        assert b is not None
        return _operand(a, b, core)
    matrix = flat(whole)
    identity = torch.eye(min(matrix.shape), device=matrix.device)
    wide = matrix.shape[0] <= matrix.shape[1]
    return Product(left=identity, right=matrix) if wide else Product(left=matrix, right=identity)
