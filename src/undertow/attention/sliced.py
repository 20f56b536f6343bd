"""Attention one head of one row at a time (R52): memory of a single score matrix."""

import torch

from undertow.attention.math import math_attention
from undertow.shapes import AttentionMask, Keys, Queries


def sliced_attention(query: Queries, key: Keys, value: Keys, mask: AttentionMask | None = None) -> Queries:
    """Exact attention, scores in float32, written out for a slice of one row and one head after the other.

    What diffusers calls `enable_attention_slicing("max")`. The scores still grow with queries x keys; where that is too
    much, the chunked kernel bounds them.
    """
    rows, heads = query.shape[:2]
    masks = None if mask is None else mask.expand(rows, heads, -1, -1)

    def slice_at(row: int, head: int) -> Queries:
        place = (slice(row, row + 1), slice(head, head + 1))
        return math_attention(query[place], key[place], value[place], None if masks is None else masks[place])

    return torch.cat([torch.cat([slice_at(row, head) for head in range(heads)], 1) for row in range(rows)])
