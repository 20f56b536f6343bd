"""Depth maps of every kind, pictures without detail, and sides that networks can halve."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.ndimage import gaussian_filter

from undertow.errors import InvalidInput
from undertow.hints.blur import blur, tile
from undertow.hints.depth import depth, levels
from undertow.hints.grid import to_grid

RAMP = np.linspace(0, 1, 64, dtype=np.float32)[None].repeat(48, 0)


def expected(shares=RAMP) -> np.ndarray:
    return (shares * 255).round()


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray((RAMP * 255).round().astype(np.uint8)),
        Image.fromarray((RAMP * 65535).round().astype(np.uint16)),
        Image.fromarray((RAMP * 40000 + 1000).round().astype(np.int32)),
        Image.fromarray(RAMP * 7.5 - 3),
        Image.fromarray((RAMP * 255).round().astype(np.uint8)).convert("RGBA"),
    ],
    ids=["8 bits", "16 bits", "32 bits", "floats", "gray in RGBA"],
)
def test_maps_of_every_range_become_the_same_bytes(image):
    near = np.asarray(depth(image))
    # Maps that were rounded before may be one off.
    assert np.abs(near - expected()).max() <= 1
    assert (near.min(), near.max()) == (0, 255)
    assert np.abs(np.asarray(depth(image, inverted=True)) - expected(1 - RAMP)).max() <= 1


def test_sixteen_bits_are_not_cut_to_eight_before_the_range_is_known():
    narrow = Image.fromarray((RAMP * 200 + 30000).round().astype(np.uint16))
    assert len(np.unique(np.asarray(depth(narrow)))) == len(np.unique(RAMP))


def test_a_given_range_cuts_off():
    found = np.asarray(depth(Image.fromarray(RAMP), low=0.25, high=0.75))
    assert np.abs(found - expected(((RAMP - 0.25) / 0.5).clip(0, 1))).max() <= 1


@pytest.mark.parametrize(("low", "high"), [(0.25, None), (None, 0.75)])
def test_one_given_end_leaves_the_other_to_the_map(low, high):
    found = np.asarray(depth(Image.fromarray(RAMP), low=low, high=high))
    start, end = (0.0 if low is None else low), (1.0 if high is None else high)
    assert np.abs(found - expected(((RAMP - start) / (end - start)).clip(0, 1))).max() <= 1


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_a_map_whose_channels_differ_anywhere_is_colored(channel):
    pixels = (RAMP * 255).astype(np.uint8)[..., None].repeat(3, -1)
    pixels[5, 6, channel] ^= 1
    with pytest.raises(InvalidInput, match="not a color scale"):
        depth(Image.fromarray(pixels))


@pytest.mark.parametrize(
    ("image", "changes", "said"),
    [
        (Image.new("L", (8, 8), 7), {}, "7 everywhere"),
        (Image.new("L", (8, 8), 7), {"low": 7.0}, "low < high"),
        (Image.fromarray(RAMP), {"low": 0.5, "high": 0.5}, "go from 0 to 1"),
        (Image.new("L", (0, 8)), {}, "a map with pixels"),
        (Image.new("L", (8, 0)), {}, "a map with pixels"),
        (Image.fromarray(np.where(RAMP > 0.5, np.inf, RAMP)), {}, "infinity"),
        (Image.fromarray(RAMP), {"low": 2.0}, "go from 0 to 1"),
        (Image.fromarray(np.where(RAMP > 0.5, np.nan, RAMP)), {}, "NaN"),
        (Image.new("RGB", (8, 8), "red"), {}, "not a color scale"),
        (Image.new("RGBA", (8, 8), (9, 9, 9, 0)), {}, "fill the holes"),
    ],
)
def test_what_is_no_depth_map_is_refused(image, changes, said):
    with pytest.raises(InvalidInput, match=said):
        depth(image, **changes)


def test_levels_count_different_values():
    assert levels(Image.fromarray(np.eye(8, dtype=np.uint8) * 255)) == 2
    assert levels(Image.fromarray(RAMP)) == 64


@pytest.fixture
def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))


def test_blur_and_tile_take_detail_and_keep_means(noise):
    means, spread = np.asarray(noise).mean((0, 1)), np.asarray(noise).std()
    for made in (blur(noise, radius=4), tile(noise, factor=4)):
        pixels = np.asarray(made)
        assert made.size == noise.size
        assert np.abs(pixels.mean((0, 1)) - means).max() < 3
        assert pixels.std() < spread / 3
    assert (np.asarray(tile(noise, factor=1)) == np.asarray(noise)).all()


@pytest.mark.parametrize("radius", [0.8, 4.0])
def test_blur_is_a_gaussian_of_that_deviation(radius, noise):
    expected = gaussian_filter(np.asarray(noise).astype(float), (radius, radius, 0), mode="mirror")
    # OpenCV's 8-bit Gaussian ends at 3 deviations and is rounded.
    assert np.abs(np.asarray(blur(noise, radius=radius)) - expected).max() <= 2
    assert (np.asarray(blur(noise)) == np.asarray(blur(noise, radius=8.0))).all()


@pytest.mark.parametrize("factor", [2.0, 4.0, 8.0])
def test_a_tile_is_averaged_down_and_smoothly_enlarged(factor, noise):
    """Means of squares, then Keys' cubic (a = -0.5), by PyTorch."""
    pixels = torch.from_numpy(np.asarray(noise).copy()).permute(2, 0, 1)[None].double()
    small = F.avg_pool2d(pixels, int(factor)).round()
    expected = F.interpolate(small, size=pixels.shape[2:], mode="bicubic", antialias=True).clamp(0, 255)
    found = torch.from_numpy(np.asarray(tile(noise, factor=factor)).copy()).permute(2, 0, 1)[None]
    assert (found - expected).abs().max() <= 3  # Pillow rounds in every pass
    assert (np.asarray(tile(noise)) == np.asarray(tile(noise, factor=4.0))).all()


@pytest.mark.parametrize("factor", [100.0, 1000.0])
def test_a_tile_larger_than_the_picture_is_its_mean(factor, noise):
    made = np.asarray(tile(noise, factor=factor)).astype(float)
    assert (made == made[0, 0]).all()
    assert np.abs(made[0, 0] - np.asarray(noise).mean((0, 1))).max() <= 1


def test_a_picture_that_factors_do_not_divide_has_the_nearest_number_of_tiles():
    """31 pixels in tiles of 4 are 8, and 9 are 2."""
    ramp = Image.fromarray(np.linspace(0, 255, 31).astype(np.uint8)[None].repeat(9, 0))
    expected = ramp.convert("RGB").resize((8, 2), Image.Resampling.BOX).resize((31, 9), Image.Resampling.BICUBIC)
    assert (np.asarray(tile(ramp, factor=4)) == np.asarray(expected)).all()


def test_a_tile_is_the_mean_of_its_pixels():
    picture = Image.fromarray(np.kron(np.eye(4, dtype=np.uint8) * 200, np.ones((8, 8), np.uint8)))
    halved = np.asarray(tile(picture, factor=8).resize((4, 4), Image.Resampling.BOX))[..., 0]
    assert halved.argmax(0).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "make",
    [
        lambda image: blur(image, radius=0),
        lambda image: blur(image, radius=float("inf")),
        lambda image: blur(image, radius=float("nan")),
        lambda image: tile(image, factor=0.99),
        lambda image: tile(image, factor=float("inf")),
        lambda image: tile(image, factor=float("nan")),
    ],
)
def test_bad_radii_and_factors_are_refused(make, noise):
    with pytest.raises(InvalidInput):
        make(noise)


@pytest.fixture
def bars() -> Image.Image:
    """100 x 150 pixels: red above, green in the middle, blue below."""
    image = Image.new("RGB", (100, 150), (0, 255, 0))
    image.paste((255, 0, 0), (0, 0, 100, 20))
    image.paste((0, 0, 255), (0, 130, 100, 150))
    return image


def test_sides_become_the_nearest_multiples(bars):
    assert to_grid(bars).size == (128, 128)
    assert to_grid(bars, multiple=8).size == (96, 152)
    assert to_grid(Image.new("RGB", (5, 3)), multiple=8).size == (8, 8)
    assert to_grid(bars, multiple=8, size=(64, 40)).size == (64, 40)


def test_fit_stretches_crop_cuts_and_pad_fills(bars):
    size = (96, 96)
    fit, crop, pad = (
        np.asarray(to_grid(bars, multiple=8, fitting=fitting, size=size, fill="white"))
        for fitting in ("fit", "crop", "pad")
    )
    assert fit[2, 48].tolist() == [255, 0, 0]
    assert fit[93, 48].tolist() == [0, 0, 255]
    assert crop[2, 48].tolist() == crop[93, 48].tolist() == [0, 255, 0]
    assert pad[2, 48].tolist() == [255, 0, 0]
    assert pad[48, 2].tolist() == pad[48, 93].tolist() == [255, 255, 255]


def test_every_other_side_is_rounded_to_a_multiple_and_none_below_one():
    assert to_grid(Image.new("RGB", (95, 97)), multiple=64).size == (64, 128)
    assert to_grid(Image.new("RGB", (95, 97)), multiple=1).size == (95, 97)
    assert to_grid(Image.new("RGB", (10, 200)), multiple=64).size == (64, 192)


def test_crop_is_the_usual_and_cuts_the_middle_out(bars):
    """Of the longer side, in proportion: of 100 x 150 the middle 100 x 100."""
    size = (64, 64)
    middle = bars.crop((0, 25, 100, 125)).resize(size, Image.Resampling.LANCZOS)
    for made in (to_grid(bars, size=size), to_grid(bars, size=size, fitting="crop")):
        assert np.abs(np.asarray(made).astype(int) - np.asarray(middle)).max() <= 1
    padded = np.asarray(to_grid(bars, size=size, fitting="pad"))
    assert padded[32, 2].tolist() == [0, 0, 0], "black around it, unless another color is asked for"
    assert padded[:, 12:52].max() == 255


def test_as_many_pixels_as_are_allowed_are_made(monkeypatch, bars):
    monkeypatch.setenv("UNDERTOW_MAX_PIXELS", str(64 * 128))
    assert to_grid(bars, size=(64, 128)).size == (64, 128)
    with pytest.raises(InvalidInput, match="at most 8,192 pixels"):
        to_grid(bars, size=(128, 128))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"multiple": 0}, "at least 1"),
        ({"size": (100, 64)}, "128x64 is near"),
        ({"size": (0, 64)}, "multiples of 64"),
        ({"fitting": "pad", "fill": "no color"}, "for example white"),
        ({"size": (64 * 2000, 64 * 2000)}, "at most"),
    ],
)
def test_sides_that_cannot_be_are_refused(changes, said, bars):
    with pytest.raises(InvalidInput, match=said):
        to_grid(bars, **changes)
