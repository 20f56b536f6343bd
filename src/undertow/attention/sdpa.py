"""PyTorch's fused attention (flash, memory-efficient or cuDNN, whichever PyTorch picks)."""

import torch.nn.functional as F

from undertow.attention.kernel import zero_empty_rows
from undertow.shapes import AttentionMask, Keys, Queries


def sdpa_attention(query: Queries, key: Keys, value: Keys, mask: AttentionMask | None = None) -> Queries:
    """`torch.nn.functional.scaled_dot_product_attention`.

    A row that may attend to no key attends to all of them and is zeroed afterwards, because what the call returns for
    such a row depends on the fused kernel that PyTorch picks. A finite bias in place of the boolean mask would not hide
    masked keys whose scores exceed it, which happens in float16.
    """
    if mask is None:
        return F.scaled_dot_product_attention(query, key, value)
    empty = ~mask.any(-1, keepdim=True)
    return zero_empty_rows(F.scaled_dot_product_attention(query, key, value, attn_mask=mask | empty), mask)
