"""Edges and lines, white on black: from a picture's own gradients, no network.

Canny is what ControlNets for it were trained on. The others stand in for maps that networks draw (HED and PiDiNet for
soft edges and scribbles, a line art network): ControlNets for those read them well, but they know no objects.
"""

import math

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from undertow.hints.opencv import require_opencv
from undertow.hints.picture import from_shares, require, to_color

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
    return from_shares(_edges(image, blur, strong))


def scribble(
    image: Image.Image, *, blur: float = 3.0, strong: float = STRONG / 3, threshold: float = 0.5, width: int = 3
) -> Image.Image:
    """Strong edges as strokes: the ridges of `soft_edges` above a threshold, drawn `width` pixels wide, without shades.

    threshold: of soft edges, 0 to 1. Errors: `InvalidInput`.
    """
    require("threshold", threshold, 0 < threshold <= 1, "a share, more than 0 and at most 1")
    require("width", width, width >= 1, "at least 1 pixel")
    cv2, edges = require_opencv(), _edges(image, blur, strong)
    strokes = ((edges >= threshold) & _ridges(edges)).astype(np.uint8) * 255
    return Image.fromarray(cv2.dilate(strokes, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width))))


def line_art(image: Image.Image, *, width: float = 1.0, strong: float = 0.15) -> Image.Image:
    """Lines where the picture is darker than around it: a difference of Gaussians (Marr and Hildreth 1980).

    Dark lines of a drawing and the dark sides of edges. width: standard deviation in pixels of the narrower Gaussian.
    strong: the difference that is white, in shares of full contrast. Errors: `InvalidInput`.
    """
    require("width", width, width > 0, "a positive number of pixels")
    require("strong", strong, 0 < strong <= 1, "a share of full contrast, more than 0 and at most 1")
    values = to_color(image).astype(np.float32) / 255
    darker = _blurred(values, RATIO * width) - _blurred(values, width)
    return from_shares(darker.max(-1) / np.float32(strong))


def _edges(image: Image.Image, blur: float, strong: float) -> Shares:
    """The length of the gradient as shares of `strong`, also above 1."""
    require("strong", strong, 0 < strong <= 1, "a share of full contrast a pixel, more than 0 and at most 1")
    cv2, values = require_opencv(), _blurred(to_color(image).astype(np.float32) / 255, blur)
    # Sobel's kernels sum to 4 on each side, two pixels apart.
    across, down = (cv2.Sobel(values, cv2.CV_32F, dx, dy, scale=1 / 8) for dx, dy in ((1, 0), (0, 1)))
    return np.hypot(across, down).max(-1) / np.float32(strong)


def _ridges(edges: Shares) -> UInt8[np.ndarray, "height width"]:
    """1 where a value is the largest of the three that lie in one of four directions: edges thinned to their middle."""
    cv2 = require_opencv()
    smooth = cv2.GaussianBlur(edges, (0, 0), 1.0)
    lines = [np.zeros((3, 3), np.uint8) for _ in range(4)]
    lines[0][1, :] = lines[1][:, 1] = 1
    np.fill_diagonal(lines[2], 1)
    np.fill_diagonal(np.fliplr(lines[3]), 1)
    # Flat parts are their own neighborhood's largest in all directions; a ridge falls off in at least one.
    falls = [smooth > cv2.erode(smooth, line) for line in lines]
    peaks = [smooth == cv2.dilate(smooth, line) for line in lines]
    return np.any([peak & fall for peak, fall in zip(peaks, falls, strict=True)], axis=0).astype(np.uint8)


def _blurred(values: np.ndarray, deviation: float) -> np.ndarray:
    require("blur", deviation, 0 <= deviation < math.inf, "0, or a positive number of pixels")
    return values if deviation == 0 else require_opencv().GaussianBlur(values, (0, 0), deviation)
