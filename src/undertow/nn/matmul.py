"""Matrix products and convolutions by the fastest exact method that PyTorch offers on this processor.

Without gradients, on a CPU, these facts matter (measured by benchmarks/matmul.py, the last one by benchmarks/vae.py):

- MKL, which PyTorch calls for float32 products, picks its code by the processor's vendor and is less than half as fast
  as oneDNN on AMD.
- A 1x1 convolution is a matrix product without any copy, of cells where the channels lie last, and of channels where
  they lie first.
- oneDNN repacks a convolution's weights at every call. At 8x8 cells and below that takes longer than the convolution,
  while gathering the few patches (im2col) and one matrix product does not.
- A 3x3 convolution of a map that was doubled, each cell repeated, sees a cell of that map several times: it is four 2x2
  convolutions of the map as it was, by sums of weights, with four ninths of the multiplications. From a thousand cells
  on that takes about half the time; of fewer, adding up weights takes longer than it saves.

Everywhere else these functions are `torch.nn.functional.linear` and `conv2d`.
"""

from itertools import product

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from undertow.processor import onednn_is_faster
from undertow.shapes import FeatureMap

PATCH_CELLS = 256
"""Most output cells, over all rows, for which gathering patches beats repacking the weights."""
DOUBLED_CELLS = 1024
"""Fewest cells of a map whose doubling is left out."""


def linear(
    x: Float[Tensor, "*batch inputs"], weight: Float[Tensor, "outputs inputs"], bias: Float[Tensor, "outputs"] | None
) -> Float[Tensor, "*batch outputs"]:
    """x Wᵀ + b."""
    if x.dtype == torch.float32 and is_inference_on_cpu(x) and onednn_is_faster():
        return onednn_linear(x, weight, bias)
    return F.linear(x, weight, bias)


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x Wᵀ + b by oneDNN. Where nothing is compiled, PyTorch's operator is called as it is: the first call of a custom
    one would import the compiler, which takes a second or two."""
    if torch.compiler.is_compiling():
        return opaque_onednn_linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@torch.library.custom_op("undertow::onednn_linear", mutates_args=())
def opaque_onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The same as a custom operator, because the compiler would send PyTorch's own to MKL again."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@opaque_onednn_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    del bias  # changes no shape
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def convolve(
    x: FeatureMap,
    weight: Float[Tensor, "outputs channels kernel_height kernel_width"],
    bias: Float[Tensor, "outputs"] | None,
    stride: int,
    padding: int,
) -> Float[Tensor, "batch outputs new_height new_width"]:
    """2-D cross-correlation with a square kernel, zero-padded on all sides."""
    if is_inference_on_cpu(x) and weight.is_contiguous(memory_format=torch.channels_last):
        cells = x.permute(0, 2, 3, 1)
        if weight.shape[2] == 1 and stride == 1 and padding == 0:
            if x.stride(1) != 1:
                return _mix_channels(x, weight[:, :, 0, 0], bias)
            return linear(cells, weight[:, :, 0, 0], bias).permute(0, 3, 1, 2)
        if x.shape[0] * x.shape[2] * x.shape[3] <= PATCH_CELLS * stride * stride:
            patches = _patches(cells, weight.shape[2], stride, padding)
            return linear(patches, weight.permute(0, 2, 3, 1).flatten(1), bias).permute(0, 3, 1, 2)
    return F.conv2d(x, weight, bias, stride, padding)


def _mix_channels(
    x: FeatureMap, weight: Float[Tensor, "outputs channels"], bias: Float[Tensor, "outputs"] | None
) -> Float[Tensor, "batch outputs height width"]:
    """W x + b at every cell of maps whose channels lie first: they stay there."""
    maps = x.flatten(2)
    if x.dtype == torch.float32 or bias is None:
        made = [linear(weight, one.mT, None) for one in maps]
    else:
        made = [torch.addmm(bias[:, None], weight, one) for one in maps]  # rounds once
    if not made:
        return x.new_empty(0, len(weight), *x.shape[2:])
    mixed = made[0][None] if len(made) == 1 else torch.stack(made)
    if x.dtype == torch.float32 and bias is not None:
        mixed.add_(bias[:, None])
    return mixed.unflatten(2, x.shape[2:])


def doubling_is_left_out(x: FeatureMap) -> bool:
    """Whether `convolve_doubled` is faster here than doubling a map and convolving it."""
    is_eager = is_inference_on_cpu(x) and not torch.compiler.is_compiling()  # graphs, for other runtimes too, are plain
    return is_eager and doubles_in_parts(x.shape[2] * x.shape[3], x.dtype, x.device)


def doubles_in_parts(cells: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether that pays for a map of so many cells, whatever else is in its batch."""
    return cells >= DOUBLED_CELLS and dtype in (torch.float32, torch.bfloat16) and device.type == "cpu"


def convolve_doubled(
    x: FeatureMap,
    weight: Float[Tensor, "outputs channels 3 3"],
    bias: Float[Tensor, "outputs"] | None,
    rows: slice,
    columns: slice,
) -> Float[Tensor, "batch outputs new_height new_width"]:
    """`conv2d(F.interpolate(x, scale_factor=2.0), weight, bias, padding=1)[:, :, rows, columns]`, equal within
    rounding."""
    height, width = x.shape[2:]
    shape = (x.shape[0], weight.shape[0], rows.stop - rows.start, columns.stop - columns.start)
    order = torch.contiguous_format if x.is_contiguous() else torch.channels_last
    found = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=order)
    for row, column in product((0, 1), (0, 1)):
        # An even row of the doubled map is computed from a cell and the one above it, an odd one from it and the next.
        part = F.conv2d(x, _halved(_halved(weight, 2, row), 3, column), bias, padding=1)
        part = part[:, :, row : row + height, column : column + width]
        (into_rows, from_rows), (into_columns, from_columns) = _every_other(rows, row), _every_other(columns, column)
        found[:, :, into_rows, into_columns] = part[:, :, from_rows, from_columns]
    return found


def _halved(weight: Tensor, dim: int, odd: int) -> Tensor:
    """Three weights along `dim` as two: two of them see the same cell."""
    first, second, third = weight.unbind(dim)
    return torch.stack((first + second, third) if odd else (first, second + third), dim)


def _every_other(window: slice, odd: int) -> tuple[slice, slice]:
    """Those lines of a window that are even or odd: in the window, and among all of their kind."""
    first, last = -((odd - window.start) // 2), -((odd - window.stop) // 2)
    return slice(2 * first + odd - window.start, None, 2), slice(first, last)


def is_inference_on_cpu(x: Tensor) -> bool:
    """Whether a product is one of a forward alone, and of PyTorch's own kernels for CPUs."""
    return x.device.type == "cpu" and not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")


def _patches(
    cells: Float[Tensor, "batch height width channels"], kernel: int, stride: int, padding: int
) -> Float[Tensor, "batch new_height new_width patch"]:
    """Every window of the feature map as one row, ordered by kernel row, kernel column, channel."""
    padded = F.pad(cells, (0, 0, padding, padding, padding, padding))
    height, width = ((size - kernel) // stride + 1 for size in padded.shape[1:3])
    return torch.cat(
        [
            padded[:, i : i + stride * (height - 1) + 1 : stride, j : j + stride * (width - 1) + 1 : stride]
            for i in range(kernel)
            for j in range(kernel)
        ],
        dim=-1,
    )
