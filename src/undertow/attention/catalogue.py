"""All attention kernels, with what each supports and the memory it takes."""

from undertow.attention.chunked import BLOCK, chunked_attention
from undertow.attention.fused import cudnn_attention, efficient_attention, flash_attention
from undertow.attention.kernel import HALF, KernelEntry, Requirements
from undertow.attention.local import local_attention
from undertow.attention.math import math_attention
from undertow.attention.sdpa import sdpa_attention
from undertow.attention.sliced import sliced_attention
from undertow.attention.xformers import xformers_attention
from undertow.processor import threads

FLOAT32 = 4
"""Bytes."""

WORKSPACE = 2**20
"""Bytes that matrix products of CPU libraries take by themselves, at most."""

TILE = (256, 512)
"""Queries and keys of the largest tile that PyTorch's flash kernel on CPUs keeps for each thread
(aten/src/ATen/native/cpu/FlashAttentionKernel.cpp)."""


def _written_out(call: Requirements) -> int:
    """Scores and their softmax in float32 or above, and what is converted to it."""
    itemsize = max(FLOAT32, call.dtype.itemsize)
    converted = call.tokens_bytes(call.queries, itemsize)
    if call.dtype.itemsize < FLOAT32:
        converted += 2 * call.tokens_bytes(call.keys, itemsize)
    return 2 * call.scores * itemsize + converted + _masked(call, itemsize=0) + WORKSPACE


def _sliced(call: Requirements) -> int:
    """One slice written out, and the outputs of all slices before they are joined."""
    one = Requirements(
        device=call.device,
        dtype=call.dtype,
        queries=call.queries,
        keys=call.keys,
        head_dim=call.head_dim,
        masked=call.masked,
    )
    return _written_out(one) + 2 * call.tokens_bytes(call.queries)


def _chunked(call: Requirements) -> int:
    """Scores and their softmax of one block, keys as its products take them, the scaled queries, keys without their
    mean in half precision, and the outputs before they are joined."""
    block = min(max(BLOCK, call.keys), call.scores) * call.dtype.itemsize
    keys = (2 if call.dtype in HALF else 1) * call.tokens_bytes(call.keys)
    return 2 * block + keys + 2 * call.tokens_bytes(call.queries) + _masked(call, itemsize=0) + WORKSPACE


def _fused(call: Requirements) -> int:
    """The sums of each query, the threads' tiles on a CPU, padded tensors elsewhere, and the mask as numbers."""
    sums = call.rows * call.heads * call.queries * FLOAT32
    masks = _masked(call, itemsize=call.dtype.itemsize)
    if call.device != "cpu":
        padded = 2 * call.tokens_bytes(call.queries) + 2 * call.tokens_bytes(call.keys)
        return sums + masks + (padded if call.head_dim % 8 else 0)
    queries, keys = TILE
    tile = queries * (keys + call.head_dim + 2) * FLOAT32 + queries * keys * call.dtype.itemsize
    packed = 2 * call.tokens_bytes(call.keys) if call.dtype in HALF else 0
    return sums + masks + threads() * tile + packed


def _local(call: Requirements) -> int:
    return _fused(call) + call.tokens_bytes(call.queries)


def _xformers(call: Requirements) -> int:
    """As a fused kernel, with a bias for each head."""
    bias = call.scores * call.dtype.itemsize if call.masked else 0
    return _fused(call) + bias


def _masked(call: Requirements, *, itemsize: int) -> int:
    """A mask that all heads share, in Booleans and in numbers of `itemsize` bytes, and the output before its empty rows
    are zeroed."""
    if not call.masked:
        return 0
    return call.rows * call.queries * call.keys * (1 + itemsize) + call.tokens_bytes(call.queries)


KERNELS = {
    entry.name: entry
    for entry in (
        KernelEntry(name="math", kernel=math_attention, float32_logits=True, scratch_bytes=_written_out),
        KernelEntry(name="sdpa", kernel=sdpa_attention, float32_logits=True, scratch_bytes=_fused),
        KernelEntry(name="chunked", kernel=chunked_attention, float32_logits=False, scratch_bytes=_chunked),
        KernelEntry(name="sliced", kernel=sliced_attention, float32_logits=True, scratch_bytes=_sliced),
        KernelEntry(
            name="flash",
            kernel=flash_attention,
            float32_logits=True,
            scratch_bytes=_fused,
            devices=("cpu", "cuda"),
            half_only=("cuda",),
            unmasked=("cuda",),
        ),
        KernelEntry(
            name="efficient",
            kernel=efficient_attention,
            float32_logits=True,
            scratch_bytes=_fused,
            devices=("cuda",),
        ),
        KernelEntry(
            name="cudnn",
            kernel=cudnn_attention,
            float32_logits=True,
            scratch_bytes=_fused,
            devices=("cuda",),
            half_only=("cuda",),
        ),
        KernelEntry(
            name="xformers",
            kernel=xformers_attention,
            float32_logits=True,
            scratch_bytes=_xformers,
            devices=("cuda",),
            package="xformers",
        ),
        KernelEntry(
            name="local-approximate",
            kernel=local_attention,
            float32_logits=True,
            scratch_bytes=_local,
            exact=False,
        ),
    )
}
"""By name. "sdpa" is PyTorch's own choice among the fused ones."""
