"""Linear layers and convolutions with the weight port: per row, a few low-rank updates taken from slots.

A layer's slots are two buffers, allocated once. Each row of a batch names up to k slots and a gain for each; the layer
then computes `W x + Σ gain · up (down x)` (LoRA, arXiv:2106.09685, Eq. 3, with alpha/rank folded into `up`). Filling a
slot is an in-place copy, so swapping adapters never recompiles.

There are two ways to the same sum. Gathered: each row's updates as a batch of matrices, all of the capacity's rank,
also for rows without any; the graph is the same whatever the slots hold. By runs of rows that use the same slot: only
what is used, at its own rank, which takes a CPU a third of the time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from undertow.nn.matmul import convolve, linear
from undertow.shapes import FeatureMap


@dataclass(frozen=True, kw_only=True)
class Run:
    """The rows from `start` to before `stop`, which all use this slot with this gain."""

    start: int
    stop: int
    slot: int
    gain: float


@dataclass(frozen=True, kw_only=True)
class WeightRows:
    """The weight port: which slots each row uses, and how strongly. A gain of 0 disables an entry. runs: the same, to
    be computed run by run, in this order; `None` gathers."""

    slots: Int[Tensor, "batch per_row"]
    gains: Float[Tensor, "batch per_row"]
    runs: tuple[Run, ...] | None = None


class Slots(nn.Module):
    """Storage for `count` low-rank updates of one layer. Beyond an update's rank its slot is zero.

    down is [count, rank, inputs], up is [count, outputs, rank]; `inputs` of a convolution is channels times kernel
    size. The buffers are not part of the state dict. ranks: of the update in each slot, 0 where there is none.
    """

    down: Float[Tensor, "slots rank inputs"]
    up: Float[Tensor, "slots outputs rank"]

    def __init__(self, count: int, rank: int, inputs: int, outputs: int, like: Tensor):
        super().__init__()
        self.register_buffer("down", like.new_zeros(count, rank, inputs), persistent=False)
        self.register_buffer("up", like.new_zeros(count, outputs, rank), persistent=False)
        self.ranks = [0] * count

    def rows(self, weights: WeightRows) -> tuple[Float[Tensor, "batch k inputs"], Float[Tensor, "batch outputs k"]]:
        """The updates of each row, concatenated along the rank, with gains folded into `up`; `k` is entries per row
        times rank."""
        down = self.down[weights.slots].flatten(1, 2)
        up = self.up[weights.slots] * weights.gains[:, :, None, None].to(self.up.dtype)
        return down, up.transpose(1, 2).flatten(2)

    def used(self, runs: Sequence[Run]) -> Iterator[tuple[Run, Tensor, Tensor]]:
        """The runs whose slot changes this layer, with its `down` [rank, inputs] and `up` [outputs, rank]."""
        for run in runs:
            if rank := self.ranks[run.slot]:
                yield run, self.down[run.slot, :rank], self.up[run.slot, :, :rank]


class Linear(nn.Linear):
    """`torch.nn.Linear` with a weight port."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True):
        super().__init__(inputs, outputs, bias)
        self.slots: Slots | None = None

    def allocate_slots(self, count: int, rank: int) -> None:
        """Allocates storage for `count` updates of up to `rank`; without it the layer ignores the weight port."""
        self.slots = Slots(count, rank, self.in_features, self.out_features, self.weight)

    def product(self, x: Float[Tensor, "batch *tokens inputs"]) -> Tensor:
        """x Wᵀ + b, without what slots add."""
        return linear(x, self.weight, self.bias)

    def forward(self, x: Float[Tensor, "batch *tokens inputs"], weights: WeightRows | None = None) -> Tensor:
        y = self.product(x)
        if weights is None or self.slots is None:
            return y
        if weights.runs is not None:
            for run, down, up in self.slots.used(weights.runs):
                _add_product(y[run.start : run.stop], x[run.start : run.stop] @ down.mT, up, run.gain)
            return y
        down, up = self.slots.rows(weights)
        tokens = x.unsqueeze(1) if x.ndim == 2 else x
        return y + (tokens @ down.mT @ up.mT).reshape(y.shape)


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d` with a weight port."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int, *, stride: int = 1, padding: int = 0):
        super().__init__(inputs, outputs, kernel_size, stride, padding)
        self.slots: Slots | None = None

    def allocate_slots(self, count: int, rank: int) -> None:
        """Allocates storage for `count` updates of up to `rank`; without it the layer ignores the weight port."""
        inputs = self.in_channels * self.kernel_size[0] * self.kernel_size[1]
        self.slots = Slots(count, rank, inputs, self.out_channels, self.weight)

    def product(self, x: FeatureMap) -> Float[Tensor, "batch outputs h w"]:
        """The convolution without what slots add."""
        return convolve(x, self.weight, self.bias, self.stride[0], int(self.padding[0]))

    @property
    def is_watched(self) -> bool:
        """Whether somebody is told when it is called."""
        everywhere = torch.nn.modules.module._has_any_global_hook()  # pyright: ignore[reportPrivateUsage]
        return bool(self._forward_hooks or self._forward_pre_hooks or everywhere)

    def forward(self, x: FeatureMap, weights: WeightRows | None = None) -> Float[Tensor, "batch outputs h w"]:
        y = self.product(x)
        if weights is None or self.slots is None:
            return y
        if weights.runs is not None:
            for run, down, up in self.slots.used(weights.runs):
                kernels = down.reshape(len(down), self.in_channels, *self.kernel_size)
                part = convolve(x[run.start : run.stop], kernels, None, self.stride[0], int(self.padding[0]))
                _add_product(y[run.start : run.stop].permute(0, 2, 3, 1), part.permute(0, 2, 3, 1), up, run.gain)
            return y
        down, up = self.slots.rows(weights)
        batch, rank = down.shape[:2]
        kernels = down.reshape(batch * rank, self.in_channels, *self.kernel_size)
        low = F.conv2d(x.reshape(1, -1, *x.shape[2:]), kernels, None, self.stride, self.padding, groups=batch)
        return y + torch.bmm(up, low.reshape(batch, rank, -1)).reshape(y.shape)


def is_only_convolved(module: nn.Module) -> bool:
    """Whether calling a module is nothing but `convolve` with its weights: it is a `Conv2d`, and nobody looks into it
    or has put anything in its place."""
    return type(module) is Conv2d and "forward" not in vars(module) and not module.is_watched


def _add_product(
    y: Float[Tensor, "*batch outputs"],
    low: Float[Tensor, "*batch rank"],
    up: Float[Tensor, "outputs rank"],
    gain: float,
) -> None:
    """Adds `gain · low upᵀ` to `y`, in one call where its memory is that of a matrix. PyTorch refuses an alpha that the
    type does not hold; the sum then is infinite, or is not, as its numbers are."""
    if abs(gain) > torch.finfo(y.dtype).max:
        y.add_((low @ up.mT).float() * gain)
    elif y.is_contiguous():
        y.view(-1, y.shape[-1]).addmm_(low.reshape(-1, low.shape[-1]), up.mT, alpha=gain)
    else:
        y.add_(low @ up.mT, alpha=gain)
