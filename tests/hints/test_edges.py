"""Edge maps: golden against OpenCV, and by what they must show on drawings whose edges are known."""

import sys
from statistics import NormalDist

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter, sobel

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


ROUNDED = 1
"""Bytes: OpenCV computes in float32 and cuts Gaussians off a little later than scipy."""


@pytest.fixture
def photo() -> Image.Image:
    """Smooth colors that differ between channels, like those of a photograph, and a dark box with a paler one."""
    noise = np.random.default_rng(0).normal(0, 1, (40, 56, 3))
    smooth = gaussian_filter(noise, (2, 2, 0), mode="wrap")
    image = Image.fromarray((128 + 100 * smooth / np.abs(smooth).max()).astype(np.uint8))
    image.paste((20, 30, 10), (8, 8, 24, 32))
    image.paste((70, 90, 60), (30, 10, 50, 30))
    return image


def blurred(image: Image.Image, deviation: float) -> np.ndarray:
    """As shares, in float64."""
    values = np.asarray(image.convert("RGB")) / 255
    return values if deviation == 0 else gaussian_filter(values, (deviation, deviation, 0), mode="mirror", truncate=4.5)


@pytest.mark.parametrize(("blur", "strong"), [(0.0, 1.0), (0.0, 0.1), (1.0, 0.25), (2.0, 0.02)])
def test_soft_edges_are_the_longest_gradient_of_a_channel(blur, strong, photo):
    """Sobel's kernels on shares, over their sum of 8: contrast a pixel."""
    values = blurred(photo, blur)
    across, down = (
        np.stack([sobel(values[..., i], axis=axis, mode="mirror") for i in range(3)], axis=-1) / 8 for axis in (1, 0)
    )
    expected = (np.hypot(across, down).max(-1) / strong).clip(0, 1) * 255
    assert np.abs(np.asarray(soft_edges(photo, blur=blur, strong=strong)) - expected).max() <= ROUNDED
    assert expected.max() > 20


@pytest.mark.parametrize(("width", "strong"), [(1.0, 0.15), (2.5, 0.15), (1.0, 0.02), (0.6, 1.0)])
def test_line_art_is_the_largest_difference_of_gaussians_of_a_channel(width, strong, photo):
    """1.6 is their ratio (Marr and Hildreth 1980): what the wider has more than the narrower is dark around bright."""
    difference = blurred(photo, 1.6 * width) - blurred(photo, width)
    expected = (difference.max(-1) / strong).clip(0, 1) * 255
    assert np.abs(np.asarray(line_art(photo, width=width, strong=strong)) - expected).max() <= ROUNDED
    assert expected.max() > 5


@pytest.mark.parametrize(
    ("make", "defaults", "others"),
    [
        (canny, {"low": 100, "high": 200, "blur": 0}, {"low": 20, "high": 120, "blur": 1}),
        (soft_edges, {"blur": 1.0, "strong": 0.25}, {"blur": 2.0, "strong": 0.1}),
        (
            scribble,
            {"blur": 3.0, "strong": 0.25 / 3, "threshold": 0.5, "width": 3},
            {"blur": 2.0, "strong": 0.05, "threshold": 0.2, "width": 4},
        ),
        (line_art, {"width": 1.0, "strong": 0.15}, {"width": 2.0, "strong": 0.1}),
    ],
)
def test_the_usual_settings_are_those_that_are_written_and_each_of_them_acts(make, defaults, others, photo):
    """Canny's are those of lllyasviel's annotator, on whose maps ControlNets were trained."""
    usual = np.asarray(make(photo))
    assert (usual == np.asarray(make(photo, **defaults))).all()
    for option, value in others.items():
        assert (usual != np.asarray(make(photo, **{option: value}))).any(), option


@pytest.mark.parametrize("blur", [0.7, 2.0])
def test_canny_s_blur_is_opencv_s_of_the_bytes(blur, photo):
    pixels = np.asarray(photo)
    expected = cv2.Canny(cv2.GaussianBlur(pixels, (0, 0), blur), 20, 60)
    assert (np.asarray(canny(photo, low=20, high=60, blur=blur)) == expected).all()
    assert expected.any()


SIDE = 96


def step(*rows: tuple[slice, float]) -> Image.Image:
    """An upright edge in the middle: in each of these rows, of this contrast; elsewhere none."""
    pixels = np.zeros((SIDE, SIDE), np.uint8)
    for where, contrast in rows:
        pixels[where, SIDE // 2 :] = round(255 * contrast)
    return Image.fromarray(pixels)


BLURRED_STEP = (NormalDist(0, 2).cdf(1.5) - NormalDist(0, 2).cdf(-0.5)) / 2
"""Of a whole step between two pixels under a Gaussian of 2 pixels: the change over the two neighbours of one of them,
halved, in shares a pixel."""

TOP, BOTTOM, ALL = slice(0, SIDE // 2), slice(SIDE // 2, SIDE), slice(0, SIDE)


def stroke_in(image: Image.Image, rows: slice, **settings) -> bool:
    """Whether an upright stroke runs through the middle of these rows, away from their ends."""
    inside = slice(rows.start + 12, rows.stop - 12)
    middle = np.asarray(scribble(image, blur=2.0, width=1, **settings))[inside, SIDE // 2 - 3 : SIDE // 2 + 3]
    return bool((middle > 0).any(1).all())


@pytest.mark.parametrize("threshold", [0.3, 0.6, 1.0])
@pytest.mark.parametrize("strong", [0.1, 0.15])
def test_a_stroke_begins_where_a_soft_edge_exceeds_the_threshold(threshold, strong):
    just = threshold * strong / BLURRED_STEP
    assert stroke_in(step((ALL, 1.06 * just)), ALL, strong=strong, threshold=threshold)
    below = np.asarray(scribble(step((ALL, 0.94 * just)), blur=2.0, strong=strong, threshold=threshold))
    assert not below.any()


@pytest.mark.parametrize(("share", "goes_on"), [(0.55, True), (0.45, False)])
def test_a_stroke_goes_on_down_to_half_of_the_threshold(share, goes_on):
    """Hysteresis: a weaker edge is drawn where a strong one leads to it, and not by itself."""
    strong, threshold = 0.15, 0.8
    whole = threshold * strong / BLURRED_STEP
    strengths = np.interp(np.arange(SIDE), [30, 66], [1.2, share]) * whole
    fading = step(*((slice(row, row + 1), strength) for row, strength in enumerate(strengths)))
    assert stroke_in(fading, slice(0, 42), strong=strong, threshold=threshold)
    found = np.asarray(scribble(fading, blur=2.0, strong=strong, threshold=threshold, width=1))
    assert found[76:88].any() == goes_on
    alone = scribble(step((ALL, share * whole)), blur=2.0, strong=strong, threshold=threshold)
    assert not np.asarray(alone).any()


def test_a_slanted_edge_is_as_strong_as_an_upright_one():
    """The gradient's length decides, not the sum of its parts."""
    rows, columns = np.indices((SIDE, SIDE))
    strong, threshold = 0.15, 0.8
    contrast = threshold * strong / BLURRED_STEP
    for share, drawn in ((1.1, True), (0.9, False)):
        slanted = Image.fromarray(((rows > columns) * round(255 * share * contrast)).astype(np.uint8))
        found = np.asarray(scribble(slanted, blur=2.0, strong=strong, threshold=threshold))
        assert found.any() == drawn


@pytest.mark.parametrize("width", [1, 2, 3, 4, 7])
def test_a_stroke_is_as_wide_as_asked(width):
    drawn = np.asarray(scribble(step((ALL, 1.0)), blur=2.0, width=width))[SIDE // 2] > 0
    assert width <= drawn.sum() <= width + 1


def test_contrasts_beyond_the_largest_whole_number_are_still_strokes():
    """A full edge over a tiny `strong` is 40 times `strong`: more than a whole number of 16 bits may hold."""
    found = np.asarray(scribble(step((ALL, 1.0)), blur=0.5, strong=0.001, threshold=1.0))
    assert found.any()
    assert not found[:, : SIDE // 2 - 8].any()


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
        (canny, {"high": 1443}, "1442"),
        (canny, {"blur": -1}, "blur is -1"),
        (soft_edges, {"blur": float("inf")}, "blur is inf"),
        (soft_edges, {"strong": 0}, "strong is 0"),
        (soft_edges, {"strong": 1.01}, "strong is 1.01"),
        (scribble, {"threshold": 0}, "threshold is 0"),
        (scribble, {"threshold": 1.01}, "threshold is 1.01"),
        (scribble, {"width": 0}, "at least 1 pixel"),
        (line_art, {"width": 0}, "width is 0"),
        (line_art, {"strong": 0}, "strong is 0"),
        (line_art, {"strong": 1.01}, "strong is 1.01"),
    ],
)
def test_bad_settings_are_refused(make, changes, said, drawing):
    with pytest.raises(InvalidInput, match=said):
        make(drawing, **changes)


@pytest.mark.parametrize(
    ("make", "edges"),
    [
        (canny, {"low": 0, "high": 0}),
        (canny, {"low": 1442, "high": 1442}),
        (soft_edges, {"blur": 0, "strong": 1}),
        (scribble, {"threshold": 1, "width": 1}),
        (line_art, {"strong": 1}),
    ],
)
def test_settings_at_their_ends_are_allowed(make, edges, drawing):
    assert make(drawing, **edges).size == drawing.size


def test_a_picture_without_pixels_is_refused():
    with pytest.raises(InvalidInput, match="at least one pixel"):
        canny(Image.new("RGB", (0, 4)))


def test_without_opencv_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingDependency, match=r"undertow\[hints\]"):
        require_opencv()
