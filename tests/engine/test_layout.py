"""How a canvas is shown to a network, cell by cell."""

import pytest
import torch
from PIL import Image

from undertow import GenerationRequest, InvalidInput, Views
from undertow.engine.layout import MARGIN, Layout, box_mask
from undertow.engine.picture_size import picture_size
from undertow.engine.request import Axes
from undertow.engine.sizes import layout_for

CANVAS = torch.arange(12.0).reshape(1, 1, 3, 4)


@pytest.mark.parametrize(("axes", "down", "across"), [("none", 0, 0), ("y", 1, 0), ("x", 0, 1), ("both", 1, 1)])
def test_a_seamless_canvas_is_continued_by_its_other_edge(axes: Axes, down: int, across: int):
    (seen,) = Layout(size=(3, 4), window=(3, 4), seamless=axes, margin=1).split_tiles(CANVAS)
    assert seen.shape == (1, 1, 3 + 2 * down, 4 + 2 * across)
    rows = [2, 0, 1, 2, 0] if down else [0, 1, 2]
    columns = [3, 0, 1, 2, 3, 0] if across else [0, 1, 2, 3]
    assert torch.equal(seen, CANVAS[:, :, rows][..., columns])


def test_a_margin_is_no_longer_than_the_canvas():
    (seen,) = Layout(size=(3, 4), window=(3, 4), seamless="both", margin=MARGIN).split_tiles(CANVAS)
    assert seen.shape == (1, 1, 9, 12)


@pytest.mark.parametrize(
    ("overlap", "starts"), [(0.0, [0, 12, 24]), (0.5, [0, 8, 16, 24]), (0.75, [0, 4, 8, 12, 16, 20, 24])]
)
def test_neighbors_overlap_by_their_share(overlap: float, starts: list[int]):
    assert Layout(size=(16, 40), window=(16, 16), overlap=overlap).windows == [(0, left) for left in starts]


def test_estimates_of_windows_are_averaged_where_they_overlap():
    layout = Layout(size=(1, 6), window=(1, 4), overlap=0.5)
    assert layout.windows == [(0, 0), (0, 2)]
    parts = [torch.full((1, 1, 1, 4), value) for value in (1.0, 3.0)]
    assert layout.merge_tiles(parts).flatten().tolist() == [1, 1, 2, 2, 3, 3]


def test_the_same_canvas_in_smaller_cells():
    layout = Layout(size=(9, 8), window=(9, 6), overlap=0.25, seamless="x", margin=2)
    assert layout.enlarged(3) == Layout(size=(27, 24), window=(27, 18), overlap=0.25, seamless="x", margin=6)


@pytest.mark.parametrize(
    ("box", "rows", "columns"),
    [
        ((0, 0, 1, 1), range(4), range(8)),
        ((0, 0.5, 0.25, 1), range(2, 4), range(2)),
        ((0.5, 0.25, 1, 0.75), range(1, 3), range(4, 8)),
        ((0.99, 0, 1, 0.01), range(1), range(7, 8)),  # at least one cell
        ((0, 0.99, 0.01, 1), range(3, 4), range(1)),
    ],
)
def test_the_mask_of_a_box(box: tuple[float, float, float, float], rows: range, columns: range):
    expected = torch.zeros(1, 1, 4, 8)
    expected[:, :, rows.start : rows.stop, columns.start : columns.stop] = 1
    assert torch.equal(box_mask(box, (4, 8)), expected)


def test_views_are_counted_in_cells():
    request = GenerationRequest(prompt="a", views=Views(window=64, overlap=0.25), seamless="y")
    assert layout_for(request, (16, 4), 10, 8) == Layout(size=(16, 4), window=(8, 4), overlap=0.25, seamless="y")
    trained = GenerationRequest(prompt="a", views=Views())
    assert layout_for(trained, (16, 40), 10, 8) == Layout(size=(16, 40), window=(10, 10), overlap=0.5)


@pytest.mark.parametrize("window", [4, 12])
def test_views_of_part_of_a_cell_are_refused(window: int):
    with pytest.raises(InvalidInput, match="a multiple of 8 pixels"):
        layout_for(GenerationRequest(prompt="a", views=Views(window=window)), (16, 16), 10, 8)


def test_a_picture_smaller_than_a_cell_is_drawn_as_one():
    request = GenerationRequest(prompt="a", image=Image.new("RGB", (5, 3)))
    assert picture_size(request, 8, 8) == ((8, 8), "the image is 5x3; drawn at 8x8")
    wide = GenerationRequest(prompt="a", image=Image.new("RGB", (39, 20)))
    assert picture_size(wide, 8, 8) == ((16, 32), "the image is 39x20; drawn at 32x16")
    assert picture_size(GenerationRequest(prompt="a"), 9, 8) == ((72, 72), None)


@pytest.mark.parametrize(
    ("size", "nearest"), [((4, 8), "8x8"), ((0, 8), "8x8"), ((16, 27), "24x16"), ((21, 8), "8x24")]
)
def test_a_size_of_part_of_a_cell_is_refused_with_the_nearest(size: tuple[int, int], nearest: str):
    with pytest.raises(InvalidInput, match=f"the nearest is {nearest}"):
        picture_size(GenerationRequest(prompt="a", size=size), 8, 8)
