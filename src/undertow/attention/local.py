"""Attention to what is near, for maps of many cells: approximate, and never chosen unless it is asked for by name."""

import torch

from undertow.attention.sdpa import sdpa_attention
from undertow.shapes import AttentionMask, Keys, Queries

BLOCK = 1024
"""Tokens of a block: 16 lines of a map 64 cells wide. 3 of them are attended to."""


def local_attention(
    query: Queries, key: Keys, value: Keys, mask: AttentionMask | None = None, *, block: int = BLOCK
) -> Queries:
    """Block-sparse self-attention: a block of queries attends to its own block of keys and its two neighbors.

    Tokens are the cells of a map, line by line, so that blocks are stripes of the picture. Approximate: what lies
    further away is not seen (the error is measured in docs/results/attention.md). Exact up to 2 blocks of tokens, and
    for attention to other keys than the queries' own (text, pictures).
    """
    tokens = query.shape[2]
    if key.shape[2] != tokens or tokens <= 2 * block:
        return sdpa_attention(query, key, value, mask)
    rows = None if mask is None else mask.expand(-1, -1, tokens, -1)

    def attend(start: int) -> Queries:
        end = min(start + block, tokens)
        near = slice(max(start - block, 0), min(end + block, tokens))
        part = None if rows is None else rows[:, :, start:end, near]
        return sdpa_attention(query[:, :, start:end], key[:, :, near], value[:, :, near], part)

    return torch.cat([attend(start) for start in range(0, tokens, block)], dim=2)
