"""Edge maps: golden against OpenCV, and by what they must show on drawings whose edges are known."""

import sys

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw

from undertow.errors import InvalidInput, MissingDependency
from undertow.hints.compare import edge_f1
from undertow.hints.edges import canny, line_art, scribble, soft_edges
from undertow.hints.opencv import require_opencv


@pytest.fixture
def drawing() -> Image.Image:
    """A red disc and a blue box on white, of equal brightness inside and out where they touch."""
    image = Image.new("RGB", (80, 64), "white")
    pen = ImageDraw.Draw(image)
    pen.ellipse((8, 8, 40, 40), fill=(200, 30, 30))
    pen.rectangle((36, 20, 70, 55), fill=(40, 40, 220))
    return image


def outline(size, box, width=1) -> Image.Image:
    image = Image.new("L", size)
    ImageDraw.Draw(image).rectangle(box, outline=255, width=width)
    return image


def bright(image) -> np.ndarray:
    return np.asarray(image) > 127


@pytest.mark.parametrize(("low", "high"), [(100, 200), (20, 60), (30.5, 300)])
def test_canny_is_that_of_opencv(low, high):
    noise = np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8)
    picture = cv2.GaussianBlur(noise, (0, 0), 2)
    found = np.asarray(canny(Image.fromarray(picture), low=low, high=high))
    assert (found == cv2.Canny(picture, low, high)).all()


def test_canny_sees_edges_between_colors_of_one_brightness():
    picture = Image.new("RGB", (32, 32), (200, 0, 0))
    picture.paste((0, 102, 0), (16, 0, 32, 32))
    assert len(np.unique(np.asarray(picture.convert("L")))) == 1
    assert bright(canny(picture)).any(axis=1).all()


def test_canny_of_a_blurred_picture_has_less_of_its_noise(drawing):
    noise = np.random.default_rng(1).normal(0, 40, (64, 80, 3))
    noisy = Image.fromarray((np.asarray(drawing) + noise).clip(0, 255).astype(np.uint8))
    reference = canny(drawing)
    assert edge_f1(canny(noisy, blur=1.5), reference) > edge_f1(canny(noisy), reference) + 0.1


def test_a_soft_edge_is_brightest_on_the_edge_and_as_bright_as_the_contrast():
    picture = Image.new("L", (32, 32))
    picture.paste(60, (16, 0, 32, 32))
    row = np.asarray(soft_edges(picture, blur=0, strong=1.0))[16]
    # A step between two pixels is a change of half of it in each of them.
    assert row[15] == row[16] == 30
    assert row[:14].max() == row[18:].max() == 0
    assert np.asarray(soft_edges(picture, blur=0, strong=0.1))[16, 15] == 255


def test_scribbles_are_strokes_of_the_width_asked_for_and_nothing_between():
    picture = Image.new("L", (96, 96))
    picture.paste(255, (30, 30, 70, 70))
    strokes = {width: np.asarray(scribble(picture, width=width)) for width in (1, 5)}
    assert set(np.unique(strokes[5])) == {0, 255}
    for width, image in strokes.items():
        across = (image[50] > 0).sum()
        # Both sides of the box; a ridge may be two pixels wide, as an edge between two pixels is.
        assert 2 * width <= across <= 2 * (width + 1)
    assert edge_f1(Image.fromarray(strokes[1]), outline((96, 96), (30, 30, 69, 69)), tolerance=3) > 0.9
    assert not np.asarray(scribble(Image.new("RGB", (40, 40), "orange"))).any()


def test_line_art_finds_dark_lines_and_no_bright_ones():
    picture = Image.new("L", (64, 64), 128)
    picture.paste(40, (20, 0, 22, 64))
    picture.paste(216, (44, 0, 46, 64))
    row = np.asarray(line_art(picture))[32].astype(int)
    assert row[20:22].min() > 100
    # Beside a bright line it is darker than around, by less than the line is bright.
    assert row[44:46].max() == 0
    assert row[40:50].max() < row[20:22].min()


@pytest.mark.parametrize("make", [canny, soft_edges, scribble, line_art])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK", "I;16", "1"])
def test_every_mode_is_read_and_the_map_has_the_size_of_the_picture(make, mode, drawing):
    source = drawing.convert("L").convert("I;16") if mode == "I;16" else drawing.convert(mode)
    made = make(source)
    assert (made.mode, made.size) == ("L", drawing.size)


def test_transparent_parts_lie_on_white(drawing):
    layer = Image.new("RGBA", drawing.size)
    layer.paste(drawing, mask=Image.fromarray(255 - 255 * (np.asarray(drawing).min(-1) == 255).astype(np.uint8)))
    assert np.asarray(layer)[0, 0, 3] == 0
    assert (np.asarray(canny(layer)) == np.asarray(canny(drawing))).all()


@pytest.mark.parametrize(
    ("make", "changes", "said"),
    [
        (canny, {"low": 200, "high": 100}, "low <= high"),
        (canny, {"low": -1}, "low <= high"),
        (canny, {"low": float("nan")}, "low <= high"),
        (canny, {"high": 2000}, "1442"),
        (canny, {"blur": -1}, "blur is -1"),
        (soft_edges, {"blur": float("inf")}, "blur is inf"),
        (soft_edges, {"strong": 0}, "strong is 0"),
        (scribble, {"threshold": 0}, "threshold is 0"),
        (scribble, {"width": 0}, "at least 1 pixel"),
        (line_art, {"width": 0}, "width is 0"),
    ],
)
def test_bad_settings_are_refused(make, changes, said, drawing):
    with pytest.raises(InvalidInput, match=said):
        make(drawing, **changes)


def test_a_picture_without_pixels_is_refused():
    with pytest.raises(InvalidInput, match="at least one pixel"):
        canny(Image.new("RGB", (0, 4)))


def test_without_opencv_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingDependency, match=r"undertow\[hints\]"):
        require_opencv()
