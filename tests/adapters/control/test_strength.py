"""Gains, modes, pooling, masks and sums."""

import pytest
import torch
import torch.nn.functional as F

from undertow.adapters.control.residuals import masked, mode_gains, pooled, residual_gains, resized, scaled
from undertow.errors import InvalidInput
from undertow.unet.conditioning import Residuals

FROM_0825 = 0.01
"""diffusers' ratios against lllyasviel's rounded 0.825."""


def residuals(seed: int = 0) -> Residuals:
    generator = torch.Generator().manual_seed(seed)
    skips = tuple(torch.randn(2, 3, size, size, generator=generator) for size in (8, 4))
    running = (None, torch.randn(2, 3, 4, 4, generator=generator))
    return Residuals(skips=skips, running=running, middle=torch.randn(2, 3, 2, 2, generator=generator))


@pytest.mark.parametrize("count", [13, 10])
def test_soft_modes_grow_in_equal_ratios_to_the_middle(count):
    gains = mode_gains(count, "prompt")
    assert gains == pytest.approx(torch.logspace(-1, 0, count, dtype=torch.float64).tolist())
    assert mode_gains(count, "control") == gains
    assert mode_gains(count, "balanced") == (1.0,) * count
    if count == 13:
        assert gains == pytest.approx([0.825 ** (12 - index) for index in range(13)], rel=FROM_0825)


def test_each_side_of_guidance_has_its_gains():
    assert residual_gains(2, 0.5) == residual_gains(2, 0.5, conditional=False) == (0.5, 0.5)
    assert residual_gains(2, (0.5, 3.0), "prompt", conditional=False) == pytest.approx((0.05, 3.0))
    assert residual_gains(2, 0.5, "control") == pytest.approx((0.05, 0.5))
    assert residual_gains(2, 0.5, "control", conditional=False) == (0.0, 0.0)
    assert residual_gains(2, 0.5, "control", global_pool=True) == (0.5, 0.5)
    assert residual_gains(2, 0.5, global_pool=True, conditional=False) == (0.0, 0.0)


def test_another_number_of_scales_is_refused():
    with pytest.raises(InvalidInput, match="scale is 3 numbers, expected one, or 13"):
        residual_gains(13, (1.0, 1.0, 1.0))


def test_gains_count_what_is_there_row_by_row():
    given = residuals()
    gains = torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0, 0.5, 0.0, 1.0]])
    ours = scaled(given, gains)
    parts = zip(
        (*ours.skips, ours.running[1], ours.middle), (*given.skips, given.running[1], given.middle), strict=True
    )
    for index, (one, before) in enumerate(parts):
        assert torch.equal(one, before * gains[:, index, None, None, None])
    assert ours.running[0] is None
    with pytest.raises(InvalidInput, match="one for each residual"):
        scaled(given, gains[:, :3])


def test_pooling_keeps_the_mean_in_every_cell():
    given = residuals()
    ours = pooled(given)
    assert [skip.shape for skip in ours.skips] == [skip.shape for skip in given.skips]
    assert torch.equal(ours.skips[0][:, :, 5, 2], given.skips[0].mean((2, 3)))


def test_a_mask_is_averaged_over_the_area_of_a_cell_and_enlarged_smoothly():
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :3] = 1
    assert torch.equal(resized(mask, 8, 8), mask)
    assert resized(mask, 4, 4)[0, 0, 0].tolist() == [1, 0.5, 0, 0]
    larger = resized(mask, 16, 16)[0, 0, 0]
    assert (larger.diff() <= 0).all()
    assert larger.unique().numel() > 2
    turned = resized(mask, 4, 16)
    assert torch.equal(turned, F.interpolate(mask, (4, 16), mode="bilinear")), "smooth where it grows in any direction"
    ours = masked(residuals(), mask.expand(2, -1, -1, -1))
    assert torch.equal(ours.skips[0], residuals().skips[0] * mask)
    assert not ours.middle[..., 1].any() or resized(mask, 2, 2)[0, 0, 0, 1] > 0
