"""Joining and repeating what rows are asked to draw."""

from dataclasses import fields, replace

import pytest
import torch

from tests.golden.minis import MINIS, conditioning_for, latents_for, pair
from undertow.errors import InvalidInput
from undertow.unet.conditioning import Conditioning, concatenate

TOLERANCE = 1e-5
"""float32: a batch sums in another order than its rows."""


@pytest.mark.parametrize("counts", [(7, 7), (7, 3), (2, 11, 5)])
@pytest.mark.parametrize("name", ["M15", "MXL"])
@torch.no_grad()
def test_joined_rows_equal_separate_forwards(name, counts):
    """Trap T8: prompts of 77 and 154 tokens go through the network together."""
    unet, mini = pair(name)[0], MINIS[name]
    parts = [conditioning_for(mini, batch=1, tokens=count, seed=i) for i, count in enumerate(counts)]
    latents = latents_for(mini, batch=len(counts))
    timesteps = torch.linspace(3, 871.5, len(counts))
    together = unet(latents, timesteps, concatenate(parts))
    for row, part in enumerate(parts):
        alone = unet(latents[row : row + 1], timesteps[row : row + 1], part)
        assert (together[row] - alone[0]).abs().max() <= TOLERANCE * max(1.0, float(alone.abs().max()))


def test_equal_token_counts_need_no_mask():
    part = Conditioning(context=torch.randn(1, 5, 4))
    assert concatenate([part, part]).context_mask is None


def test_masks_are_padded_with_false_and_made_where_absent():
    masked = Conditioning(context=torch.randn(1, 2, 4), context_mask=torch.tensor([[True, False]]))
    plain = Conditioning(context=torch.randn(2, 3, 4))
    joined = concatenate([masked, plain])
    assert joined.context.shape == (3, 3, 4)
    assert joined.context_mask.tolist() == [[True, False, False], [True] * 3, [True] * 3]
    assert torch.equal(joined.context[0, :2], masked.context[0])
    assert not joined.context[0, 2].any()
    equal = concatenate([masked, Conditioning(context=torch.randn(1, 2, 4))])
    assert equal.context_mask.tolist() == [[True, False], [True, True]]


@pytest.mark.parametrize("field", ["context", "pooled", "time_ids", "class_labels", "guidance"])
def test_a_field_set_in_some_parts_only_is_refused(field):
    whole = Conditioning(
        context=torch.randn(1, 3, 4),
        pooled=torch.randn(1, 4),
        time_ids=torch.randn(1, 6),
        class_labels=torch.tensor([1]),
        guidance=torch.tensor([7.5]),
    )
    with pytest.raises(InvalidInput, match="set in 1 of 2 parts") as caught:
        concatenate([whole, replace(whole, **{field: None})])
    assert caught.value.argument == f"conditioning.{field}"


def test_a_single_part_is_itself():
    part = conditioning_for(MINIS["MXL"])
    assert concatenate([part]) is part


def test_nothing_to_join_is_refused():
    with pytest.raises(InvalidInput, match="parts"):
        concatenate([])


def test_repeat_keeps_the_rows_of_a_prompt_together():
    given = conditioning_for(MINIS["MXL"], batch=2)
    repeated = given.repeat(3)
    for field in fields(Conditioning):
        value = getattr(given, field.name)
        if value is None:
            assert getattr(repeated, field.name) is None
        else:
            assert torch.equal(getattr(repeated, field.name), value[[0, 0, 0, 1, 1, 1]])


def test_to_casts_embeddings_only():
    given = replace(
        conditioning_for(MINIS["MXL"]),
        context_mask=torch.ones(2, 7, dtype=torch.bool),
        class_labels=torch.tensor([1, 2]),
        guidance=torch.tensor([7.5, 1.0]),
    )
    cast = given.to(dtype=torch.bfloat16, device="cpu")
    assert cast.context.dtype == cast.pooled.dtype == torch.bfloat16
    assert cast.time_ids.dtype == cast.guidance.dtype == torch.float32
    assert cast.context_mask.dtype == torch.bool
    assert cast.class_labels.dtype == torch.int64
