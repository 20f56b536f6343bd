import math

import pytest
import torch

from undertow.encoders.emphasis import EMPHASIS, Weighing, mixed

HIDDEN = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5
EMPTY = torch.randn(1, 5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
FRAGMENTS = torch.tensor([[-1, 0, 0, 1, -1], [-1, 1, 2, 2, -1]])


def weigh(rule: str, *weights: float, hidden: torch.Tensor = HIDDEN) -> torch.Tensor:
    """Weights of the fragments 0, 1, 2; what is hidden turns to minus itself."""
    table = torch.tensor([*weights, 1.0], dtype=torch.float64)
    given = Weighing(
        hidden=hidden,
        weights=table[FRAGMENTS],
        fragments=FRAGMENTS,
        empty=lambda: EMPTY,
        without=lambda visible: torch.where(visible[..., None], hidden, -hidden),
    )
    return EMPHASIS[rule](given)


@pytest.mark.parametrize("rule", EMPHASIS)
def test_marks_and_unweighted_text_keep_their_direction(rule):
    """A1111's renormalization scales everything; nothing else touches what weighs 1."""
    result = weigh(rule, 1.5, 1.0, 1.0)
    ratio = result[1] / HIDDEN[1]
    assert torch.allclose(ratio, torch.ones_like(ratio))
    ratio = result[0, [0, 3, 4]] / HIDDEN[0, [0, 3, 4]]
    assert torch.allclose(ratio, ratio[0, 0].expand_as(ratio))
    assert (rule == "ignore") == torch.equal(result, HIDDEN)


def test_original_keeps_the_mean_of_each_chunk():
    result = weigh("original", 1.5, 0.3, 2.0)
    assert torch.allclose(result.mean((1, 2)), HIDDEN.mean((1, 2)))
    assert torch.allclose(result[0, 1] / result[0, 0], 1.5 * HIDDEN[0, 1] / HIDDEN[0, 0])


def test_original_survives_a_mean_of_zero():
    zero = torch.zeros_like(HIDDEN)
    assert weigh("original", 2.0, 1.0, 1.0, hidden=zero).isfinite().all()


def test_no_norm_multiplies():
    assert torch.equal(weigh("no_norm", 1.5, 1.0, 1.0)[0, 1:3], HIDDEN[0, 1:3] * 1.5)


@pytest.mark.parametrize(("weight", "share"), [(0.0, 0.0), (0.5, 0.5), (2.0, 2.0), (-1.0, -1.0)])
def test_lerp_goes_from_the_empty_prompt(weight, share):
    expected = (1 - share) * EMPTY[0, 1:3] + share * HIDDEN[0, 1:3]
    assert torch.allclose(weigh("lerp", weight, 1.0, 1.0)[0, 1:3], expected)


def test_compel_is_lerp_above_one():
    assert torch.equal(weigh("compel", 1.7, 1.0, 1.2), weigh("lerp", 1.7, 1.0, 1.2))


@pytest.mark.parametrize("weight", [0.0, 0.25, 0.5, 0.9, -0.5])
def test_compel_fades_towards_the_prompt_without_the_text(weight):
    """At 0.5 half of each, at 0 (and below) all of the prompt in which the text is hidden."""
    t = math.tan((1 - max(weight, 1e-5)) * math.pi / 2)
    hidden = HIDDEN.clone()
    hidden[0, 1:3] *= -1
    without = weigh("lerp", weight, 1.0, 1.0, hidden=hidden)
    expected = (weigh("lerp", weight, 1.0, 1.0) + t * without) / (1 + t)
    assert torch.allclose(weigh("compel", weight, 1.0, 1.0), expected)
    if weight == 0.5:
        assert math.isclose(t, 1.0)


def test_compel_fades_each_light_text_by_itself():
    first, second = (math.tan((1 - weight) * math.pi / 2) for weight in (0.5, 0.8))
    parts = []
    for faded in (torch.zeros_like(FRAGMENTS, dtype=torch.bool), FRAGMENTS.eq(0), FRAGMENTS.eq(1)):
        hidden = torch.where(faded[..., None], -HIDDEN, HIDDEN)
        parts.append(weigh("lerp", 0.5, 0.8, 1.0, hidden=hidden))
    expected = (parts[0] + first * parts[1] + second * parts[2]) / (1 + first + second)
    assert torch.allclose(weigh("compel", 0.5, 0.8, 1.0), expected)


def test_mixed():
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 6.0])
    assert mixed([a, b], [1.0, 3.0], normalize=True).tolist() == [2.5, 5.0]
    assert mixed([a, b], [1.0, -1.0], normalize=False).tolist() == [-2.0, -4.0]
