"""Whole differences: weights and biases as they are after training, less what they were before."""

from dataclasses import dataclass

import torch

from undertow.adapters.lora.updates import AnyTensor, Kind, Shape, Update
from undertow.state_dicts import without_trailing_ones


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
