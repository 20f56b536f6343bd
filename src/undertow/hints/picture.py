"""Pictures as arrays, and back: what every preprocessor begins and ends with."""

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from undertow.errors import InvalidInput
from undertow.pictures.modes import to_rgb

WIDEST = 1000.0
"""Pixels of a blur's standard deviation, and of a line: beyond, OpenCV's kernels outgrow every picture, and its
integers at last."""


def to_color(image: Image.Image) -> UInt8[np.ndarray, "height width 3"]:
    """RGB; transparent parts lie on white, 16-bit gray is scaled to 8 bits. Errors: `InvalidInput` for no pixels."""
    return np.asarray(to_rgb(image, "image"))


def to_gray(image: Image.Image) -> UInt8[np.ndarray, "height width"]:
    """Luma (ITU-R 601) of `to_color`."""
    return np.asarray(Image.fromarray(to_color(image)).convert("L"))


def from_shares(values: Float32[np.ndarray, "height width"]) -> Image.Image:
    """0 as black and 1 as white, rounded to bytes; what lies outside is clamped."""
    return Image.fromarray((values.clip(0, 1) * 255).round().astype(np.uint8))


def require(argument: str, value: object, holds: bool, expected: str, remedy: str = "") -> None:
    """Errors: `InvalidInput` when it does not hold."""
    if not holds:
        raise InvalidInput(argument, value, expected, remedy)
