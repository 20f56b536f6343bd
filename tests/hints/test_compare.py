"""The F1 of edge maps, on maps whose precision and recall are counted by hand."""

import numpy as np
import pytest
from PIL import Image

from undertow.errors import InvalidInput
from undertow.hints.compare import edge_f1

SIDE = 16


def lines(*columns: int) -> Image.Image:
    pixels = np.zeros((SIDE, SIDE), np.uint8)
    pixels[:, list(columns)] = 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    ("edges", "reference", "tolerance", "expected"),
    [
        (lines(4), lines(4), 0, 1.0),
        (lines(4), lines(5), 0, 0.0),
        (lines(4), lines(5), 1, 1.0),
        (lines(4), lines(6), 1, 0.0),
        (lines(4, 12), lines(4), 1, 2 / 3),  # precision 1/2, recall 1
        (lines(4), lines(4, 8, 12), 1, 1 / 2),  # precision 1, recall 1/3
        (lines(), lines(), 1, 1.0),
        (lines(), lines(4), 1, 0.0),
        (lines(4), lines(), 1, 0.0),
    ],
)
def test_precision_and_recall(edges, reference, tolerance, expected):
    assert edge_f1(edges, reference, tolerance) == pytest.approx(expected)
    assert edge_f1(reference, edges, tolerance) == pytest.approx(expected)


def test_distance_is_euclidean():
    one, other = np.zeros((SIDE, SIDE), np.uint8), np.zeros((SIDE, SIDE), np.uint8)
    one[4, 4], other[5, 5] = 255, 255
    maps = Image.fromarray(one), Image.fromarray(other)
    assert edge_f1(*maps, tolerance=1) == 0
    assert edge_f1(*maps, tolerance=1.5) == 1


def test_a_pixel_is_within_one_of_its_neighbours_unless_told_otherwise():
    assert edge_f1(lines(4), lines(5)) == 1
    assert edge_f1(lines(4), lines(6)) == 0


@pytest.mark.parametrize(("brightness", "agreement"), [(127, 0.0), (128, 1.0)])
def test_half_of_white_is_an_edge(brightness, agreement):
    half = Image.fromarray(np.asarray(lines(4)) // 255 * np.uint8(brightness))
    assert edge_f1(half, lines(4)) == edge_f1(lines(4), half) == agreement


def test_maps_of_unlike_sizes_and_bad_tolerances_are_refused():
    with pytest.raises(InvalidInput, match="the size of the reference"):
        edge_f1(lines(4), lines(4).resize((8, 8)))
    with pytest.raises(InvalidInput, match="tolerance"):
        edge_f1(lines(4), lines(4), tolerance=-1)
    with pytest.raises(InvalidInput, match="tolerance"):
        edge_f1(lines(4), lines(4), tolerance=float("inf"))
