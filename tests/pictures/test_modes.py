"""Pictures of every mode mean the same at every door: 16 and 32 bits, floats, and transparency.

The values are arithmetic: a ramp over all levels has the mean 0.5, and a mask is luma times alpha
(sd-webui-controlnet, pull request 3079).
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from undertow.adapters.pictures import LatentGrid
from undertow.encoders.image_pixels import Preprocessing
from undertow.errors import InvalidInput
from undertow.hints.picture import to_color
from undertow.pictures.files import describe_picture, open_picture
from undertow.pictures.modes import to_rgb
from undertow.pictures.pixels import pasted, to_map, to_mask, to_pixels
from undertow.training.image_folder import read_picture

SIDE = 256
RAMP = np.linspace(0, 65535, SIDE * SIDE).round().astype(np.uint16).reshape(SIDE, SIDE)

DEEP = {
    "16 bits": ("png", RAMP),
    "16 bits in a TIFF": ("tiff", RAMP),
    "32 bits": ("tiff", RAMP.astype(np.int32)),
    "floats": ("tiff", RAMP.astype(np.float32) / np.float32(65535)),
    "floats up to 255": ("tiff", RAMP.astype(np.float32) / np.float32(257)),
}


def deep(kind: str, folder: Path) -> Path:
    ending, levels = DEEP[kind]
    path = folder / f"ramp.{ending}"
    Image.fromarray(levels).save(path)
    return path


@pytest.mark.parametrize("kind", DEEP)
def test_a_deep_gray_ramp_is_half_white_at_every_door(tmp_path, kind):
    path, size = deep(kind, tmp_path), (SIDE, SIDE)
    picture = open_picture("image", path)
    grid = LatentGrid(cells=(SIDE // 8, SIDE // 8), factor=8)
    unchanged = Preprocessing(size=None, crop=None, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    in_training = read_picture(path)
    assert isinstance(in_training, Image.Image)
    seen = {
        "image": (to_pixels(picture, size) + 1) / 2,
        "mask": to_mask(picture, size),
        "depth": to_map(picture, size),
        "control map": grid.hint("edges", picture),
        "adapter's mask": grid.area("edges", picture),
        "reference": unchanged.pixels([picture]),
        "preprocess": torch.from_numpy(to_color(picture) / 255),
        "training": torch.from_numpy(np.asarray(in_training) / 255),
    }
    means = {door: float(values.double().mean()) for door, values in seen.items()}
    assert means == {door: pytest.approx(0.5, abs=0.002) for door in seen}
    assert all(float(values.min()) == 0 and float(values.max()) == 1 for values in seen.values())


def test_masks_and_depths_keep_sixteen_bits(tmp_path):
    """A camera's depth in millimeters covers few of the 65,536 levels; a byte would leave 8 of them."""
    narrow = Image.fromarray((RAMP // 32).astype(np.uint16))
    for read in (to_mask, to_map):
        assert len(read(narrow, (SIDE, SIDE)).unique()) == 2048


def test_different_deep_pictures_are_not_taken_for_each_other(tmp_path):
    lighter = np.maximum(RAMP, 300)  # both are white nearly everywhere to Pillow, which clips at 255
    first, second = (describe_picture(Image.fromarray(levels)) for levels in (RAMP, lighter))
    assert first != second
    found = {describe_picture(open_picture("image", deep(kind, tmp_path)))["sha256"] for kind in DEEP}
    assert found == {first["sha256"]}, "one picture, whatever file it is in"


def test_levels_that_would_be_clipped_are_refused():
    for levels, message in (
        (np.array([[0.0, 300.0]], np.float32), r"levels from 0 to 300, expected from 0 to 1, or from 0 to 255"),
        (np.array([[-0.5, 1.0]], np.float32), r"levels from -0.5 to 1"),
        (np.array([[np.nan, 1.0]], np.float32), "NaN or infinity"),
        (np.array([[0, 70000]], np.int32), "levels from 0 to 70000, expected from 0 to 65535"),
    ):
        with pytest.raises(InvalidInput, match=message):
            to_mask(Image.fromarray(levels), (1, 2))


def square_of_alpha(mode: str, *, color: int = 255) -> Image.Image:
    """White, opaque in a quarter of the picture and transparent outside."""
    alpha = Image.new("L", (64, 64))
    alpha.paste(255, (0, 0, 32, 32))
    gray = Image.new("L", (64, 64), color)
    match mode:
        case "LA":
            return Image.merge("LA", (gray, alpha))
        case "P":
            image = Image.new("P", (64, 64), 1)
            image.putpalette([color] * 6)
            image.paste(0, (0, 0, 32, 32))
            image.info["transparency"] = 1
            return image
        case "L":
            image = Image.new("L", (64, 64), color - 1)
            image.paste(color, (0, 0, 32, 32))
            image.info["transparency"] = color - 1
            return image
        case "I;16":
            levels = np.full((64, 64), 257 * color - 1, np.uint16)
            levels[:32, :32] = 257 * color
            image = Image.fromarray(levels)
            image.info["transparency"] = 257 * color - 1
            return image
        case _:
            return Image.merge("RGBA", (gray, gray, gray, alpha))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "I;16"])
def test_a_mask_is_its_luma_times_its_alpha(mode):
    white = square_of_alpha(mode)
    assert float(to_mask(white, (64, 64)).mean()) == pytest.approx(0.25)
    gray = to_mask(square_of_alpha(mode, color=102), (64, 64))
    assert float(gray.max()) == pytest.approx(0.4)
    assert float(gray.mean()) == pytest.approx(0.1)
    grid = LatentGrid(cells=(8, 8), factor=8)
    assert float(grid.area("edges", white).mean()) == pytest.approx(0.25)
    drawn, original = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "blue")
    kept = np.asarray(pasted(drawn, original, white))
    assert (kept[:32, :32] == (255, 0, 0)).all()
    assert (kept[32:, 32:] == (0, 0, 255)).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "I;16"])
def test_transparent_parts_of_an_image_lie_on_white(mode):
    shown = np.asarray(to_rgb(square_of_alpha(mode, color=102)))
    assert (shown[:32, :32] == 102).all()
    assert (shown[32:, 32:] == 255).all()
    drawn, mask = Image.new("RGB", (64, 64), "red"), Image.new("L", (64, 64))
    assert np.array_equal(np.asarray(pasted(drawn, square_of_alpha(mode, color=102), mask)), shown)


def test_depths_need_a_number_in_every_pixel():
    with pytest.raises(InvalidInput, match="partly transparent, expected a number in every pixel"):
        to_map(square_of_alpha("RGBA"), (64, 64))
    assert float(to_map(Image.new("RGBA", (8, 8), "white"), (8, 8)).min()) == 1
