"""The memory that PyTorch's CPU kernels take for themselves while they compute, by family of processors.

oneDNN keeps blocks of weights, inputs and sums in its own order. How large they are follows from the kernels that it
has for a processor: those of AVX-512 keep little more than a block of the weights; those of AMX copy the rows of a map
that they compute at once, and of a product the weights of all outputs, where that saves reading them again. float32
products of Intel's processors go to MKL, which takes its memory elsewhere.

Of AVX-512 the rules are those of the kernels. Of AMX and of float16 they are upper bounds: which blocks oneDNN chooses
depends on a search over estimated speeds (`brg_blocking_t` and `matmul_amx_blocking_params_micro_t` in its sources),
which is bounded here and not repeated. docs/results/memory.md says how far above they are.
"""

from collections.abc import Callable
from math import prod

from undertow.memory.machine import Machine
from undertow.quantization import Scheme

SCRATCHPAD, HALF_SCRATCHPAD, POINTWISE_SCRATCHPAD = 8216, 16664, 49176
"""Bytes of oneDNN's scratchpad for a convolution without AMX, at most: in float32, in half precision, and there by a
1x1 kernel."""

SPREAD_NUMBERS = 20480
"""Numbers of an input up to which PyTorch's own convolution is taken."""

PAGE = 4096
TILES, POINTWISE_TILES = 10 * PAGE + 24, 6 * PAGE
"""Bytes of masks, addresses and tiles of an AMX convolution, each on pages of its own."""

PRODUCT_TILES = 6272
"""The same of a product."""

CACHE_BYTES = 2**21
"""The second level of cache, to which oneDNN fits the blocks of AMX."""

DEEP, MANY_BYTES = 2048, 1_180_000
"""Inputs from which on the sums of all of many cells are kept, and the most of the weights for many cells."""

LARGE_BYTES = 750_000
"""An input from which on blocks are chosen by what fits into the cache."""

UNLIMITED_INPUTS = 1440
"""Of a convolution, from which on not even a few lines fit into the cache, and the whole map is copied."""

SPLIT_INPUTS = 512
"""Inputs from which on a product is computed in parts, whose sums are kept in float32."""


def is_spread(item: int, x: tuple[int, ...], stride: int = 1) -> bool:
    """Whether PyTorch takes its own convolution, which spreads a small input of one row out."""
    rows, *of_a_row = x
    return rows == 1 and stride == 1 and item == 4 and prod(of_a_row) <= SPREAD_NUMBERS


def conv_bytes(
    machine: Machine, dtype: str, item: int, x: tuple[int, ...], outputs: int, kernel: int, stride: int
) -> int:
    """oneDNN's copy of the weights, channels in its blocks, and what it keeps beside them; a small input of one row is
    spread out instead (`use_mkldnn` in aten/src/ATen/native/Convolution.cpp). x: rows, channels, height and width."""
    if machine.device != "cpu":
        return 0
    _, inputs, height, width = x
    if is_spread(item, x, stride):
        return inputs * kernel**2 * height * width * item if kernel > 1 else 0
    packed = rounded(inputs, 2) * rounded(outputs, 16) * kernel**2 * item
    if machine.amx and dtype == "bfloat16":
        return packed + _amx_conv(inputs, outputs, height, width, kernel, stride)
    return packed + (SCRATCHPAD if item == 4 else HALF_SCRATCHPAD if kernel > 1 else POINTWISE_SCRATCHPAD)


def grouped_conv_bytes(machine: Machine, dtype: str, item: int, x: tuple[int, ...], outputs: int, kernel: int) -> int:
    """Of a convolution of every row by weights of its own, as one in groups: their weights, in whole blocks of outputs,
    and what AMX copies of the map. outputs: of a row."""
    if machine.device != "cpu":
        return 0
    rows, inputs, height, width = x
    packed = rows * rounded(inputs, 2) * rounded(outputs, 16) * kernel**2 * item
    if machine.amx and dtype == "bfloat16":
        return packed + _amx_conv(inputs, outputs, height, width, kernel, 1, groups=rows)
    if is_spread(item, x):
        return conv_bytes(machine, dtype, item, x, outputs, kernel, 1)
    if machine.float16 and dtype == "float16":
        return packed + HALF_SCRATCHPAD
    return rows * inputs * outputs * kernel**2 * item


def product_bytes(machine: Machine, dtype: str, item: int, cells: int, inputs: int, outputs: int) -> int:
    """Of x Wᵀ: a block of the weights, and in half precision of the sums."""
    if machine.device != "cpu" or (item == 4 and not machine.onednn):
        return 0
    if dtype == "float16" and machine.float16:
        return _float16_product(cells, inputs, outputs)
    if dtype == "bfloat16" and machine.amx:
        return _amx_product(cells, inputs, outputs)
    block = 64 * min(inputs, 1024) * item
    return block + (min(outputs, 64) * min(cells, 256) * 4 if item < 4 else 0) + 1024


def batched_bytes(
    machine: Machine, dtype: str, item: int, cells: int, inputs: int, outputs: int, *, transposed: bool = False
) -> int:
    """Of one of many products at once, as of other products, in blocks of half the size; float32 goes to MKL, which
    takes its memory elsewhere. transposed: the second factor lies in memory as weights do."""
    if item == 4:
        return 0
    if dtype == "float16" and machine.float16:
        return _float16_product(cells, inputs, outputs)
    if dtype == "bfloat16" and machine.amx:
        whole = not transposed or outputs <= cells or cells <= 32
        ragged = 1024 + max(2 * PAGE, 64 * min(cells, 256)) if inputs % 32 else 0
        return PRODUCT_TILES + ragged + 2 * rounded(inputs, 32) * (rounded(outputs, 32) if whole else 32)
    longest = 512 if inputs <= 1024 else 1024
    return 64 * 2 * min(rounded(inputs, 32), longest) + 4 * min(cells, 256) * min(outputs, 64) + 1024


def _amx_product(cells: int, inputs: int, outputs: int) -> int:
    """The weights of all outputs where the cells are more than these or many, else of 32 at a time; and the sums of
    parts of the inputs. Where the input is large beside the cache, the blocks are what fits there."""
    deep = rounded(inputs, 32)
    block = 2 * deep * (32 if cells > 1 else 64)
    if inputs >= SPLIT_INPUTS and cells > 32:
        block = block * 21 // 20 + 4 * 32 * min(cells, 512)
    whole, size = 2 * deep * rounded(outputs, 32), 2 * cells * deep
    if cells > 512:
        sums = 4 * cells * min(outputs, 640) if deep >= DEEP else 0
        return PRODUCT_TILES + max(block, min(whole, MANY_BYTES) + sums)
    if size > LARGE_BYTES:
        most = 1_150_000 if cells <= 256 else CACHE_BYTES
        return PRODUCT_TILES + max(block, min(whole + 4 * cells * outputs, most))
    if outputs <= cells or (deep == 32 and cells > 32):
        block = max(block, min(whole, CACHE_BYTES))
    return PRODUCT_TILES + block


def _float16_product(cells: int, inputs: int, outputs: int) -> int:
    """Everything of a block in float32: inputs, weights and sums."""
    deep, together = min(inputs, 1024) + 16, min(cells, 320)
    wide = 64 if inputs <= 256 else 320
    return 1152 + 4 * (64 * deep + together * deep + together * min(rounded(outputs, 64), wide))


def _amx_conv(inputs: int, outputs: int, height: int, width: int, kernel: int, stride: int, *, groups: int = 1) -> int:
    """The rows of the map that are computed at once, with what they see around them."""
    if kernel == 1:
        return POINTWISE_TILES
    if kernel > 3:
        return _amx_patches(inputs, width, kernel)
    numbers = (32 if inputs < 16 else inputs) * stride
    if width <= stride:  # kernels of a single column are computed as one
        numbers *= 4
    line = 2 * (width + 2) * numbers
    weights = 3 * 2 * 32 * rounded(outputs, 64) if inputs < 16 else 0  # in an order for rows of few channels
    lines = max(map(_lines(stride), range(1, _most_lines(inputs, height, width, stride) + 1)))
    copied = rounded(lines * line, 2 * PAGE)
    if inputs < UNLIMITED_INPUTS:
        copied = min(copied, _most_bytes(inputs, stride, line))
    return (
        TILES
        + 2 * PAGE * (max(inputs // 160, inputs // 60 - 15) + stride - 1 + (groups if groups > 1 else 0))
        + weights
        + groups * copied
    )


def _lines(stride: int) -> Callable[[int], int]:
    """Lines of the input that are copied for so many of the output, which are computed at once."""
    return lambda at_once: rounded(stride * (at_once - 1) + 5, at_once) + 3


def _most_lines(inputs: int, height: int, width: int, stride: int) -> int:
    """Of the output that are computed at once."""
    height, width = -(-height // stride), -(-width // stride)
    if inputs >= 128:
        return height
    cells = (900 if inputs < 24 else 600 if inputs < 48 else 320) // stride
    least = 6 if width * stride <= 100 else 4
    return min(height, max(least, cells // width))


def _most_bytes(inputs: int, stride: int, line: int) -> int:
    """Of copied lines: what fits into the cache, or the fewest lines."""
    fits = 770_000 if inputs < 192 else 840_000 if inputs < 400 else 1_060_000
    if stride > 1:
        fits = 1_600_000 if inputs < 160 else 3_600_000
    return max(fits, min(15 * line, 1_500_000), 12 * line)


def _amx_patches(inputs: int, width: int, kernel: int) -> int:
    """A convolution without overlaps, as image encoders begin with: every patch as often as the kernel has lines."""
    return 2 * kernel * kernel * width * inputs * kernel**2 * 2 + 2**22


def rounded(number: int, block: int) -> int:
    return -(-number // block) * block


PRODUCT_BYTES = 2**14
"""At most, of what libraries take for a product besides, and of rounding sizes up."""


def quantized_bytes(scheme: Scheme, item: int, cells: int, inputs: int, outputs: int) -> int:
    """What a product with quantized weights holds beside its result: weights in the type of the input, or the rounded
    input, sums of integers and their product with the scales."""
    if scheme == "int8-weights":
        return item * (inputs * outputs + outputs) + PRODUCT_BYTES
    rounding = 5 * cells * inputs + item * cells * inputs
    summed = cells * inputs + inputs * outputs + 8 * cells * outputs - (4 if item == 4 else 2) * cells * outputs
    return max(rounding, summed) + 8 * (cells + outputs) + PRODUCT_BYTES
