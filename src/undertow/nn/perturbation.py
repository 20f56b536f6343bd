"""Perturbed self-attention for chosen rows of a batch, for guidance away from the perturbed prediction."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from undertow.shapes import Heads, Sequence

INFINITE_BLUR = 9999.0
"""Above it a blur counts as infinite, as in the authors' code: their interfaces offer 9999999 for it."""


@dataclass(frozen=True, kw_only=True)
class PerturbedRows:
    """The perturbation of one self-attention, per row; a field that is `None` is not in the graph.

    identity: True where every cell attends to itself only. blur: standard deviation, in cells, of the Gaussian applied
    to the queries; 0 leaves them unchanged, infinity (above `INFINITE_BLUR`) replaces them by their mean. Rows with
    neither stay bit-identical.
    """

    identity: Bool[Tensor, "batch"] | None = None
    blur: Float[Tensor, "batch"] | None = None


def keep_own_values(output: Heads, value: Heads, identity: Bool[Tensor, "batch"]) -> Heads:
    """The attention's output, replaced by the values themselves for rows with `identity`, as if the attention map were
    the identity (PAG, arXiv:2403.17377)."""
    return torch.where(~identity[:, None, None, None], output, value)


def blur_queries(query: Sequence, sigma: Float[Tensor, "batch"], height: int) -> Sequence:
    """Queries blurred by a Gaussian over the cells of their feature map (SEG, arXiv:2408.00760).

    As in the authors' code, the kernel is cut off at 3 sigma or at the size of the map, and the map is reflected at its
    edges. The blur is two matrix products, one per axis, so that sigma is a value and determines no shape.
    """
    cells = query.float().unflatten(1, (height, -1))
    down, across = (_blur_matrix(sigma.float(), size) for size in cells.shape[1:3])
    blurred = torch.einsum("bij,bjkd,blk->bild", down, cells, across).flatten(1, 2).to(query.dtype)
    # The first of two gives the result its memory layout: attention then runs as it would without.
    return torch.where((sigma == 0)[:, None, None], query, blurred)


def _blur_matrix(sigma: Float[Tensor, "batch"], size: int) -> Float[Tensor, "batch size size"]:
    """Row i holds the weights with which the cells of a line enter cell i."""
    reach = size // 2
    offsets = torch.arange(-reach, reach + 1, device=sigma.device)
    spread = torch.where(sigma > 0, sigma, 1.0)[:, None]
    inside = offsets.abs() <= torch.floor(torch.ceil(6 * spread) / 2)
    weights = torch.exp(-0.5 * (offsets / spread) ** 2) * inside
    cells = torch.arange(size, device=sigma.device)
    sources = size - 1 - (size - 1 - (cells[:, None] + offsets).abs()).abs()
    places = (sources[:, :, None] == cells).to(weights.dtype)
    matrix = torch.einsum("bo,ios->bis", weights / weights.sum(1, keepdim=True), places)
    return torch.where((sigma > INFINITE_BLUR)[:, None, None], 1 / size, matrix)
