"""Depth maps that a user brings, as depth ControlNets and depth models read them: near is white, far is black."""

import numpy as np
from jaxtyping import Float32
from PIL import Image

from undertow.errors import InvalidInput
from undertow.hints.picture import from_shares, require
from undertow.pictures.modes import WHITE_8, alpha_of, loaded, to_rgb

LEVELS = 16
"""Fewer different values than these are no depth map, but a mask or labels."""


def depth(
    image: Image.Image, *, inverted: bool = False, low: float | None = None, high: float | None = None
) -> Image.Image:
    """A depth map of any range as bytes, near white and far black: like MiDaS' maps, on which ControlNets were trained.

    image: gray, of 8 or 16 bits, whole numbers or floats; colored maps cannot be read back into depths. inverted: its
    larger values are farther, as those of cameras and renderers are. low, high: the map's values that become the ends
    of the range, beyond which it is cut off; its own smallest and largest values when `None`. Errors: `InvalidInput`.
    """
    values = _values(image)
    if not np.isfinite(values).all():
        raise InvalidInput("image", "a map with NaN or infinity in it", "finite depths", "fill the holes first")
    least, most = (float(values.min()) if low is None else low, float(values.max()) if high is None else high)
    if not least < most:
        own = low is None and high is None
        raise InvalidInput(
            "image" if own else "low, high",
            f"{least:g} everywhere" if own else (least, most),
            "a map with different depths" if own else "low < high",
            "" if own else f"the map's values go from {values.min():g} to {values.max():g}",
        )
    shares = (values - np.float32(least)) / np.float32(most - least)
    return from_shares(1 - shares if inverted else shares)


def levels(image: Image.Image) -> int:
    """How many different values a map has: few of them say that it is none. Errors: `InvalidInput`."""
    return len(np.unique(_values(image)))


def _values(image: Image.Image) -> Float32[np.ndarray, "height width"]:
    require("image", image.width * image.height, image.width * image.height > 0, "a map with pixels")
    alpha = alpha_of(image, "image")
    if alpha is not None and np.asarray(alpha).min() < WHITE_8:
        raise InvalidInput("image", "partly transparent", "a depth in every pixel", "fill the holes first")
    if image.mode in ("L", "F") or image.mode.startswith("I"):
        return np.asarray(loaded(image, "image")).astype(np.float32)
    colors = np.asarray(to_rgb(image, "image"))
    if (colors[..., 0] != colors[..., 1]).any() or (colors[..., 0] != colors[..., 2]).any():
        raise InvalidInput(
            "image", f"a colored picture ({image.mode})", "a gray map", "save the depths themselves, not a color scale"
        )
    return colors[..., 0].astype(np.float32)
