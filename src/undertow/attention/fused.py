"""PyTorch's fused attention by back end: flash, memory-efficient and cuDNN.

The operators are called by name. `torch.nn.attention.sdpa_kernel` would choose among them by switches of the whole
process, which every other thread then sees; and its call falls back to the written-out path without a word.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from undertow.attention.kernel import zero_empty_rows
from undertow.attention.padding import cut_head_dim, pad_head_dim
from undertow.shapes import AttentionMask, Keys, Queries

WIDTH = 8
"""Heads of CUDA's kernels are multiples of 8 wide: their tensor cores load 16 bytes at a time."""

BIAS_WIDTH = 16
"""The memory-efficient kernel loads biases in steps of 16."""

Bias = Float[Tensor, "batch #heads #queries keys"]


def flash_attention(query: Queries, key: Keys, value: Keys, mask: AttentionMask | None = None) -> Queries:
    """FlashAttention (arXiv:2307.08691): scores exist one tile at a time. On CUDA in half precision and without masks;
    on a CPU in every type. Errors: `RuntimeError` where PyTorch has no such kernel."""
    scale = query.shape[-1] ** -0.5
    if query.device.type == "cpu":
        bias = None if mask is None else _bias(query, mask)
        attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        output = attend(query, key, value, attn_mask=bias, scale=scale)[0]
        return output if mask is None else zero_empty_rows(output, mask)
    if mask is not None:
        raise RuntimeError("the flash kernel of this device takes no masks")
    padded = (pad_head_dim(x, WIDTH) for x in (query, key, value))
    output = torch.ops.aten._scaled_dot_product_flash_attention(*padded, scale=scale)[0]
    return cut_head_dim(output, query.shape[-1])


def efficient_attention(query: Queries, key: Keys, value: Keys, mask: AttentionMask | None = None) -> Queries:
    """Memory-efficient attention (arXiv:2112.05682) in CUTLASS, on CUDA. Errors: `RuntimeError` elsewhere."""
    bias = None
    if mask is not None:
        lacking = -key.shape[2] % BIAS_WIDTH
        aligned = torch.nn.functional.pad(_bias(query, mask), (0, lacking))[..., : key.shape[2]]
        bias = aligned.expand(*query.shape[:3], -1)
    padded = [pad_head_dim(x, WIDTH) for x in (query, key, value)]
    attend = torch.ops.aten._scaled_dot_product_efficient_attention
    output = attend(*padded, bias, _needs_gradients(query, key, value), scale=query.shape[-1] ** -0.5)[0]
    output = cut_head_dim(output, query.shape[-1])
    return output if mask is None else zero_empty_rows(output, mask)


def cudnn_attention(query: Queries, key: Keys, value: Keys, mask: AttentionMask | None = None) -> Queries:
    """cuDNN's fused attention, on CUDA in half precision. Errors: `RuntimeError` elsewhere."""
    bias = None if mask is None else _bias(query, mask).expand(*query.shape[:3], -1)
    padded = [pad_head_dim(x, WIDTH) for x in (query, key, value)]
    attend = torch.ops.aten._scaled_dot_product_cudnn_attention
    output = attend(*padded, bias, _needs_gradients(query, key, value), scale=query.shape[-1] ** -0.5)[0]
    output = cut_head_dim(output, query.shape[-1])
    return output if mask is None else zero_empty_rows(output, mask)


def _bias(query: Queries, mask: AttentionMask) -> Bias:
    """0 where a query may attend and -inf elsewhere, in the query's type. A query that may attend to nothing attends to
    everything here, and its output is zeroed: kernels differ in what they return for rows of -inf alone."""
    seen = mask | ~mask.any(-1, keepdim=True)
    return torch.where(seen, query.new_zeros(()), query.new_full((), -torch.inf))


def _needs_gradients(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
