"""Several pictures at once, and masks at the grids that attentions look from."""

import pytest
import torch
import torch.nn.functional as F

from tests.adapters.image_prompt.files import normal
from undertow.adapters.image_prompt.image_port import areas, combine
from undertow.errors import InvalidInput
from undertow.unet.config import UNetConfig

LEFT = torch.cat([torch.ones(64, 32), torch.zeros(64, 32)], dim=1)


def test_without_masks_pictures_share_a_softmax():
    tokens = normal(3, 4, 8, seed="t")
    (one,) = combine(tokens)
    assert one.mask is None
    assert torch.equal(one.tokens, torch.cat(list(tokens))[None])


def test_with_masks_each_picture_is_apart():
    tokens = normal(2, 4, 8, seed="t")
    first, second = combine(tokens, [LEFT, 1 - LEFT])
    assert torch.equal(first.tokens, tokens[:1])
    assert torch.equal(second.tokens, tokens[1:])
    assert first.mask is LEFT


def test_counts_shapes_and_values_of_masks_are_checked():
    tokens = normal(2, 4, 8, seed="t")
    with pytest.raises(InvalidInput, match="masks is 1, expected 2, one of each picture"):
        combine(tokens, [LEFT])
    with pytest.raises(InvalidInput, match=r"masks\[1\] is not finite"):
        combine(tokens, [LEFT, LEFT * float("nan")])
    with pytest.raises(InvalidInput, match=r"masks\[0\] is \[0, 4\]"):
        combine(tokens, [torch.zeros(0, 4), LEFT])
    with pytest.raises(InvalidInput, match="tokens is of no picture"):
        combine(tokens[:0])


@pytest.mark.parametrize(("height", "width"), [(64, 64), (13, 17), (114, 143)])
def test_areas_are_at_the_true_grid_of_every_attention(height, width):
    """912 x 1144 pixels are 114 x 143 cells, where guessing the grid from the mask's proportions fails."""
    config = UNetConfig.sd15()
    grids = config.attention_grids(height, width)
    found = areas(torch.ones(8 * height, 8 * width), grids)
    assert set(found) == set(config.cross_attentions())
    for site, (rows, columns) in grids.items():
        assert found[site].shape == (1, rows * columns)
        assert torch.allclose(found[site], torch.ones(1))


def test_a_mask_lies_where_it_was_drawn():
    grids = {"site": (8, 4), "other": (4, 4)}
    found = areas(LEFT, grids)["site"].unflatten(1, (8, 4))[0]
    assert torch.allclose(found, torch.tensor([1.0, 1.0, 0.0, 0.0]).expand(8, 4), atol=0.1)
    assert torch.equal(areas(LEFT, grids)["other"], F.interpolate(LEFT[None, None], (4, 4), mode="bicubic").flatten(1))


def test_values_beside_an_edge_leave_the_unit_interval():
    found = areas(LEFT[::8, ::8], {"site": (12, 12)})["site"]
    assert float(found.max()) > 1
    assert float(found.min()) < 0
