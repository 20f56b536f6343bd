"""The steps that an autoencoder consists of, each able to compute a part of its output from a part of its input.

A step knows its geometry (which input cells an output window needs), its price (multiplications, memory), and how to
compute. The modules hold the parameters; steps only refer to them.
"""

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from math import isqrt
from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from undertow.nn.adaptable import Conv2d, is_only_convolved
from undertow.nn.attention import SpatialSelfAttention
from undertow.nn.matmul import convolve, convolve_doubled, doubles_in_parts, doubling_is_left_out
from undertow.nn.memory_order import group_norm, in_order
from undertow.vae.statistics import Statistics
from undertow.vae.windows import Size, Window

Map = Float[Tensor, "batch channels height width"]
NewMap = Float[Tensor, "batch new_channels new_height new_width"]

Module = TypeVar("Module", bound=nn.Module)

BLOCK = 16
"""Channels in a block of oneDNN's memory order, on processors with AVX-512; on others there are 8."""

MOVING = 40
"""Multiplications that take as long as reading and writing one number (measured on one CPU; any value from 10 to 200
gives nearly the same plans)."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a tile's computation stands: the windows of a step's input and output, and the size of its whole output."""

    before: Window
    after: Window
    size: Size

    @property
    def is_whole(self) -> bool:
        return self.after == Window.whole(self.size)


@dataclass(frozen=True, kw_only=True)
class Step(ABC):
    """One operation of the network, named after its module.

    The defaults are those of an operation on each cell alone.
    """

    name: str

    def channels(self, channels: int) -> int:
        """Channels of the output."""
        return channels

    def size(self, size: Size) -> Size:
        """Size of the output."""
        return size

    def source(self, window: Window, size: Size) -> Window:
        """Input cells that the output cells of `window` depend on, in an input of `size`."""
        del size
        return window

    @abstractmethod
    def work(self, cells: int, channels: int) -> float:
        """Multiplications, for `cells` of output and `channels` of input."""

    @abstractmethod
    def scratch(self, inputs: int, outputs: int, *, tile: bool, dtype: torch.dtype) -> int:
        """Numbers of `dtype` held while it computes in that type besides its input and output, which count `inputs` and
        `outputs`. tile: whether the input is a part of a map."""

    def to(self, dtype: torch.dtype) -> "Step":
        """The step in `dtype`: itself, or one with converted parameters of its own, which `scratch` counts."""
        return self


@dataclass(frozen=True, kw_only=True)
class Remember(Step):
    """The input of a residual block, kept for its `Add`."""

    def work(self, cells: int, channels: int) -> float:
        return 0.0

    def scratch(self, inputs: int, outputs: int, *, tile: bool, dtype: torch.dtype) -> int:
        return 0


@dataclass(frozen=True, kw_only=True)
class Add(Step):
    """The remembered input, through its 1x1 convolution where the channels differ, onto the output of a block."""

    shortcut: Conv2d | None

    def work(self, cells: int, channels: int) -> float:
        return cells * channels * (MOVING + (0 if self.shortcut is None else self.shortcut.in_channels))

    def scratch(self, inputs: int, outputs: int, *, tile: bool, dtype: torch.dtype) -> int:
        if self.shortcut is None:
            return 0
        remembered = inputs // self.shortcut.out_channels * self.shortcut.in_channels
        return outputs + _convolution_scratch(self.shortcut, remembered, outputs, copied=tile, dtype=dtype)

    def to(self, dtype: torch.dtype) -> "Add":
        return self if self.shortcut is None else replace(self, shortcut=_converted(self.shortcut, dtype))

    def compute(self, hidden: Map, remembered: NewMap) -> Map:
        """In place: `hidden` comes from a convolution and nothing else holds it."""
        return hidden.add_(remembered if self.shortcut is None else self.shortcut(remembered))


@dataclass(frozen=True, kw_only=True)
class NormSiLU(Step):
    """GroupNorm and SiLU. The one step whose output depends on every cell: through each group's statistics."""

    norm: nn.GroupNorm

    def work(self, cells: int, channels: int) -> float:
        return 2 * MOVING * cells * channels

    def scratch(self, inputs: int, outputs: int, *, tile: bool, dtype: torch.dtype) -> int:
        """A tile's deviations from its mean, in float32: for half precision, two copies of twice the bytes."""
        return (4 * outputs if dtype.itemsize < 4 else outputs) if tile else 0

    def to(self, dtype: torch.dtype) -> "NormSiLU":
        return replace(self, norm=_converted(self.norm, dtype))

    def compute(self, hidden: Map, statistics: Statistics | None) -> Map:
        """With the statistics of the whole map; `None` when `hidden` is the whole map."""
        if statistics is None:
            return F.silu(group_norm(in_order(hidden), self.norm), inplace=True)
        scale, shift = statistics.affine(self.norm)
        return F.silu(torch.addcmul(shift, hidden, scale), inplace=True).to(hidden.dtype)


@dataclass(frozen=True, kw_only=True)
class Convolve(Step):
    """3x3 convolution padded on all sides, the encoder's with stride 2 padded right and bottom, or 1x1."""

    conv: Conv2d

    @property
    def kernel(self) -> int:
        return self.conv.kernel_size[0]

    @property
    def stride(self) -> int:
        return self.conv.stride[0]

    def channels(self, channels: int) -> int:
        return self.conv.out_channels

    def size(self, size: Size) -> Size:
        return size[0] // self.stride, size[1] // self.stride

    def source(self, window: Window, size: Size) -> Window:
        if self.kernel == 1:
            return window
        if self.stride == 1:
            return window.grown(1, size)
        return Window(
            top=2 * window.top,
            left=2 * window.left,
            bottom=min(2 * window.bottom + 1, size[0]),
            right=min(2 * window.right + 1, size[1]),
        )

    def work(self, cells: int, channels: int) -> float:
        return cells * channels * self.conv.out_channels * self.kernel**2

    def scratch(self, inputs: int, outputs: int, *, tile: bool, dtype: torch.dtype) -> int:
        return _convolution_scratch(self.conv, inputs, outputs, copied=tile or self.stride == 2, dtype=dtype)

    def to(self, dtype: torch.dtype) -> "Convolve":
        return replace(self, conv=_converted(self.conv, dtype))

    def compute(self, hidden: Map, place: Place) -> NewMap:
        """Zeros beyond the picture's border, and only there: elsewhere the window brings its neighbors' cells."""
        if self.kernel == 1 or (place.is_whole and self.stride == 1):
            return in_order(self.conv(in_order(hidden)))
        after, (height, width) = place.after, place.size
        top, left = (int(self.stride == 1 and side == 0) for side in (after.top, after.left))
        padded = F.pad(hidden, (left, int(after.right == width), top, int(after.bottom == height)))
        return convolve(padded, self.conv.weight, self.conv.bias, self.stride, 0)


@dataclass(frozen=True, kw_only=True)
class ConvolveDoubled(Convolve):
    """3x3 convolution, padded on all sides, of a map at twice its resolution, in which each cell is repeated."""

    def size(self, size: Size) -> Size:
        return 2 * size[0], 2 * size[1]

    def source(self, window: Window, size: Size) -> Window:
        doubled = self.size(size)
        return window.grown(1, doubled).rescaled(doubled, size)

    def work(self, cells: int, channels: int) -> float:
        if doubles_in_parts(cells // 4, self.conv.weight.dtype, self.conv.weight.device):
            return cells * channels * (4 * self.conv.out_channels + MOVING)
        return super().work(cells, channels) + MOVING * cells * channels

    def scratch(self, inputs: int, outputs: int, *, tile: bool, dtype: torch.dtype) -> int:
        """With the doubled map, or where that is left out with one of the four parts of the output, which are a line
        higher and wider each, and its weights."""
        channels = self.conv.in_channels
        cells = inputs // channels
        if doubles_in_parts(cells, dtype, self.conv.weight.device):
            part = self.conv.out_channels * (cells + 2 * isqrt(cells) + 1)
            summed = 4 * self.conv.weight.numel() // 9
            blocked = cells * _blocked(channels) + part // self.conv.out_channels * _blocked(self.conv.out_channels)
            copied = inputs if tile else 0
            return copied + _converted_numbers(self.conv, dtype) + max(3 * summed, 2 * summed + part + blocked)
        return 4 * inputs + super().scratch(4 * inputs, outputs, tile=tile, dtype=dtype)

    def compute(self, hidden: Map, place: Place) -> NewMap:
        before = place.before
        covered = Window(top=2 * before.top, left=2 * before.left, bottom=2 * before.bottom, right=2 * before.right)
        if is_only_convolved(self.conv) and doubling_is_left_out(hidden):
            rows, columns = place.after.inside(covered)
            return convolve_doubled(in_order(hidden), self.conv.weight, self.conv.bias, rows, columns)
        seen = place.after.grown(1, place.size)
        rows, columns = seen.inside(covered)
        doubled = F.interpolate(hidden, scale_factor=2.0, mode="nearest")[:, :, rows, columns]
        return super().compute(doubled, Place(before=seen, after=place.after, size=place.size))


@dataclass(frozen=True, kw_only=True)
class Attend(Step):
    """Self-attention of every cell to every other: always on the whole map, which is the smallest there is."""

    attention: SpatialSelfAttention

    def source(self, window: Window, size: Size) -> Window:
        return Window.whole(size)

    def work(self, cells: int, channels: int) -> float:
        return 4 * cells * channels**2 + 2 * cells**2 * channels

    def scratch(self, inputs: int, outputs: int, *, tile: bool, dtype: torch.dtype) -> int:
        """The normalized map, query, key, value, the kernel's result and its workspace."""
        return 7 * inputs + _converted_numbers(self.attention, dtype)

    def to(self, dtype: torch.dtype) -> "Attend":
        return replace(self, attention=_converted(self.attention, dtype))

    def compute(self, hidden: Map) -> Map:
        return in_order(self.attention(hidden.contiguous()))

    def logits_inputs(self, hidden: Map) -> tuple[Tensor, Tensor]:
        """Query and key, to be looked at: fused kernels on CPU turn their Inf and NaN into finite zeros."""
        tokens = self.attention.group_norm(hidden.contiguous()).flatten(2).transpose(1, 2)
        return self.attention.to_q(tokens), self.attention.to_k(tokens)


def _convolution_scratch(conv: Conv2d, inputs: int, outputs: int, *, copied: bool, dtype: torch.dtype) -> int:
    """The padded or contiguous copy of the input, converted weights, and copies in oneDNN's own memory order, whose
    channels come in blocks: of the weights, of the input until the product is there, and of the output.

    Measured with torch.profiler, on processors that compute in `dtype` by themselves: never too little, and exact for
    3x3 kernels in float32, in networks at least as wide as the published ones. For maps of few channels oneDNN may
    gather patches instead.
    """
    held = (inputs if copied else 0) + _converted_numbers(conv, dtype) + conv.weight.numel()
    if conv.kernel_size[0] == 1:
        return held + outputs  # of all rows, before they are joined
    blocked_inputs = inputs // conv.in_channels * _blocked(conv.in_channels)
    blocked_outputs = outputs // conv.out_channels * _blocked(conv.out_channels)
    return held + blocked_outputs + max(blocked_inputs - outputs, 0)


def _blocked(channels: int) -> int:
    return -(-channels // BLOCK) * BLOCK


def _converted(module: Module, dtype: torch.dtype) -> Module:
    """The module in `dtype`: itself, or a copy."""
    return module if _is_in(module, dtype) else copy.deepcopy(module).to(dtype)


def _converted_numbers(module: nn.Module, dtype: torch.dtype) -> int:
    """Parameters of the copy that `_converted` makes."""
    return 0 if _is_in(module, dtype) else sum(parameter.numel() for parameter in module.parameters())


def _is_in(module: nn.Module, dtype: torch.dtype) -> bool:
    return next(module.parameters()).dtype == dtype
