"""How well one edge map agrees with another."""

import math

import numpy as np
from jaxtyping import Bool
from PIL import Image
from scipy.ndimage import distance_transform_edt

from undertow.errors import InvalidInput
from undertow.hints.picture import require, to_gray

EDGE = 128
"""From this brightness on a pixel is an edge."""


def edge_f1(edges: Image.Image, reference: Image.Image, tolerance: float = 1.0) -> float:
    """The harmonic mean of precision and recall of edge pixels: 1 for equal maps, and for two that are empty.

    A pixel of `edges` is right when an edge of `reference` lies within `tolerance` pixels, and an edge of `reference`
    is found when one of `edges` does: the measure of the Berkeley benchmark (Martin, Fowlkes and Malik 2004) without
    its assignment of pixels one to one, so that a thick line is not punished beyond the tolerance. Errors:
    `InvalidInput`.
    """
    require("tolerance", tolerance, 0 <= tolerance < math.inf, "0 or more pixels")
    if edges.size != reference.size:
        raise InvalidInput("edges", edges.size, f"the size of the reference, {reference.size}", "resize one of them")
    found, wanted = to_gray(edges) >= EDGE, to_gray(reference) >= EDGE
    if not found.any() or not wanted.any():
        return float(found.any() == wanted.any())
    precision = _near(wanted, tolerance)[found].mean()
    recall = _near(found, tolerance)[wanted].mean()
    return 0.0 if precision + recall == 0 else float(2 * precision * recall / (precision + recall))


def _near(edges: Bool[np.ndarray, "height width"], tolerance: float) -> Bool[np.ndarray, "height width"]:
    """Where an edge lies within the tolerance."""
    distance = distance_transform_edt(~edges)
    assert isinstance(distance, np.ndarray)
    return distance <= tolerance
