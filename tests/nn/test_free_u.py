"""What FreeU does to one decoder layer (arXiv:2309.11497, Eq. 4-6), against the formulas in float64 and FFTs."""

import pytest
import torch
from diffusers.utils.torch_utils import fourier_filter
from torch import Tensor

from undertow.nn.free_u import FreeUFactors, scale_backbone, scale_low_frequencies

TOLERANCE = 1e-5
"""float32 sums over a few hundred cells, against float64."""


def factors(*rows: tuple[float, float, bool]) -> FreeUFactors:
    backbone, skip, structural = (torch.tensor(column) for column in zip(*rows, strict=True))
    return FreeUFactors(backbone=backbone, skip=skip, structural=structural)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("channels", [6, 7])
def test_the_backbone_of_each_row_is_scaled_by_its_own_version(channels):
    hidden = normal(3, channels, 4, 5)
    scaled = scale_backbone(hidden, factors((1.5, 1.0, False), (1.4, 1.0, True), (0.5, 1.0, True)))
    half = channels // 2
    assert torch.equal(scaled[0, :half], hidden[0, :half] * 1.5)
    assert torch.equal(scaled[:, half:], hidden[:, half:]), "only the first half of the channels"
    for row, factor in ((1, 1.4), (2, 0.5)):
        mean = hidden[row].double().mean(0)
        share = (mean - mean.min()) / (mean.max() - mean.min())
        expected = hidden[row, :half] * (1 + (factor - 1) * share)
        torch.testing.assert_close(scaled[row, :half].double(), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "hidden",
    [torch.zeros(1, 4, 3, 3), torch.full((1, 4, 3, 3), 2.0), normal(1, 4, 1, 1)],
    ids=["black", "flat", "one cell"],
)
def test_a_map_on_which_nothing_stands_out_is_left_alone_by_version_2(hidden, dtype):
    """Its mean has no spread to divide by: no cell is more active than another, so none is scaled, and none is NaN."""
    hidden = hidden.to(dtype)
    assert torch.equal(scale_backbone(hidden, factors((1.4, 1.0, True))), hidden)


def test_a_nearly_flat_map_uses_its_whole_range():
    hidden = torch.zeros(1, 2, 1, 3)
    hidden[..., 1], hidden[..., 2] = 1e-6, 2e-6
    scaled = scale_backbone(hidden, factors((3.0, 1.0, True)))
    torch.testing.assert_close(scaled[0, 0, 0], hidden[0, 0, 0] * torch.tensor([1.0, 2.0, 3.0]), rtol=1e-5, atol=0)


@pytest.mark.parametrize("size", [(8, 8), (6, 9), (7, 5), (2, 4), (1, 6), (5, 1), (1, 1)])
def test_low_frequencies_are_the_centre_of_the_shifted_spectrum(size):
    """The authors' box of 1 around the middle: frequencies -1 and 0 both ways."""
    skip = normal(2, 3, *size)
    scaled = scale_low_frequencies(skip, factors((1.0, 0.2, False), (1.0, 1.7, True)))
    for row, factor in ((0, 0.2), (1, 1.7)):
        spectrum = torch.fft.fft2(skip[row].double())
        for down in {0, size[0] - 1}:
            for across in {0, size[1] - 1}:
                spectrum[:, down, across] *= factor
        expected = torch.fft.ifft2(spectrum).real
        torch.testing.assert_close(scaled[row].double(), expected, rtol=0, atol=TOLERANCE)
        if min(size) > 1:
            theirs = fourier_filter(skip[row : row + 1], threshold=1, scale=factor)[0]
            torch.testing.assert_close(scaled[row], theirs, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_factors_of_one_keep_every_bit_and_type_and_layout(dtype):
    x = normal(3, 4, 5, 6).to(dtype).contiguous(memory_format=torch.channels_last)
    ones = factors((1.0, 1.0, False), (1.0, 1.0, True), (1.5, 0.5, False))
    for scaled in (scale_backbone(x, ones), scale_low_frequencies(x, ones)):
        assert scaled.dtype == dtype
        assert torch.equal(scaled[:2], x[:2])
        assert not torch.equal(scaled[2], x[2])
        assert scaled.is_contiguous(memory_format=torch.channels_last)


def test_half_precision_skips_are_filtered_in_float32():
    """A sum over 4096 cells of about 30 does not fit float16, which ends at 65,504."""
    skip = (normal(1, 2, 64, 64) + 30).half()
    scaled = scale_low_frequencies(skip, factors((1.0, 0.0, False)))
    exact = scale_low_frequencies(skip.float(), factors((1.0, 0.0, False)))
    assert scaled.isfinite().all()
    torch.testing.assert_close(scaled.float(), exact, rtol=0, atol=5e-3)  # the result's own rounding, of up to 4
