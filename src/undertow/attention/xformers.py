"""xformers' memory-efficient attention, on devices that its kernels support (CUDA)."""

from importlib import import_module

import torch

from undertow.attention.kernel import zero_empty_rows
from undertow.extras import optional_package
from undertow.shapes import AttentionMask, Keys, Queries


def xformers_attention(query: Queries, key: Keys, value: Keys, mask: AttentionMask | None = None) -> Queries:
    """`xformers.ops.memory_efficient_attention` (https://facebookresearch.github.io/xformers/components/ops.html).

    Errors: `MissingDependency`.
    """
    with optional_package("xformers", "xformers"):
        operations = import_module("xformers.ops")
    inputs = [x.transpose(1, 2) for x in (query, key, value)]  # [batch, tokens, heads, head_dim]
    if mask is None:
        return operations.memory_efficient_attention(*inputs).transpose(1, 2)
    shape = (*query.shape[:3], key.shape[2])
    seen = (mask | ~mask.any(-1, keepdim=True)).expand(shape)
    bias = torch.zeros(shape, dtype=query.dtype, device=query.device).masked_fill(~seen, float("-inf"))
    return zero_empty_rows(operations.memory_efficient_attention(*inputs, attn_bias=bias).transpose(1, 2), mask)
