"""Attention written out, with scores and softmax in float32: the reference for the other kernels, and safe in half
precision."""

import torch

from undertow.attention.kernel import zero_empty_rows
from undertow.shapes import AttentionMask, Keys, Queries


def math_attention(query: Queries, key: Keys, value: Keys, mask: AttentionMask | None = None) -> Queries:
    """Computes the whole score matrix in float32 (float64 stays float64). The query is scaled before the product, so
    that scores cannot overflow in between."""
    compute = torch.promote_types(query.dtype, torch.float32)
    scores = (query.to(compute) * query.shape[-1] ** -0.5) @ key.to(compute).mT
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(compute).min)
    output = (scores.softmax(-1) @ value.to(compute)).to(query.dtype)
    return output if mask is None else zero_empty_rows(output, mask)
