"""The interface of attention kernels, and how each declares what it supports."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from undertow.shapes import AttentionMask, Keys, Queries


@runtime_checkable
class AttentionKernel(Protocol):
    """softmax(query keyᵀ / sqrt(head_dim)) value (arXiv:1706.03762, Eq. 1).

    A query whose mask admits no key yields zeros, never NaN (trap T9).
    """

    def __call__(self, query: Queries, key: Keys, value: Keys, mask: AttentionMask | None = None) -> Queries: ...


@dataclass(frozen=True, kw_only=True)
class Requirements:
    """What one attention call requires, known from shapes and types alone. float32_logits: scores must stay in float32.
    imitated: the device has no instructions for `dtype` (`undertow.processor`)."""

    device: str
    dtype: torch.dtype
    queries: int
    keys: int
    float32_logits: bool = False
    imitated: bool = False


@dataclass(frozen=True, kw_only=True)
class KernelEntry:
    """A kernel and its capabilities. float32_logits: scores are kept in float32 whatever the input's type."""

    name: str
    kernel: AttentionKernel
    float32_logits: bool


def zero_empty_rows(output: Queries, mask: AttentionMask) -> Queries:
    """`output`, with zeros for queries that may attend to no key."""
    return torch.where(mask.any(-1, keepdim=True), output, 0.0)
