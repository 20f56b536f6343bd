"""Refuses pixels and latents that an autoencoder cannot use, before any work."""

import torch
from torch import Tensor

from undertow.errors import InvalidInput
from undertow.vae.config import VAEConfig


def check_pixels(config: VAEConfig, pixels: Tensor) -> None:
    """Rank, channels, sides that are multiples of the factor, finite values. Errors: `InvalidInput`."""
    _check_map("pixels", pixels, config.in_channels, "pictures are RGB in [-1, 1], channels before height")
    height, width, factor = pixels.shape[2], pixels.shape[3], config.factor
    if height % factor or width % factor:
        near = f"{_nearest(height, factor)}x{_nearest(width, factor)}"
        raise InvalidInput(
            "pixels", f"{height}x{width}", f"sides that are multiples of {factor}", f"resize or crop to {near}"
        )
    _check_finite("pixels", pixels)


def check_latents(config: VAEConfig, latents: Tensor) -> None:
    """Rank, channels, finite values. Errors: `InvalidInput`."""
    _check_map("latents", latents, config.latent_channels, "check which autoencoder this is, and the order of axes")
    _check_finite("latents", latents)


def check_dtype(name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    """The network's own type: nothing is cast in silence. Errors: `InvalidInput`."""
    if tensor.dtype != dtype:
        raise InvalidInput(name, tensor.dtype, f"the network's type {dtype}", f"use {name}.to({dtype})")


def _check_map(name: str, tensor: Tensor, channels: int, hint: str) -> None:
    shape = list(tensor.shape)
    if tensor.ndim != 4:
        raise InvalidInput(name, shape, "rank 4 [batch, channels, height, width]", "add the batch axis")
    if tensor.shape[1] != channels:
        raise InvalidInput(name, shape, f"{channels} channels at axis 1", hint)
    if 0 in shape:
        raise InvalidInput(name, shape, "at least one row and one cell")
    if not tensor.is_floating_point():
        raise InvalidInput(name, tensor.dtype, "floating point numbers", "scale bytes by x / 127.5 - 1")


def _check_finite(name: str, tensor: Tensor) -> None:
    if torch.compiler.is_compiling():
        return
    low, high = tensor.detach().aminmax()
    if not (torch.isfinite(low) and torch.isfinite(high)):
        bad = int((~torch.isfinite(tensor)).sum())
        raise InvalidInput(
            name, f"non-finite in {bad} of {tensor.numel()} values", "finite numbers", "look at what made it"
        )


def _nearest(size: int, factor: int) -> int:
    return max(factor, round(size / factor) * factor)
