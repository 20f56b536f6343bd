"""First weights of layers that PyTorch fills with normal numbers.

Networks that are read from a file are built on the meta device first, where a weight has no numbers. PyTorch would
draw them all the same, and import its compiler to do so, which takes a second or two.
"""

import torch
from torch import Tensor, nn


class VectorTable(nn.Embedding):
    """PyTorch's Embedding, which is left unfilled on the meta device."""

    def reset_parameters(self) -> None:
        """Fills the weight; called by the constructor."""
        if not self.weight.is_meta:
            super().reset_parameters()


def normal(*shape: int, std: float) -> Tensor:
    """Normal numbers from torch's global generator; on the meta device none."""
    empty = torch.empty(shape)
    return empty if empty.is_meta else torch.randn(shape) * std
