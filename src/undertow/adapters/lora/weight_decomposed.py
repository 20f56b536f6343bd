"""DoRA: the direction of a weight is changed by another update, its length is learned apart (arXiv:2402.09353)."""

from dataclasses import dataclass

import torch

from undertow.adapters.lora.updates import AnyTensor, Kind, Shape, Update


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
