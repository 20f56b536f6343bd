"""Pictures with their detail taken away, for ControlNets that invent it anew (blur, tile)."""

import math

from PIL import Image

from undertow.hints.opencv import require_opencv
from undertow.hints.picture import WIDEST, require, to_color


def blur(image: Image.Image, *, radius: float = 8.0) -> Image.Image:
    """Blurred by a Gaussian. radius: its standard deviation in pixels. Errors: `InvalidInput`."""
    require("radius", radius, 0 < radius <= WIDEST, f"a positive number of pixels, at most {WIDEST:g}")
    return Image.fromarray(require_opencv().GaussianBlur(to_color(image), (0, 0), radius))


def tile(image: Image.Image, *, factor: float = 4.0) -> Image.Image:
    """The picture as if it had `factor` times fewer pixels to a side, at its own size: averaged down, smoothly back up.

    What tile ControlNets read (lllyasviel's "tile_resample"). factor: 1 leaves it as it is. Errors: `InvalidInput`.
    """
    require("factor", factor, 1 <= factor < math.inf, "at least 1")
    color = Image.fromarray(to_color(image))
    small = (max(1, round(color.width / factor)), max(1, round(color.height / factor)))
    return color.resize(small, Image.Resampling.BOX).resize(color.size, Image.Resampling.BICUBIC)
