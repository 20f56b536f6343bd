"""What the pixels of a picture mean, whatever mode Pillow has them in: color, gray, or how white a mask is.

All pictures go through these functions (image, mask, depth, control map, reference, training picture), so that one
file is the same picture everywhere. Gray pictures deeper than 8 bits are read as 16-bit levels; Pillow's conversions
would clip them at 255, and nearly all of the picture would be white.
"""

import numpy as np
from jaxtyping import UInt8, UInt16
from PIL import Image, ImageChops

from undertow.errors import InvalidInput, in_plain_words

WHITE_8, WHITE_16 = 255, 65535

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "PPM")
"""Pillow's names of the formats that are read. Others may start programs (EPS starts Ghostscript) or are decoded by
code that few people use."""

MPO = "MPO"
"""Pillow's name of a JPEG with further pictures in it, as telephones write them; opened as a JPEG."""

Levels = UInt16[np.ndarray, "height width"]
"""Gray of 16 bits: 0 is black, 65535 is white."""


def to_rgb(picture: Image.Image, name: str = "picture") -> Image.Image:
    """The picture in RGB, 8 bits; transparent parts lie on white, deep gray keeps its upper byte.

    name: of the argument, for errors. Errors: `InvalidInput` for a picture whose pixels cannot be read.
    """
    picture = loaded(picture, name)
    deep = deep_levels(picture, name)
    gray = None if deep is None else Image.fromarray(_upper_byte(deep))
    if not picture.has_transparency_data:
        return _converted(picture if gray is None else gray, "RGB", name)
    layer = _with_alpha(picture, name) if gray is None else _layer(gray, _deep_alpha(picture))
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def to_gray(picture: Image.Image, name: str = "picture") -> Image.Image:
    """The picture's luma (ITU-R 601) in mode L; where it is deep gray, its levels of 16 bits in mode F, from 0 to 255.

    Transparency is ignored. Errors: `InvalidInput` for a picture whose pixels cannot be read.
    """
    picture = loaded(picture, name)
    deep = deep_levels(picture, name)
    if deep is not None:
        return Image.fromarray(deep.astype(np.float32) / (WHITE_16 // WHITE_8))
    return _converted(_with_alpha(picture, name) if picture.has_transparency_data else picture, "L", name)


def to_mask_picture(picture: Image.Image, name: str = "mask") -> Image.Image:
    """How white a mask is: luma times alpha, as in sd-webui-controlnet (pull request 3079). A mode as `to_gray`."""
    gray, alpha = to_gray(picture, name), alpha_of(picture, name)
    if alpha is None:
        return gray
    if gray.mode == "F":
        return Image.fromarray(np.asarray(gray) * (np.asarray(alpha, dtype=np.float32) / WHITE_8))
    return ImageChops.multiply(gray, alpha)


def alpha_of(picture: Image.Image, name: str = "picture") -> Image.Image | None:
    """How opaque each pixel is, in mode L; `None` for a picture without transparency."""
    picture = loaded(picture, name)
    if not picture.has_transparency_data:
        return None
    if picture.mode.startswith("I"):
        return _deep_alpha(picture)
    return _with_alpha(picture, name).getchannel("A")


def deep_levels(picture: Image.Image, name: str = "picture") -> Levels | None:
    """The levels of a gray picture of 16 bits, 32 bits or floats; `None` for pictures of 8 bits.

    Whole numbers are levels of 16 bits. Floats are shares of white when none exceeds 1, else levels of 8 bits. Errors:
    `InvalidInput` for numbers outside these ranges, which would be clipped.
    """
    if not (picture.mode.startswith("I") or picture.mode == "F"):
        return None
    numbers = np.asarray(loaded(picture, name))
    if numbers.dtype.kind == "u" and numbers.dtype.itemsize == 2:
        return numbers.astype(np.uint16)  # in this machine's byte order
    if not np.isfinite(numbers).all():
        raise InvalidInput(name, "a picture with NaN or infinity in it", "finite levels", "fill the holes first")
    low, high = (float(numbers.min()), float(numbers.max())) if numbers.size else (0.0, 0.0)
    white = WHITE_16 if picture.mode.startswith("I") else 1 if high <= 1 else WHITE_8
    if low < 0 or high > white:
        expected = f"from 0 to {WHITE_16}" if picture.mode.startswith("I") else f"from 0 to 1, or from 0 to {WHITE_8}"
        remedy = "bring it to this range first (`undertow preprocess depth` does, for depth maps)"
        raise InvalidInput(name, f"a gray picture with levels from {low:g} to {high:g}", expected, remedy)
    return np.round(numbers.astype(np.float64) * (WHITE_16 / white)).astype(np.uint16)


def loaded(picture: Image.Image, name: str = "picture") -> Image.Image:
    """The picture with its pixels read, which Pillow does late. Errors: `InvalidInput` for damaged files, for formats
    that are not read, and for pictures without pixels."""
    require_format(picture, name)
    if 0 in picture.size:
        raise InvalidInput(name, f"{picture.width}x{picture.height} pixels", "at least one pixel")
    try:
        picture.load()
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as err:
        raise InvalidInput(name, f"not readable ({in_plain_words(err)})", "a whole picture", "save it again") from err
    return picture


def require_format(picture: Image.Image, name: str = "picture") -> None:
    """Errors: `InvalidInput` for an image that was opened from a file in another format than those that are read."""
    if picture.format is not None and picture.format not in (*FORMATS, MPO):
        raise InvalidInput(name, f"a picture in {picture.format}", f"one in {', '.join(FORMATS)}", "convert it first")


def _converted(picture: Image.Image, mode: str, name: str) -> Image.Image:
    try:
        return (picture.convert("RGB") if picture.mode == "LAB" else picture).convert(mode)  # Lab needs its profile
    except ValueError as err:
        raise InvalidInput(name, f"a picture in mode {picture.mode}", "one that becomes RGB", str(err)) from err


def _with_alpha(picture: Image.Image, name: str) -> Image.Image:
    """In RGBA. Pillow knows no direct way from premultiplied gray."""
    return _converted(picture.convert("LA") if picture.mode == "La" else picture, "RGBA", name)


def _deep_alpha(picture: Image.Image) -> Image.Image:
    """Of deep gray, whose one transparent level (PNG's tRNS) stands beside the pixels."""
    key = picture.info.get("transparency")
    return Image.fromarray(np.where(np.asarray(picture) == key, 0, WHITE_8).astype(np.uint8))


def _layer(gray: Image.Image, alpha: Image.Image) -> Image.Image:
    return Image.merge("RGBA", (gray, gray, gray, alpha))


def _upper_byte(levels: Levels) -> UInt8[np.ndarray, "height width"]:
    """As libpng and OpenCV make 8 bits of 16."""
    return (levels >> 8).astype(np.uint8)
