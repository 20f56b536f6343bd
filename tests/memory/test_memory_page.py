"""The tables of docs/results/memory.md that are counted and not measured."""

import pytest

from benchmarks.lib.memory_page import _precisions, _times
from undertow.memory import weights
from undertow.memory.families import family


def test_weights_by_precision_have_int8_at_a_byte_a_number():
    row = next(line for line in _precisions() if line.startswith("| sd15 | unet |"))
    single, half, bfloat, byte = (float(cell.replace(",", "")) for cell in row.strip("| ").split(" | ")[2:])
    assert byte == pytest.approx(weights.unet_weights(family("sd15").unet) / 2**20, abs=0.06)
    assert (single, half, bfloat) == pytest.approx((4 * byte, 2 * byte, 2 * byte), rel=1e-3)


def test_the_document_s_activations_at_512_pixels_are_46_times_those_of_fused_attention():
    """6 GB; an independent trace of diffusers' U-Net has 130 MiB, ours a little less (`test_published_figures`)."""
    assert 44 < _times(512) < 50
