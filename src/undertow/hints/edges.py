"""Edges and lines, white on black: from a picture's own gradients, no network.

Canny is what ControlNets for it were trained on. The others stand in for maps that networks draw (HED and PiDiNet for
soft edges and scribbles, a line art network): ControlNets for those read them well, but they know no objects.
"""

import math

import numpy as np
from jaxtyping import Float32, Int16
from PIL import Image

from undertow.hints.opencv import require_opencv
from undertow.hints.picture import WIDEST, from_shares, require, to_color

LOW, HIGH = 100.0, 200.0
"""Canny's thresholds in lllyasviel's annotator and in diffusers' examples."""

BLUR = 1.0
"""Standard deviation in pixels of what is taken for noise."""

STRONG = 0.25
"""The gradient, in shares of full contrast a pixel, that is white: a sharp edge between black and white, blurred by
`BLUR`, has 0.4."""

RATIO = 1.6
"""Of the two Gaussians' widths, where their difference is nearest to a Laplacian (Marr and Hildreth 1980)."""

WORST = 4 * 255 * math.sqrt(2)
"""The largest gradient that Sobel's 3x3 kernels find in bytes."""

FULL = 1000
"""A gradient of `strong` as a whole number."""

Shares = Float32[np.ndarray, "height width"]


def canny(image: Image.Image, *, low: float = LOW, high: float = HIGH, blur: float = 0.0) -> Image.Image:
    """Edges one pixel wide (Canny 1986): `cv2.Canny` on the RGB picture, in each pixel the channel that changes most.

    low, high: gradients of Sobel's kernels on bytes. What exceeds `high` is an edge, and so is what exceeds `low` and
    is connected to one. blur: standard deviation in pixels of a blur before it. Errors: `InvalidInput`.
    """
    require("low, high", (low, high), 0 <= low <= high, "0 <= low <= high", f"{LOW:g} and {HIGH:g} suit photographs")
    require("low, high", (low, high), high <= WORST, f"at most {WORST:.0f}, the largest gradient there can be")
    return Image.fromarray(require_opencv().Canny(_blurred(to_color(image), blur), low, high))


def soft_edges(image: Image.Image, *, blur: float = BLUR, strong: float = STRONG) -> Image.Image:
    """How fast the picture changes: the length of its gradient, of the channel where it is longest. Not HED.

    blur: standard deviation in pixels. strong: the gradient that is white, in shares of full contrast a pixel. Errors:
    `InvalidInput`.
    """
    return from_shares(np.hypot(*_gradient(image, blur, strong)))


def scribble(
    image: Image.Image, *, blur: float = 3.0, strong: float = STRONG / 3, threshold: float = 0.5, width: int = 3
) -> Image.Image:
    """Strong edges as strokes: `soft_edges` thinned to their ridges, cut off, and drawn `width` pixels wide.

    threshold: of soft edges, 0 to 1, from which a stroke begins; it goes on down to half of that. Errors:
    `InvalidInput`.
    """
    require("threshold", threshold, 0 < threshold <= 1, "a share, more than 0 and at most 1")
    require("width", width, 1 <= width <= WIDEST, f"at least 1 pixel, at most {WIDEST:g}")
    cv2, (across, down) = require_opencv(), _gradient(image, blur, strong)
    # Canny's own thinning, on gradients as whole numbers.
    least, x, y = threshold * FULL, _whole(across), _whole(down)
    strokes = cv2.Canny(x, y, least / 2, least, L2gradient=True)
    return Image.fromarray(cv2.dilate(strokes, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width))))


def line_art(image: Image.Image, *, width: float = 1.0, strong: float = 0.15) -> Image.Image:
    """Lines where the picture is darker than around it: a difference of Gaussians (Marr and Hildreth 1980).

    Dark lines of a drawing and the dark sides of edges. width: standard deviation in pixels of the narrower Gaussian.
    strong: the difference that is white, in shares of full contrast. Errors: `InvalidInput`.
    """
    require("width", width, 0 < width <= WIDEST, f"a positive number of pixels, at most {WIDEST:g}")
    require("strong", strong, 0 < strong <= 1, "a share of full contrast, more than 0 and at most 1")
    values = to_color(image).astype(np.float32) / 255
    darker = _blurred(values, RATIO * width) - _blurred(values, width)
    return from_shares(darker.max(-1) / np.float32(strong))


def _gradient(image: Image.Image, blur: float, strong: float) -> tuple[Shares, Shares]:
    """Its parts across and down as shares of `strong`, of the channel in which it is longest."""
    require("strong", strong, 0 < strong <= 1, "a share of full contrast a pixel, more than 0 and at most 1")
    cv2, values = require_opencv(), _blurred(to_color(image).astype(np.float32) / 255, blur)
    # Sobel's kernels sum to 4 on each side, two pixels apart.
    across, down = (cv2.Sobel(values, cv2.CV_32F, dx, dy, scale=1 / (8 * strong)) for dx, dy in ((1, 0), (0, 1)))
    longest = np.hypot(across, down).argmax(-1)[..., None]
    return np.take_along_axis(across, longest, -1)[..., 0], np.take_along_axis(down, longest, -1)[..., 0]


def _whole(shares: Shares) -> Int16[np.ndarray, "height width"]:
    """Shares as whole numbers, `FULL` for 1."""
    return (shares * FULL).round().clip(-(2**15), 2**15 - 1).astype(np.int16)


def _blurred(values: np.ndarray, deviation: float) -> np.ndarray:
    require("blur", deviation, 0 <= deviation <= WIDEST, f"0, or a positive number of pixels, at most {WIDEST:g}")
    return values if deviation == 0 else require_opencv().GaussianBlur(values, (0, 0), deviation)
