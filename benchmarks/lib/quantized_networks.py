"""U-Nets of published architectures with weights that are the same numbers in every precision, one tensor at a time."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from benchmarks.lib.allocations import seeded
from undertow.checkpoints.read.loading import build_on_meta
from undertow.nn.quantized import quantize_layers, quantized
from undertow.quantization import Scheme
from undertow.unet.conditioning import Conditioning
from undertow.unet.config import TextTime, UNetConfig
from undertow.unet.unet import UNet


def random_unet(config: UNetConfig, dtype: torch.dtype, layers: Mapping[str, Scheme]) -> UNet:
    """layers: those that are quantized, from float32 numbers. A tensor's numbers depend on its name."""
    unet = build_on_meta(lambda: UNet(config))
    shapes = {name: tuple(one.shape) for name, one in unet.state_dict().items()}
    quantize_layers(unet, layers, compute_dtype=dtype)
    tensors: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        numbers = _numbers(name, shape)
        layer = name.removesuffix(".weight")
        if layer in layers and layer != name:
            tensors[name], tensors[f"{layer}.weight_scale"] = quantized(numbers, layers[layer])
        else:
            layout = torch.channels_last if numbers.ndim == 4 else torch.contiguous_format
            tensors[name] = numbers.to(dtype, memory_format=layout)
    unet.load_state_dict(tensors, assign=True)
    return unet.requires_grad_(False).eval()


def _numbers(name: str, shape: tuple[int, ...]) -> Tensor:
    """Of the size of trained weights: what a layer passes on is about as large as what it reads."""
    generator = torch.Generator().manual_seed(int(hashlib.sha256(name.encode()).hexdigest()[:12], 16))
    deviation = 0.1 if len(shape) < 2 else torch.empty(shape[1:]).numel() ** -0.5
    numbers = torch.empty(shape).normal_(0, deviation, generator=generator)
    return numbers + 1 if "norm" in name and name.endswith(".weight") and len(shape) == 1 else numbers


def inputs(config: UNetConfig, side: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Conditioning]:
    """Latents of random numbers, two rows, 77 tokens. side: in cells."""
    added = config.added
    conditioning = Conditioning(
        context=seeded((2, 77, config.context_dim or 0), dtype),
        pooled=seeded((2, added.pooled_dim), dtype) if isinstance(added, TextTime) else None,
        time_ids=torch.tensor([[256.0, 256, 0, 0, 256, 256]] * 2) if isinstance(added, TextTime) else None,
    )
    return seeded((2, config.in_channels, side, side), dtype), torch.tensor([500.0, 500.0]), conditioning


def linear_names(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of all parameters, by name."""
    return {name: tuple(one.shape) for name, one in network.named_parameters()}
