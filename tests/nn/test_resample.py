"""Halving and doubling, of even and odd sizes."""

import pytest
import torch
import torch.nn.functional as F

from tests.golden.minis import randomize
from undertow.nn.resample import Downsample, Upsample


@pytest.mark.parametrize(("size", "half"), [((8, 8), (4, 4)), ((9, 7), (5, 4)), ((1, 2), (1, 1))])
@torch.no_grad()
def test_odd_sizes_round_up_and_come_back(size, half):
    down, up = Downsample(3), Upsample(3)
    low = down(torch.ones(2, 3, *size))
    assert low.shape == (2, 3, *half)
    assert up(low, size).shape == (2, 3, *size)


@torch.no_grad()
def test_downsampling_pads_both_sides_by_one():
    """Output (i, j) is centered on input (2i, 2j)."""
    layer = Downsample(1)
    layer.conv.weight.zero_()
    layer.conv.bias.zero_()
    layer.conv.weight[0, 0, 1, 1] = 1.0
    x = torch.arange(36.0).view(1, 1, 6, 6)
    assert torch.equal(layer(x), x[:, :, ::2, ::2])


@pytest.mark.parametrize("size", [(6, 6), (5, 6), (5, 5)])
@torch.no_grad()
def test_upsampling_repeats_cells_and_crops(size):
    layer = Upsample(1)
    layer.conv.weight.zero_()
    layer.conv.bias.zero_()
    layer.conv.weight[0, 0, 1, 1] = 1.0
    x = torch.arange(9.0).view(1, 1, 3, 3)
    nearest = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    if size == (6, 6):
        assert torch.equal(layer(x, size), nearest)
    rows, columns = ([i * 3 // n for i in range(n)] for n in size)
    assert torch.equal(layer(x, size), x[:, :, rows][:, :, :, columns])


@torch.no_grad()
def test_upsampling_convolves_after_enlarging():
    layer = Upsample(2)
    randomize(layer, 1)
    x = torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(2))
    enlarged = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    expected = F.conv2d(enlarged.double(), layer.conv.weight.double(), layer.conv.bias.double(), padding=1)
    torch.testing.assert_close(layer(x, (6, 6)).double(), expected, rtol=0, atol=1e-5)  # float32 sums of 18 products
