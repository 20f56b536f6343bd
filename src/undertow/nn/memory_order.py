"""How the maps of autoencoders lie in memory: as they are computed fastest."""

import torch

from undertow.processor import has_amx, has_bfloat16
from undertow.shapes import FeatureMap


def order_of(dtype: torch.dtype, device: torch.device) -> torch.memory_format:
    """Channels first, because PyTorch's GroupNorm on CPUs sums naively over maps where they lie last
    (`vae.blocks.MiddleBlock`); but last in bfloat16 on CPUs that multiply it, and not in tiles: there decoding takes
    0.85 of the time (benchmarks/vae.py), and the type rounds more than such sums do."""
    last = dtype == torch.bfloat16 and device.type == "cpu" and has_bfloat16() and not has_amx()
    return torch.channels_last if last else torch.contiguous_format


def in_order(x: FeatureMap) -> FeatureMap:
    """Itself, where it lies so already."""
    return x.contiguous(memory_format=order_of(x.dtype, x.device))
