"""Chooses the attention kernel for each call: a pure function of shapes that returns the kernel's name and the reason,
and kernels that apply the choice."""

from typing import NamedTuple

import torch

from undertow.attention.chunked import chunked_attention
from undertow.attention.kernel import AttentionKernel, KernelEntry, Requirements
from undertow.attention.math import math_attention
from undertow.attention.sdpa import sdpa_attention
from undertow.errors import InvalidInput
from undertow.processor import has_bfloat16
from undertow.shapes import AttentionMask, Keys, Queries

KERNELS = {
    entry.name: entry
    for entry in (
        KernelEntry(name="math", kernel=math_attention, float32_logits=True),
        KernelEntry(name="sdpa", kernel=sdpa_attention, float32_logits=True),
        KernelEntry(name="chunked", kernel=chunked_attention, float32_logits=False),
    )
}

CHUNKED_KEYS = 1024
"""In bfloat16, on CPUs that have it, the chunked kernel beats the fused one up to this many keys; on others it takes
twenty times as long (benchmarks/attention.py)."""


class Choice(NamedTuple):
    """A kernel's name, and the reason for choosing it."""

    name: str
    reason: str


def choose(requirements: Requirements) -> Choice:
    """The kernel that is expected to be fastest for this call, of those that meet its requirements."""
    short = requirements.keys <= CHUNKED_KEYS
    if requirements.device == "cpu" and requirements.dtype == torch.bfloat16 and short:
        if requirements.imitated:
            return Choice("sdpa", "bfloat16 that the CPU imitates: the fused kernel multiplies in float32")
        if not requirements.float32_logits:
            return Choice(
                "chunked", f"bfloat16 on CPU with at most {CHUNKED_KEYS} keys: matrix products beat the fusion"
            )
        return Choice("sdpa", "the model asks for float32 scores, which the chunked kernel does not keep")
    return Choice("sdpa", "fused: one pass, memory linear in the number of tokens, scores in float32")


def auto_attention(query: Queries, key: Keys, value: Keys, mask: AttentionMask | None = None) -> Queries:
    """Applies the kernel that `choose` names for these shapes."""
    return _choose_and_run(query, key, value, mask, float32_logits=False)


def auto_attention_float32(query: Queries, key: Keys, value: Keys, mask: AttentionMask | None = None) -> Queries:
    """The same, restricted to kernels that keep scores in float32 (SD2's `upcast_attention`)."""
    return _choose_and_run(query, key, value, mask, float32_logits=True)


def _choose_and_run(
    query: Queries, key: Keys, value: Keys, mask: AttentionMask | None, *, float32_logits: bool
) -> Queries:
    choice = choose(
        Requirements(
            device=query.device.type,
            dtype=query.dtype,
            queries=query.shape[2],
            keys=key.shape[2],
            float32_logits=float32_logits,
            imitated=query.dtype == torch.bfloat16 and not has_bfloat16(),
        )
    )
    return KERNELS[choice.name].kernel(query, key, value, mask)


def kernel_named(name: str, *, float32_logits: bool = False) -> AttentionKernel:
    """The kernel called `name`: "auto" or a key of `KERNELS`. Errors: `InvalidInput` for an unknown name, and for a
    kernel that cannot keep scores in float32 when the model needs that."""
    if name == "auto":
        return auto_attention_float32 if float32_logits else auto_attention
    if name not in KERNELS:
        raise InvalidInput("attention", repr(name), f"one of auto, {', '.join(KERNELS)}")
    entry = KERNELS[name]
    if float32_logits and not entry.float32_logits:
        able = [other.name for other in KERNELS.values() if other.float32_logits]
        raise InvalidInput(
            "attention",
            repr(name),
            "a kernel that keeps scores in float32, as this model needs",
            f"use {' or '.join(able)}",
        )
    return entry.kernel
