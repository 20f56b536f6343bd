"""Attention as plain matrix products over blocks of scores: memory linear in the number of keys."""

from itertools import repeat

import torch
from jaxtyping import Float
from torch import Tensor

from undertow.attention.kernel import HALF, zero_empty_rows
from undertow.shapes import AttentionMask, Keys, Queries

BLOCK = 2**21
"""Scores at a time: 4 MiB in half precision. Fewer make slow products; more leave the caches of a CPU, and their memory
is asked from the system anew for each block (benchmarks/attention.py)."""


def chunked_attention(query: Queries, key: Keys, value: Keys, mask: AttentionMask | None = None) -> Queries:
    """Exact attention, `BLOCK` scores at a time, in the input's own type.

    On CPUs with bfloat16 and no matrix units this is faster than the fused kernel. The softmax is computed in float32,
    but scores are stored in the input's type between the two products. So that little is lost there, keys of half
    precision lose their mean before: it makes large scores that the softmax does not see ("smooth K" of SageAttention,
    arXiv:2410.02367). In a graph without gradients several blocks are one operator.
    """
    if _scores(query, key) > BLOCK and torch.compiler.is_compiling() and not torch.is_grad_enabled():
        return opaque_chunked_attention(query, key, value, mask)
    if query.dtype in HALF:
        key = key - _mean(key, mask).to(key.dtype)  # near it is enough: whatever is taken away, weights stay the same
    seen = None if mask is None else mask.expand(*query.shape[:3], -1)
    output = _in_blocks(query * query.shape[-1] ** -0.5, key, value, seen)
    return output if mask is None else zero_empty_rows(output, mask)


@torch.library.custom_op("undertow::chunked_attention", mutates_args=())
def opaque_chunked_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """The same as a custom operator: a graph with all blocks would take minutes more to compile."""
    return chunked_attention(query, key, value, mask)


@opaque_chunked_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    del key, value, mask  # change no shape
    return query.new_empty(query.shape)


def _mean(key: Keys, mask: AttentionMask | None) -> Float[Tensor, "batch heads 1 head_dim"]:
    """Of the keys that any query admits, in float32: others, such as padding, change nothing."""
    if mask is None:
        return key.mean(dim=2, keepdim=True, dtype=torch.float32)
    seen = mask.any(dim=2, keepdim=True).mT
    kept = key.to(torch.float32).masked_fill(~seen, 0)
    return kept.sum(dim=2, keepdim=True) / seen.sum(dim=2, keepdim=True).clamp(min=1)


def _in_blocks(query: Queries, key: Keys, value: Keys, mask: AttentionMask | None, dim: int = 0) -> Queries:
    """Split into rows first (`dim` 0), rows into heads, heads into queries, as far as it takes."""
    if dim == 3 or _scores(query, key) <= BLOCK:
        return _attend(query, key, value, mask)
    size = max(1, BLOCK // (query.shape[dim + 1 : 3].numel() * key.shape[2]))
    keys = (repeat(key), repeat(value)) if dim == 2 else (key.split(size, dim), value.split(size, dim))
    masks = repeat(None) if mask is None else mask.split(size, dim)
    parts = zip(query.split(size, dim), *keys, masks, strict=False)
    return torch.cat([_in_blocks(*part, dim=dim + 1) for part in parts], dim)


def _scores(query: Queries, key: Keys) -> int:
    return query.shape[:3].numel() * key.shape[2]


def _attend(query: Queries, key: Keys, value: Keys, mask: AttentionMask | None) -> Queries:
    scores = query @ key.mT
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.softmax(-1) @ value
