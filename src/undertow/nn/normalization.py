"""GroupNorm, without PyTorch's slow kernel for narrow groups of channels that lie last."""

import torch
import torch.nn.functional as F
from torch import nn

from undertow.shapes import FeatureMap

NARROW = 8
"""Channels of a group below which PyTorch's kernel for half precision and channels that lie last (aten/src/ATen/native/
cpu/group_norm_kernel.cpp) goes over them one by one, forward and backward."""

HALF = (torch.bfloat16, torch.float16)


class GroupNorm(nn.GroupNorm):
    """`torch.nn.GroupNorm`, with the same numbers.

    Narrow groups in half precision on a CPU are computed with channels first and put back, which
    benchmarks/training_step.py measures. A compiled graph has kernels of its own.
    """

    def forward(self, input: FeatureMap) -> FeatureMap:
        """[batch, channels, height, width], in the layout it came in."""
        narrow = self.num_channels < NARROW * self.num_groups
        if not narrow or input.dtype not in HALF or input.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(input)
        if input.is_contiguous() or not input.is_contiguous(memory_format=torch.channels_last):
            return super().forward(input)
        normed = F.group_norm(input.contiguous(), self.num_groups, self.weight, self.bias, self.eps)
        return normed.contiguous(memory_format=torch.channels_last)
