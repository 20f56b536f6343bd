"""Attention as plain matrix products over chunks of queries: memory linear in the number of keys."""

import torch

from undertow.attention.kernel import zero_empty_rows
from undertow.shapes import AttentionMask, Keys, Queries

CHUNK = 256
"""Queries at a time: scores of one chunk against 1,024 keys stay in a CPU's second-level cache."""


def chunked_attention(query: Queries, key: Keys, value: Keys, mask: AttentionMask | None = None) -> Queries:
    """Exact attention, `CHUNK` queries at a time, in the input's own type.

    On CPUs with bfloat16 matrix units this is faster than the fused kernel for short sequences. The softmax is computed
    in float32, but scores are stored in the input's type between the two products.
    """
    queries = (query * query.shape[-1] ** -0.5).split(CHUNK, dim=2)
    masks = [None] * len(queries) if mask is None else mask.expand(-1, -1, query.shape[2], -1).split(CHUNK, dim=2)
    output = torch.cat([_attend(chunk, key, value, m) for chunk, m in zip(queries, masks, strict=True)], dim=2)
    return output if mask is None else zero_empty_rows(output, mask)


def _attend(query: Queries, key: Keys, value: Keys, mask: AttentionMask | None) -> Queries:
    scores = query @ key.mT
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.softmax(-1) @ value
