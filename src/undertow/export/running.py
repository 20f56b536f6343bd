"""What an exported file is to whoever checks it: a function of tensors."""

from collections.abc import Callable, Sequence

from torch import Tensor

Run = Callable[[Sequence[Tensor]], list[Tensor]]
"""Inputs in the order of the part's, outputs in the order of theirs."""
