"""LoRA (arXiv:2106.09685) and LoCon, its form for convolutions."""

from dataclasses import dataclass

from undertow.adapters.lora.updates import (
    AnyTensor,
    Kind,
    Matrix,
    MatrixUpdate,
    Product,
    flat,
    product_shape,
    tucker,
    tucker_shape,
)


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
