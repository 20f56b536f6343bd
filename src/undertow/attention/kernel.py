"""The interface of attention kernels, and how each declares what it supports."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Protocol, runtime_checkable

import torch

from undertow.shapes import AttentionMask, Keys, Queries

HALF = (torch.float16, torch.bfloat16)


@runtime_checkable
class AttentionKernel(Protocol):
    """softmax(query keyᵀ / sqrt(head_dim)) value (arXiv:1706.03762, Eq. 1).

    A query whose mask admits no key yields zeros, never NaN (trap T9).
    """

    def __call__(self, query: Queries, key: Keys, value: Keys, mask: AttentionMask | None = None) -> Queries: ...


@dataclass(frozen=True, kw_only=True)
class Requirements:
    """What one attention call requires, known from shapes and types alone. float32_logits: scores must stay in float32.
    imitated: the device has no instructions for `dtype` (`undertow.processor`). amx: it multiplies `dtype` in tiles.
    gradient: a backward pass follows."""

    device: str
    dtype: torch.dtype
    queries: int
    keys: int
    rows: int = 1
    heads: int = 1
    head_dim: int = 64
    masked: bool = False
    float32_logits: bool = False
    imitated: bool = False
    amx: bool = False
    gradient: bool = False

    @property
    def scores(self) -> int:
        """Elements of the whole score matrix."""
        return self.rows * self.heads * self.queries * self.keys

    def tokens_bytes(self, tokens: int, itemsize: int | None = None) -> int:
        """Bytes of queries, or of keys, in the call's own type or in one of `itemsize` bytes."""
        size = self.dtype.itemsize if itemsize is None else itemsize
        return self.rows * self.heads * tokens * self.head_dim * size


@dataclass(frozen=True, kw_only=True)
class KernelEntry:
    """A kernel and its capabilities.

    float32_logits: scores are kept in float32 whatever the input's type. scratch_bytes: what a call allocates at most
    beside its inputs and its output, without gradients. devices: on which it runs; `None` for all. half_only: those on
    which it computes in half precision alone. unmasked: those on which it takes no masks. package: that must be
    installed. exact: it computes the formula; a kernel that does not is never chosen by itself.
    """

    name: str
    kernel: AttentionKernel
    float32_logits: bool
    scratch_bytes: Callable[[Requirements], int]
    devices: tuple[str, ...] | None = None
    half_only: tuple[str, ...] = ()
    unmasked: tuple[str, ...] = ()
    package: str | None = None
    exact: bool = True

    def lacks(self, requirements: Requirements) -> str | None:
        """Why the kernel cannot serve this call; `None` when it can."""
        if self.devices is not None and requirements.device not in self.devices:
            return f"it runs on {' and '.join(self.devices)} only"
        if requirements.device in self.half_only and requirements.dtype not in HALF:
            return f"on {requirements.device} it computes in half precision only"
        if requirements.masked and requirements.device in self.unmasked:
            return f"on {requirements.device} it takes no masks"
        if requirements.float32_logits and not self.float32_logits:
            return "the model asks for float32 scores, which it does not keep"
        if self.package is not None and find_spec(self.package) is None:
            return f"{self.package} is not installed"
        return None


def zero_empty_rows(output: Queries, mask: AttentionMask) -> Queries:
    """`output`, with zeros for queries that may attend to no key."""
    return torch.where(mask.any(-1, keepdim=True), output, 0.0)
