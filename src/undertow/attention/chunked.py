"""Attention as plain matrix products over chunks of queries: memory linear in the number of keys."""

import torch
from jaxtyping import Float
from torch import Tensor

from undertow.attention.kernel import HALF, zero_empty_rows
from undertow.shapes import AttentionMask, Keys, Queries

CHUNK = 256
"""Queries at a time: scores of one chunk against 1,024 keys stay in a CPU's second-level cache."""


def chunked_attention(query: Queries, key: Keys, value: Keys, mask: AttentionMask | None = None) -> Queries:
    """Exact attention, `CHUNK` queries at a time, in the input's own type.

    On CPUs with bfloat16 matrix units this is faster than the fused kernel for short sequences. The softmax is computed
    in float32, but scores are stored in the input's type between the two products. So that little is lost there, keys
    of half precision lose their mean before: it makes large scores that the softmax does not see ("smooth K" of
    SageAttention, arXiv:2410.02367).
    """
    if query.dtype in HALF:
        key = (key - _mean(key, mask)).to(query.dtype)
    queries = (query * query.shape[-1] ** -0.5).split(CHUNK, dim=2)
    masks = [None] * len(queries) if mask is None else mask.expand(-1, -1, query.shape[2], -1).split(CHUNK, dim=2)
    output = torch.cat([_attend(chunk, key, value, m) for chunk, m in zip(queries, masks, strict=True)], dim=2)
    return output if mask is None else zero_empty_rows(output, mask)


def _mean(key: Keys, mask: AttentionMask | None) -> Float[Tensor, "batch heads 1 head_dim"]:
    """Of the keys that any query admits, in float32: others, such as padding, change nothing."""
    if mask is None:
        return key.mean(dim=2, keepdim=True, dtype=torch.float32)
    seen = mask.any(dim=2, keepdim=True).mT
    kept = key.to(torch.float32).masked_fill(~seen, 0)
    return kept.sum(dim=2, keepdim=True) / seen.sum(dim=2, keepdim=True).clamp(min=1)


def _attend(query: Queries, key: Keys, value: Keys, mask: AttentionMask | None) -> Queries:
    scores = query @ key.mT
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.softmax(-1) @ value
