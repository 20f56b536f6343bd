"""Pictures of every kind as bytes: 16 bits, transparency, luma, and shares of white."""

import numpy as np
import pytest
from PIL import Image

from undertow.errors import InvalidInput
from undertow.hints.picture import from_shares, to_color, to_gray

SIXTEEN = np.array([[0, 255, 256, 32768, 65279, 65535]])
AS_BYTES = [0, 0, 1, 128, 254, 255]
"""The upper byte of each: 65535 is white, and every byte stands for 256 values."""


def every(bytes_) -> list[list[int]]:
    return [[value] * 3 for value in bytes_]


def test_sixteen_bits_become_their_upper_byte_and_white_stays_white():
    assert to_color(Image.fromarray(SIXTEEN.astype(np.uint16)))[0].tolist() == every(AS_BYTES)


def test_whole_numbers_of_32_bits_are_levels_of_16_and_others_are_refused():
    assert to_color(Image.fromarray(SIXTEEN.astype(np.int32)))[0].tolist() == every(AS_BYTES)
    for levels in ([[-1, 5]], [[0, 65536]]):
        with pytest.raises(InvalidInput, match="expected from 0 to 65535; bring it to this range first"):
            to_color(Image.fromarray(np.array(levels, np.int32)))


def test_transparent_parts_lie_on_white_by_their_share():
    layer = Image.new("RGBA", (3, 1))
    for x, alpha in enumerate((0, 51, 255)):
        layer.putpixel((x, 0), (100, 200, 0, alpha))
    expected = [[255 + (color - 255) * alpha / 255 for color in (100, 200, 0)] for alpha in (0, 51, 255)]
    assert np.abs(to_color(layer)[0] - np.array(expected)).max() <= 0.5  # rounded to bytes


def test_a_palette_s_transparent_color_lies_on_white():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    image.info["transparency"] = 1
    assert to_color(image)[0].tolist() == [[10, 20, 30], [255, 255, 255]]


def test_gray_is_the_luma_of_itu_r_601():
    colors = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [90, 160, 30]]], np.uint8)
    expected = colors[0] @ np.array([0.299, 0.587, 0.114])
    assert np.abs(to_gray(Image.fromarray(colors))[0] - expected).max() <= 0.5


def test_shares_are_rounded_and_what_lies_outside_is_cut_off():
    shares = np.array([[-0.3, 0.0, 0.5, 1.4 / 255, 1.6 / 255, 254.6 / 255, 1.0, 7.0]], np.float32)
    assert np.asarray(from_shares(shares))[0].tolist() == [0, 0, 128, 1, 2, 255, 255, 255]


@pytest.mark.parametrize("size", [(0, 4), (4, 0)])
def test_no_pixels_are_refused(size):
    with pytest.raises(InvalidInput, match=f"{size[0]}x{size[1]} pixels"):
        to_color(Image.new("RGB", size))
