"""Which tokens each cell may look at, and what stages add to what they compute."""

import pytest
import torch
from torch import Tensor

from tests.golden.minis import M15, TIMESTEPS, conditioning_for, latents_for, pair
from undertow.nn.attention import AttentionInputs
from undertow.unet.blocks import StageInputs, with_addition
from undertow.unet.conditioning import Conditioning

TOLERANCE = 1e-5
"""float32: masked keys leave sums in another order."""


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs(regions: Tensor | None = None, mask: Tensor | None = None) -> StageInputs:
    return StageInputs(embedding=torch.zeros(2, 4), attention=AttentionInputs(mask=mask), regions=regions)


# Two rows of three tokens on a canvas of 4 x 6: everywhere, on the left, in one corner; the second row's mirrored.
REGIONS = torch.zeros(2, 3, 4, 6, dtype=torch.bool)
REGIONS[:, 0] = True
REGIONS[0, 1, :, :3], REGIONS[1, 1, :, 3:] = True, True
REGIONS[0, 2, 0, 0], REGIONS[1, 2, 3, 5] = True, True


@pytest.mark.parametrize("size", [(4, 6), (2, 3), (1, 1), (2, 2)])
def test_a_cell_sees_a_token_that_may_be_seen_anywhere_in_what_it_covers(size):
    """The maximum over the cell, so that no small region is lost at a low resolution."""
    seen = inputs(REGIONS).attention_over(torch.zeros(2, 1, *size)).mask
    assert seen.shape == (2, 1, size[0] * size[1], 3)
    assert seen.dtype == torch.bool
    for i in range(size[0]):
        for j in range(size[1]):
            rows = slice(i * 4 // size[0], (i + 1) * 4 // size[0])
            columns = slice(j * 6 // size[1], (j + 1) * 6 // size[1])
            covered = REGIONS[:, :, rows, columns].flatten(2).any(2)
            assert torch.equal(seen[:, 0, i * size[1] + j], covered)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_padding_is_seen_nowhere_whatever_its_region_says(dtype):
    """A shorter prompt's padding must stay hidden beside the regions of a longer one."""
    real = torch.tensor([[True, True, False], [True, False, False]])
    hidden = torch.zeros(2, 1, 4, 6, dtype=dtype)
    seen = inputs(REGIONS, real[:, None, None, :]).attention_over(hidden).mask
    alone = inputs(REGIONS).attention_over(hidden).mask
    assert not seen[0, ..., 2].any()
    assert not seen[1, ..., 1:].any()
    assert torch.equal(seen[0, ..., :2], alone[0, ..., :2]), "a real token is seen in its region and nowhere else"
    assert torch.equal(seen[1, ..., 0], alone[1, ..., 0])


def test_without_regions_the_mask_of_the_tokens_is_all_there_is():
    mask = torch.tensor([[True, False], [True, True]])[:, None, None, :]
    assert inputs(mask=mask).attention_over(torch.zeros(2, 1, 4, 6)).mask is mask
    assert inputs().attention_over(torch.zeros(2, 1, 4, 6)).mask is None


@torch.no_grad()
def test_padded_tokens_say_nothing_to_a_network_with_regions():
    """Through the whole network: what stands in the padding changes no bit, and what is seen changes its region."""
    unet, latents, given = pair("M15")[0], latents_for(M15, 8, 8), conditioning_for(M15, tokens=5)
    real = torch.tensor([[True] * 5, [True, True, True, False, False]])
    regions = torch.ones(2, 5, 8, 8, dtype=torch.bool)
    regions[1, 2, :, 4:] = False

    def draw(context: Tensor, **changes: Tensor) -> Tensor:
        settings = {"context_mask": real, "regions": regions, **changes}
        return unet(latents, TIMESTEPS, Conditioning(context=context, **settings))

    drawn = draw(given.context)
    padded, spoken = given.context.clone(), given.context.clone()
    padded[1, 3:] = 9.0
    assert torch.equal(draw(padded), drawn)
    spoken[1, 2] = 9.0
    assert not torch.allclose(draw(spoken)[1], drawn[1])
    short = Conditioning(context=given.context[1:, :3], regions=regions[1:, :3])
    alone = unet(latents[1:], TIMESTEPS[1:], short)
    assert (drawn[1:] - alone).abs().max() <= TOLERANCE * float(alone.abs().max())


@torch.no_grad()
def test_a_region_of_nothing_is_a_prompt_without_that_token():
    unet, latents, given = pair("M15")[0], latents_for(M15, 8, 8), conditioning_for(M15, tokens=3)
    regions = torch.ones(2, 3, 8, 8, dtype=torch.bool)
    regions[:, 1] = False
    found = unet(latents, TIMESTEPS, Conditioning(context=given.context, regions=regions))
    without = unet(latents, TIMESTEPS, Conditioning(context=given.context[:, [0, 2]]))
    assert (found - without).abs().max() <= TOLERANCE * float(without.abs().max())


def test_what_is_added_at_a_place_is_added_there_and_only_if_there_is_something():
    hidden, addition = normal(1, 2, 3, 3), normal(1, 2, 3, 3, seed=1)
    places = (None, addition)
    assert with_addition(hidden, places, 0) is hidden
    assert torch.equal(with_addition(hidden, places, 1), hidden + addition)
    assert with_addition(hidden, places, 2) is hidden
    assert with_addition(hidden, (), 0) is hidden
