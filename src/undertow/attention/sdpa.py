"""PyTorch's fused attention (flash, memory-efficient or cuDNN, whichever PyTorch picks)."""

import torch.nn.functional as F

from undertow.attention.kernel import zero_empty_rows
from undertow.shapes import AttentionMask, Keys, Queries


def sdpa_attention(query: Queries, key: Keys, value: Keys, mask: AttentionMask | None = None) -> Queries:
    """`torch.nn.functional.scaled_dot_product_attention`.

    A row without any key is let look at all of them and zeroed afterwards: what it gives by itself depends on the fused
    kernel that PyTorch picks. A finite bias in place of the mask would let masked keys return where scores exceed it,
    which they can in float16.
    """
    if mask is None:
        return F.scaled_dot_product_attention(query, key, value)
    empty = ~mask.any(-1, keepdim=True)
    return zero_empty_rows(F.scaled_dot_product_attention(query, key, value, attn_mask=mask | empty), mask)
