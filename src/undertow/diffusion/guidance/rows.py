"""Numbers taken from whole pictures, each picture by itself.

A reduction over a batch may sum in another order than over one row, so each row is reduced alone: a picture is the same
bit for bit in whatever company (G4).
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

PerRow = Float[Tensor, "batch ..."]


def for_each_row(statistic: Callable[..., Tensor], *rows: PerRow) -> PerRow:
    """`statistic` of each row of the tensors, shaped to multiply them: [batch, 1, 1, ...]."""
    values = torch.stack([statistic(*row) for row in zip(*rows, strict=True)])
    return values.reshape(-1, *[1] * (rows[0].ndim - 1))


def deviation(rows: PerRow) -> PerRow:
    """Standard deviation of each row, with n - 1."""
    return for_each_row(torch.std, rows)


def norm(rows: PerRow) -> PerRow:
    """Euclidean length of each row."""
    return for_each_row(torch.linalg.vector_norm, rows)


def dot(left: PerRow, right: PerRow) -> PerRow:
    """Scalar product of each row of `left` with that of `right`."""
    return for_each_row(lambda a, b: (a * b).sum(), left, right)
