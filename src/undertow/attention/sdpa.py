"""PyTorch's fused attention (flash, memory-efficient or cuDNN, whichever PyTorch picks)."""

import torch
import torch.nn.functional as F

from undertow.attention.kernel import zero_empty_rows
from undertow.shapes import AttentionMask, Keys, Queries


def sdpa_attention(query: Queries, key: Keys, value: Keys, mask: AttentionMask | None = None) -> Queries:
    """`torch.nn.functional.scaled_dot_product_attention`.

    The mask becomes a finite bias: with -inf, what an empty row gives depends on the fused kernel that PyTorch picks.
    """
    if mask is None:
        return F.scaled_dot_product_attention(query, key, value)
    bias = torch.zeros(mask.shape, dtype=query.dtype, device=query.device)
    bias = bias.masked_fill(~mask, torch.finfo(query.dtype).min)
    return zero_empty_rows(F.scaled_dot_product_attention(query, key, value, attn_mask=bias), mask)
