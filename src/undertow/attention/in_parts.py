"""Any kernel over parts of the queries, so that one which writes its scores out holds those of a part only."""

from functools import partial

import torch

from undertow.attention.kernel import AttentionKernel
from undertow.shapes import AttentionMask, Keys, Queries

PART = 256
"""Queries at a time."""


def in_parts(kernel: AttentionKernel) -> AttentionKernel:
    """`kernel`, `PART` queries at a time: exact, since every query attends by itself, and with the kernel's own
    arithmetic (float32 scores stay float32)."""
    return partial(_in_parts, kernel)


def _in_parts(
    kernel: AttentionKernel, query: Queries, key: Keys, value: Keys, mask: AttentionMask | None = None
) -> Queries:
    if query.shape[2] <= PART:
        return kernel(query, key, value, mask)
    parts = query.split(PART, dim=2)
    masks = [mask] * len(parts) if mask is None or mask.shape[2] == 1 else mask.split(PART, dim=2)
    return torch.cat([kernel(part, key, value, m) for part, m in zip(parts, masks, strict=True)], dim=2)
