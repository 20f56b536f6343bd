"""Latents between an autoencoder and a U-Net (R153), and pictures of them without the decoder."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from undertow.errors import InvalidInput
from undertow.shapes import Latents
from undertow.vae.latent_space import LatentSpace


def latents_to_model(space: LatentSpace, latents: Latents) -> Latents:
    """What the encoder made, as the U-Net wants it."""
    _check(space, latents)
    return ((latents - _offset(space, latents)) * (space.scale / _deviation(space, latents))).to(latents.dtype)


def latents_from_model(space: LatentSpace, latents: Latents) -> Latents:
    """What the U-Net made, as the decoder wants it."""
    _check(space, latents)
    return (latents * (_deviation(space, latents) / space.scale) + _offset(space, latents)).to(latents.dtype)


def latents_as_picture(space: LatentSpace, latents: Latents) -> UInt8[Tensor, "batch height width 3"]:
    """A small picture of what the U-Net's (denoised) latents show, one pixel per cell, at the cost of one matrix
    product; NaN is black. Errors: `InvalidInput` when this space has no factors."""
    _check(space, latents)
    if space.preview_factors is None:
        raise InvalidInput(
            "preview", "without factors", "a latent space with preview factors", "decode with the autoencoder"
        )
    weight = torch.tensor(space.preview_factors.weight, device=latents.device)
    bias = torch.tensor(space.preview_factors.bias, device=latents.device)
    rgb = latents.float().permute(0, 2, 3, 1) @ weight + bias
    return ((rgb + 1) * 127.5).nan_to_num(nan=0.0).clamp(0, 255).round().to(torch.uint8)


def _offset(space: LatentSpace, like: Tensor) -> Float[Tensor, "1 channels 1 1"]:
    return _per_channel((space.shift,) * space.channels if space.mean is None else space.mean, like)


def _deviation(space: LatentSpace, like: Tensor) -> Float[Tensor, "1 channels 1 1"]:
    return _per_channel((1.0,) * space.channels if space.std is None else space.std, like)


def _per_channel(values: tuple[float, ...], like: Tensor) -> Float[Tensor, "1 channels 1 1"]:
    """In float32 or better, so that only the result is rounded: 0.18215 itself is off by 0.1 % in bfloat16."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    return torch.tensor(values, dtype=dtype, device=like.device)[None, :, None, None]


def _check(space: LatentSpace, latents: Tensor) -> None:
    if latents.ndim != 4 or latents.shape[1] != space.channels:
        raise InvalidInput(
            "latents",
            list(latents.shape),
            f"[batch, {space.channels}, height, width]",
            "use the latent space of this model's family",
        )
