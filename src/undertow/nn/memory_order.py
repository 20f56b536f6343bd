"""How the maps of autoencoders lie in memory: as they are computed fastest."""

import torch
import torch.nn.functional as F
from torch import nn

from undertow.processor import has_amx, has_bfloat16
from undertow.shapes import FeatureMap


def order_of(dtype: torch.dtype, device: torch.device) -> torch.memory_format:
    """Channels first, but last in bfloat16 on CPUs that multiply it, and not in tiles: there decoding takes 0.9 of the
    time (benchmarks/vae.py)."""
    last = dtype == torch.bfloat16 and device.type == "cpu" and has_bfloat16() and not has_amx()
    return torch.channels_last if last else torch.contiguous_format


def in_order(x: FeatureMap) -> FeatureMap:
    """Itself, where it lies so already."""
    return x.contiguous(memory_format=order_of(x.dtype, x.device))


def group_norm(x: FeatureMap, norm: nn.GroupNorm) -> FeatureMap:
    """`norm`, in the order that `x` lies in.

    PyTorch's kernel for CPUs and channels that lie last subtracts the square of the mean from that of the numbers,
    which loses what lies far from zero: over 512x512 cells of mean 30 and deviation 1 it is 8 % off. There the
    statistics are those of each channel, which BatchNorm takes in two passes, put together by groups.
    """
    if x.is_contiguous() or x.device.type != "cpu":
        return norm(x)
    rows = [_norm_row(row, norm) for row in x.split(1)]
    return rows[0] if len(rows) == 1 else torch.cat(rows)


def _norm_row(x: FeatureMap, norm: nn.GroupNorm) -> FeatureMap:
    weight, bias = norm.weight.float(), norm.bias.float()  # so that statistics are kept in float32
    means, inverses = torch.native_batch_norm(x, weight, bias, None, None, training=True, momentum=0.0, eps=0.0)[1:]
    of_channels = means.double().view(norm.num_groups, -1)
    mean = of_channels.mean(1, keepdim=True)
    within = inverses.double().view(norm.num_groups, -1) ** -2
    variance = (within + (of_channels - mean) ** 2).mean(1, keepdim=True)
    mean, variance = (one.expand_as(of_channels).flatten().float() for one in (mean, variance))
    return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=norm.eps)
