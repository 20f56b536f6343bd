"""Joining and repeating what rows are asked to draw."""

from dataclasses import fields, replace

import pytest
import torch

from tests.golden.minis import MINIS, conditioning_for, latents_for, pair
from undertow.errors import InvalidInput
from undertow.unet.conditioning import Conditioning, concatenate

TOLERANCE = 1e-5
"""float32: a batch sums in another order than its rows."""


@pytest.mark.parametrize(("name", "counts"), [("M15", (7, 7)), ("M15", (2, 11, 5)), ("MXL", (7, 3))])
@torch.no_grad()
def test_joined_rows_equal_separate_forwards(name, counts):
    """Trap T8: prompts of 77 and 154 tokens go through the network together."""
    unet, mini = pair(name)[0], MINIS[name]
    parts = [conditioning_for(mini, batch=1, tokens=count, seed=i) for i, count in enumerate(counts)]
    latents = latents_for(mini, 8, 8, batch=len(counts))
    timesteps = torch.linspace(3, 871.5, len(counts))
    together = unet(latents, timesteps, concatenate(parts))
    for row, part in enumerate(parts):
        alone = unet(latents[row : row + 1], timesteps[row : row + 1], part)
        assert (together[row] - alone[0]).abs().max() <= TOLERANCE * max(1.0, float(alone.abs().max()))


def test_equal_token_counts_need_no_mask():
    part = Conditioning(context=torch.ones(1, 5, 4))
    assert concatenate([part, part]).context_mask is None


def test_masks_are_padded_with_false_and_made_where_absent():
    masked = Conditioning(context=torch.ones(1, 2, 4), context_mask=torch.tensor([[True, False]]))
    plain = Conditioning(context=2 * torch.ones(2, 3, 4))
    joined = concatenate([masked, plain])
    assert joined.context.shape == (3, 3, 4)
    assert joined.context_mask.tolist() == [[True, False, False], [True] * 3, [True] * 3]
    assert torch.equal(joined.context[0, :2], masked.context[0])
    assert not joined.context[0, 2].any()
    equal = concatenate([masked, Conditioning(context=torch.ones(1, 2, 4))])
    assert equal.context_mask.tolist() == [[True, False], [True, True]]


@pytest.mark.parametrize("field", ["context", "regions", "pooled", "time_ids", "class_labels", "guidance"])
def test_a_field_set_in_some_parts_only_is_refused(field):
    part = replace(whole(1), context_mask=None)
    with pytest.raises(InvalidInput, match="set in 1 of 2 parts") as caught:
        concatenate([part, replace(part, **{field: None})])
    assert caught.value.argument == f"conditioning.{field}"


def test_a_single_part_is_itself():
    part = conditioning_for(MINIS["MXL"])
    assert concatenate([part]) is part


def whole(batch: int = 2) -> Conditioning:
    """Every field there is."""
    generator = torch.Generator().manual_seed(0)
    return Conditioning(
        context=torch.randn(batch, 3, 4, generator=generator),
        context_mask=torch.rand(batch, 3, generator=generator) > 0.5,
        regions=torch.rand(batch, 3, 2, 5, generator=generator) > 0.5,
        pooled=torch.randn(batch, 4, generator=generator),
        time_ids=torch.randn(batch, 6, generator=generator),
        class_labels=torch.arange(batch),
        guidance=torch.randn(batch, generator=generator),
    )


def assert_equal(one: Conditioning, other: Conditioning) -> None:
    for field in fields(Conditioning):
        a, b = getattr(one, field.name), getattr(other, field.name)
        assert (a is None and b is None) or torch.equal(a, b), field.name


@pytest.mark.parametrize("count", [1, 2, 3])
def test_rows_taken_apart_and_joined_are_what_they_were(count):
    rows = whole(count).rows()
    assert len(rows) == count
    assert all(len(row.context) == len(row.guidance) == 1 for row in rows)
    assert_equal(concatenate(rows), whole(count))
    assert_equal(rows[-1], Conditioning(**{k: v[-1:] for k, v in vars(whole(count)).items()}))


def test_the_rows_of_one_field_are_counted_by_it():
    rows = Conditioning(class_labels=torch.tensor([3, 5])).rows()
    assert [row.class_labels.tolist() for row in rows] == [[3], [5]]
    assert all(row.context is None for row in rows)
    with pytest.raises(InvalidInput, match="its rows are counted by its fields"):
        Conditioning().rows()


def test_regions_of_padding_are_nowhere():
    """A token that pads a shorter prompt may be seen in no cell."""
    short = Conditioning(context=torch.ones(1, 1, 4), regions=torch.ones(1, 1, 2, 3, dtype=torch.bool))
    long = Conditioning(context=torch.ones(1, 3, 4), regions=torch.ones(1, 3, 2, 3, dtype=torch.bool))
    joined = concatenate([short, long])
    assert joined.regions.shape == (2, 3, 2, 3)
    assert joined.regions.flatten(2).all(2).tolist() == [[True, False, False], [True] * 3]
    assert not joined.regions[0, 1:].any()


def test_parts_without_text_are_joined_as_they_are():
    parts = [Conditioning(class_labels=torch.tensor([label])) for label in (3, 5)]
    assert_equal(concatenate(parts), Conditioning(class_labels=torch.tensor([3, 5])))


def test_a_part_without_the_text_that_another_has_is_refused_whatever_their_masks():
    masked = Conditioning(context=torch.ones(1, 2, 4), context_mask=torch.ones(1, 2, dtype=torch.bool))
    with pytest.raises(InvalidInput, match=r"conditioning\.context is set in 1 of 2 parts"):
        concatenate([masked, Conditioning(class_labels=torch.tensor([1]))])


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
    cast = whole().to(dtype=torch.bfloat16, device="cpu")
    assert cast.context.dtype == cast.pooled.dtype == torch.bfloat16
    assert cast.time_ids.dtype == cast.guidance.dtype == torch.float32
    assert cast.context_mask.dtype == cast.regions.dtype == torch.bool
    assert cast.class_labels.dtype == torch.int64
    assert_equal(whole().to(), whole())
    moved = whole().to(device="meta")
    assert {value.device.type for value in vars(moved).values()} == {"meta"}
    assert moved.context.dtype == torch.float32
    assert Conditioning().to(dtype=torch.bfloat16) == Conditioning()
