"""Attention kernels on stand-ins: what each holds while it computes, as `attention/` has them."""

from undertow.memory.ledger import Array
from undertow.memory.operations import Operations
from undertow.memory.workspaces import batched_bytes

PART, BLOCK, CHUNKED_KEYS, GRADIENT_KEYS = 256, 2**21, 1024, 256
"""As in `attention.in_parts`, `chunked` and `choose`, which import torch; a test holds them equal."""

WRITTEN_OUT = ("math", "sliced", "chunked")
"""Kernels whose result has heads before tokens in memory, so that it is copied to become tokens again."""


def attend(ops: Operations, query: Array, key: Array, value: Array, heads: int, *, masked: bool = False) -> Array:
    """Attention of [rows, queries, width] to [rows, keys, width]. masked: each query sees some keys; an upper bound."""
    (rows, queries, _), keys = query.shape, key.shape[1]
    name = chosen_kernel(ops, queries, keys)
    whole = not ops.in_parts or queries <= PART
    shape = (rows, queries, keys)
    # The mask with rows opened that see nothing, and as numbers or as a copy of the scores without what is not seen.
    size = ops.ledger.item * (1 if name not in WRITTEN_OUT else heads)
    masks = [ops.ledger.new(shape, "or", item=1), ops.ledger.new(shape, "mask", item=size)] if masked else []
    result = _computed(ops, name, query, heads, keys) if whole else _in_parts(ops, name, query, heads, keys)
    if masked:
        result = ops.elementwise("where", result)
    masks.clear()
    if not whole or name in WRITTEN_OUT:
        result = _merged(ops, result)
    ops.save(query, key, value, result)
    return result


def _computed(ops: Operations, name: str, query: Array, heads: int, keys: int) -> Array:
    """[rows, heads, queries, dim], by one call of a kernel."""
    rows, queries, width = query.shape
    ops.ledger.count("attention", name, rows, heads, queries, keys, width // heads)
    match name:
        case "chunked":
            return _chunked(ops, query, heads, keys)
        case "math":
            return _math(ops, query, heads, keys)
        case "sliced":
            return _sliced(ops, query, heads, keys)
        case _:
            return _fused(ops, query, heads, keys)


def _in_parts(ops: Operations, name: str, query: Array, heads: int, keys: int) -> Array:
    """`attention.in_parts`."""
    rows, queries, width = query.shape
    full, rest = divmod(queries, PART)
    # All whole parts before the last at once: each is as large, and the memory only grows.
    parts = [ops.ledger.new((rows, (full - 1) * PART, width), "attention")] if full > 1 else []
    with ops.ledger.repeated(full):
        parts.append(_computed(ops, name, _part_of(query, rows, PART, width), heads, keys))
    if rest:
        parts.append(_computed(ops, name, _part_of(query, rows, rest, width), heads, keys))
    return ops.elementwise("cat", query, *parts)


def chosen_kernel(ops: Operations, queries: int, keys: int) -> str:
    """What `attention.choose` takes."""
    for asked, given, name in ops.kernels:
        if (asked, given) == (queries, keys):
            return name
    if ops.kernel != "auto":
        return ops.kernel
    gradient = ops.saved is not None
    few = ops.machine.device == "cpu" and ops.dtype == "bfloat16" and (keys <= CHUNKED_KEYS or not gradient)
    tiles = ops.machine.amx and not (gradient and keys <= GRADIENT_KEYS)
    return "chunked" if few and ops.machine.bfloat16 and not tiles else "sdpa"


def _fused(ops: Operations, query: Array, heads: int, keys: int) -> Array:
    rows, queries, width = query.shape
    workspace = 4 * rows * heads * queries + _flash_workspace(ops, queries, keys, width // heads)
    return ops.ledger.new(query.shape, "scaled_dot_product_attention", workspace=workspace)


def _flash_workspace(ops: Operations, queries: int, keys: int, dim: int) -> int:
    """Of `_scaled_dot_product_flash_attention_for_cpu` (aten/src/ATen/native/cpu/FlashAttentionKernel.cpp): the
    scores of one block, their sums and maxima, and its result, for each thread."""
    block = 256 if queries >= 768 else 64 if queries >= 192 else 32
    block, keys = min(block, queries), min(512, keys)
    numbers = block * (keys + 2 + dim)
    halves = 0 if ops.ledger.item == 4 else block * keys
    return ops.machine.threads * (4 * numbers + 2 * halves)


def _math(ops: Operations, query: Array, heads: int, keys: int) -> Array:
    """Everything in float32, the whole score matrix at once."""
    rows, queries, width = query.shape
    shape, upcast = (rows, heads, queries, keys), ops.ledger.item != 4
    source = (rows, keys, width)
    wide = [query.shape, source] if upcast else []
    copied = [query.shape, source] if rows > 1 and heads > 1 else []
    with ops.ledger.held(query.shape, *wide, *copied, item=4):
        scores = ops.ledger.new(shape, "bmm", item=4)
    probabilities = ops.ledger.new(shape, "softmax", item=4)
    with ops.ledger.held(*wide[1:], *copied[1:], item=4):
        output = ops.ledger.new(query.shape, "bmm", item=4)
    del probabilities
    if upcast:
        output = ops.ledger.new(query.shape, "to")
    del scores
    return output


def _sliced(ops: Operations, query: Array, heads: int, keys: int) -> Array:
    """One head of one row after the other, the last of which finds the results of all others in memory."""
    rows, queries, width = query.shape
    others = [ops.ledger.new((rows - 1, queries, width), "cat")] if rows > 1 else []
    done = [ops.ledger.new((queries, width - width // heads), "bmm")] if heads > 1 else []
    done.append(_math(ops, _part_of(query, 1, queries, width // heads), 1, keys))
    others.append(ops.elementwise("cat", *done, shape=(1, queries, width)))
    done.clear()
    return ops.elementwise("cat", query, *others)


def _chunked(ops: Operations, query: Array, heads: int, keys: int) -> Array:
    """One block of scores after the other, of which the last finds the results of all others in memory."""
    rows, queries, width = query.shape
    source, centered = (rows, keys, width), list[Array]()
    if ops.ledger.item < 4:
        centered.append(ops.ledger.new(source, "sub"))
    scaled = ops.elementwise("mul", query)
    of_rows = min(rows, max(1, BLOCK // (heads * queries * keys)))
    of_heads = min(heads, max(1, BLOCK // (queries * keys)))
    of_queries = min(queries, max(1, BLOCK // keys))
    block = _part_of(query, of_rows, of_queries, width // heads * of_heads)
    if block.numbers < query.numbers:
        others = ops.ledger.new((query.numbers - block.numbers,), "cat")
        output = ops.elementwise("cat", query, others, _block(ops, block, of_heads, keys, strided=heads > 1))
        del others
    else:
        output = _block(ops, block, heads, keys, strided=heads > 1)
    if ops.saved is not None:
        ops.save(scaled, ops.ledger.new((rows, heads, queries, keys), "softmax"))
    del scaled
    centered.clear()
    return output


def _block(ops: Operations, query: Array, heads: int, keys: int, *, strided: bool) -> Array:
    """Keys are copied, and values where each head of them is strided, being one of several; queries where the block has
    several rows of several heads."""
    rows, queries, width = query.shape
    source, shape = (rows, keys, width), (rows, heads, queries, keys)
    half, several = ops.ledger.item < 4, rows > 1 and heads > 1
    with ops.ledger.held(*([query.shape, source] if several else [source] if half else [])):
        workspace = _batched_workspace(ops, queries, width // heads, keys, transposed=True)
        scores = ops.ledger.new(shape, "bmm", workspace=workspace)
    probabilities = ops.ledger.new(shape, "softmax")
    with ops.ledger.held(*([source] if several or (half and strided) else [])):
        workspace = _batched_workspace(ops, queries, keys, width // heads)
        result = ops.ledger.new(query.shape, "bmm", workspace=workspace)
    del probabilities, scores
    return result


def _batched_workspace(ops: Operations, cells: int, inputs: int, outputs: int, *, transposed: bool = False) -> int:
    item = ops.ledger.item
    return batched_bytes(ops.machine, ops.dtype, item, cells, inputs, outputs, transposed=transposed)


def _merged(ops: Operations, output: Array) -> Array:
    """[rows, heads, queries, dim] as [rows, queries, width]: a copy, beside which the original lives on; both are
    given up together."""
    return ops.ledger.new(output.shape, "flatten").beside(output)


def _part_of(query: Array, rows: int, queries: int, width: int) -> Array:
    """A view."""
    return Array((rows, queries, width), query.buffer, query.item)
