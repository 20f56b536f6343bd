"""Pictures on their way in and out: PIL images, pixels in [-1, 1], masks in [0, 1]."""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

Size = tuple[int, int]
"""Height and width in pixels."""

BLACK, WHITE = 0, 255


def to_pixels(picture: Image.Image, size: Size) -> Float[Tensor, "1 3 height width"]:
    """A picture as a network sees it: RGB in [-1, 1], resized by Lanczos where its size differs, transparency on
    white."""
    if "A" in picture.getbands() or "transparency" in picture.info:
        shown = Image.new("RGBA", picture.size, "white")
        shown.alpha_composite(picture.convert("RGBA"))
        picture = shown
    resized = _resized(picture.convert("RGB"), size)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None].float() / 127.5 - 1


def to_mask(picture: Image.Image, size: Size) -> Float[Tensor, "1 1 height width"]:
    """A mask in [0, 1]: 1 where it is white."""
    resized = _resized(picture.convert("L"), size)
    return torch.from_numpy(np.array(resized))[None, None].float() / WHITE


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
    return Image.composite(drawn, _resized(original.convert("RGB"), size), _resized(mask.convert("L"), size))


def _resized(picture: Image.Image, size: Size) -> Image.Image:
    height, width = size
    return picture if picture.size == (width, height) else picture.resize((width, height), Image.Resampling.LANCZOS)


def from_uint8(pixels: UInt8[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Bytes as float32 in [-1, 1]."""
    return pixels.to(torch.float32) / 127.5 - 1


def to_uint8(pixels: Float[Tensor, "..."]) -> UInt8[Tensor, "..."]:
    """Numbers in [-1, 1] as bytes, rounded to nearest; what lies outside is clamped."""
    return ((pixels.to(torch.float32) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
