"""Pictures on their way in and out: PIL images, pixels in [-1, 1], masks in [0, 1]."""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from undertow.errors import InvalidInput
from undertow.pictures.modes import alpha_of, to_gray, to_mask_picture, to_rgb

Size = tuple[int, int]
"""Height and width in pixels."""

BLACK, WHITE = 0, 255


def to_pixels(picture: Image.Image, size: Size) -> Float[Tensor, "1 3 height width"]:
    """A picture as a network sees it: RGB in [-1, 1], resized by Lanczos where its size differs, transparency on
    white. Errors: `InvalidInput` for a picture that cannot be read."""
    resized = _resized(to_rgb(picture), size)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None].float() / 127.5 - 1


def to_mask(picture: Image.Image, size: Size) -> Float[Tensor, "1 1 height width"]:
    """A mask in [0, 1]: 1 where it is white and opaque. Errors: `InvalidInput` for a picture that cannot be read."""
    return _shares(to_mask_picture(picture), size)


def to_map(picture: Image.Image, size: Size) -> Float[Tensor, "1 1 height width"]:
    """A map of one number for each pixel, such as depths, in [0, 1]: 1 where it is white. Errors: `InvalidInput` for a
    picture that cannot be read, or has no number in some pixels because they are transparent."""
    alpha = alpha_of(picture)
    if alpha is not None and np.asarray(alpha).min() < WHITE:
        raise InvalidInput("map", "partly transparent", "a number in every pixel", "fill the holes first")
    return _shares(to_gray(picture), size)


def mask_for_latents(mask: Float[Tensor, "1 1 height width"], factor: int) -> Float[Tensor, "1 1 rows columns"]:
    """How much of each cell is to be drawn anew: the mean over its pixels."""
    return F.avg_pool2d(mask, factor)


def to_images(pixels: Float[Tensor, "batch 3 height width"]) -> list[Image.Image]:
    """Pictures from pixels in [-1, 1]: (x + 1) / 2, clamped and rounded to 8 bits, as all peers do (R154)."""
    levels = (pixels.float() / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
    return [Image.fromarray(picture.permute(1, 2, 0).cpu().numpy()) for picture in levels]


def pasted(drawn: Image.Image, original: Image.Image, mask: Image.Image) -> Image.Image:
    """`drawn` where the mask is white, `original` where it is black, their mixture in between."""
    size = (drawn.height, drawn.width)
    white = to_mask_picture(mask)
    if white.mode == "F":
        white = Image.fromarray(np.asarray(white).round().astype(np.uint8))
    return Image.composite(drawn, _resized(to_rgb(original), size), _resized(white, size))


def _shares(gray: Image.Image, size: Size) -> Float[Tensor, "1 1 height width"]:
    """Of white. Lanczos overshoots, which only bytes hold back by themselves."""
    return (torch.from_numpy(np.array(_resized(gray, size)))[None, None].float() / WHITE).clamp(0, 1)


def _resized(picture: Image.Image, size: Size) -> Image.Image:
    height, width = size
    return picture if picture.size == (width, height) else picture.resize((width, height), Image.Resampling.LANCZOS)


def from_uint8(pixels: UInt8[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Bytes as float32 in [-1, 1]."""
    return pixels.to(torch.float32) / 127.5 - 1


def to_uint8(pixels: Float[Tensor, "..."]) -> UInt8[Tensor, "..."]:
    """Numbers in [-1, 1] as bytes, rounded to nearest; what lies outside is clamped."""
    return ((pixels.to(torch.float32) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
