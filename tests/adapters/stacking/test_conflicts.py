"""What stands in whose way, what is done about it, and how it is told."""

import dataclasses
from itertools import permutations

import pytest
import torch

from tests.adapters.stacks import base, dense, dora, low_rank, summary
from undertow.adapters.lora.additive import Difference
from undertow.adapters.stack import AdapterStack
from undertow.adapters.stacking.conflicts import (
    Incompatible,
    OverBudget,
    SameLayer,
    additive_overlaps,
    find_conflicts,
    overlapping_in_time,
)
from undertow.adapters.stacking.decisions import decide, describe_interactions

STYLE = summary("style", {"a": low_rank("s", "a"), "c": low_rank("s", "c")}, scale=0.5, size_bytes=30)
CHARACTER = summary("character", {"a": low_rank("c", "a")}, scale=-2.0, priority=1, size_bytes=20)
TURNED = summary("turned", {"a": dora("d", "a"), "b": dora("d", "b")}, size_bytes=50)


def stack_of(*summaries, **settings):
    return AdapterStack(tuple(each.adapter for each in summaries), **settings)


def test_overlap_of_two_on_a_layer():
    (found,) = find_conflicts(stack_of(STYLE, CHARACTER), [STYLE, CHARACTER])
    style, character = 0.5 * dense(low_rank("s", "a"), "a"), -2.0 * dense(low_rank("c", "a"), "a")
    assert isinstance(found, SameLayer)
    assert (found.layer, found.names) == ("a", ("character", "style"))
    assert found.cosine == pytest.approx(float((style * character).sum() / style.norm() / character.norm()), abs=1e-5)
    assert found.energy_ratio == pytest.approx(float(style.norm() ** 2 / character.norm() ** 2), rel=1e-5)
    assert abs(found.cosine) > 0.01


@pytest.mark.parametrize(("scale", "cosine"), [(0.3, 1.0), (-0.3, -1.0)])
def test_the_same_change_is_parallel_or_opposite(scale, cosine):
    copy = summary("copy", {"c": low_rank("s", "c")}, scale=scale)
    (found,) = find_conflicts(stack_of(STYLE, copy), [copy, STYLE])
    assert found.cosine == pytest.approx(cosine, abs=1e-5)
    assert found.energy_ratio == pytest.approx(0.36, rel=1e-5)


def test_a_schedule_counts_by_the_largest_of_its_scales_whatever_its_sign():
    falling = summary("falling", {"c": low_rank("s", "c")}, scale=(0.25, -1.5, 0.0))
    (found,) = find_conflicts(stack_of(STYLE, falling), [falling, STYLE])
    assert found.cosine == pytest.approx(-1.0, abs=1e-5)
    assert found.energy_ratio == pytest.approx((1.5 / 0.5) ** 2, rel=1e-5)


def test_what_does_not_act_is_in_nobodys_way():
    silent = summary("silent", {"a": low_rank("x", "a")}, scale=0.0)
    zero = summary("zero", {"a": Difference(weight_change=torch.zeros(12, 10))})
    bias = summary("bias", {"a": Difference(bias_change=torch.ones(12))})
    elsewhere = summary("elsewhere", {"b": low_rank("x", "b")})
    text_only = summary("text", None)
    off = stack_of(STYLE, CHARACTER).with_enabled("character", False)
    for other in (silent, zero, bias, elsewhere, text_only):
        assert find_conflicts(stack_of(STYLE, other), [STYLE, other]) == ()
    assert find_conflicts(off, [STYLE, CHARACTER]) == ()
    assert find_conflicts(AdapterStack(), []) == ()


def test_what_looks_at_the_weight_goes_by_priority():
    stack = stack_of(STYLE, TURNED)
    (found,) = find_conflicts(stack, [STYLE, TURNED])
    assert isinstance(found, Incompatible)
    assert found.names == ("style", "turned")
    assert "the layer a" in found.reason
    assert "dora of turned" in found.reason
    decided = decide(stack, [STYLE, TURNED])
    assert (decided.kept, decided.disabled) == (("style",), ("turned",))
    assert decided.notes[0].startswith("turned is off, style comes before it: both change the layer a")
    higher = dataclasses.replace(TURNED, adapter=dataclasses.replace(TURNED.adapter, priority=5))
    assert decide(stack_of(STYLE, higher), [STYLE, higher]).disabled == ("style",)


def test_who_is_off_is_in_nobodys_way_any_more():
    """c looks at what b changes, and b has to go because of a."""
    a = summary("a", {"a": low_rank("1", "a")}, priority=3)
    b = summary("b", {"a": dora("2", "a"), "b": dora("2", "b")}, priority=2)
    c = summary("c", {"b": low_rank("3", "b")}, priority=1)
    decided = decide(stack_of(a, b, c), [a, b, c])
    assert (decided.kept, decided.disabled) == (("a", "c"), ("b",))


def test_strategy_priority_keeps_both_where_order_would_matter():
    decided = decide(stack_of(TURNED, STYLE, strategy="priority"), [TURNED, STYLE])
    assert decided.kept == ("turned", "style")
    assert set(decided.layers["style"].updates) == {"c"}
    assert "turned" not in decided.layers or set(decided.layers["turned"].updates) == {"a", "b"}


def test_an_unusable_file_is_off_with_its_reason():
    wrong = summary("wrong", None, problem="it was made for SDXL (reads text 2048 wide), and this model is SD1")
    decided = decide(stack_of(wrong, STYLE), [wrong, STYLE])
    assert decided.kept == ("style",)
    assert decided.conflicts == (Incompatible(names=("wrong",), reason=wrong.problem),)
    assert decided.notes == (f"wrong is off: {wrong.problem}",)


@pytest.mark.parametrize(
    ("budget", "dropped"),
    [(None, ()), (100, ()), (99, ("turned",)), (50, ("turned",)), (49, ("turned", "style")), (0, None)],
)
def test_the_lowest_priority_goes_until_there_is_room(budget, dropped):
    elsewhere = dataclasses.replace(TURNED, layers=dataclasses.replace(TURNED.layers, updates={}))
    stack = stack_of(STYLE, elsewhere, CHARACTER, budget_bytes=budget)
    decided = decide(stack, [STYLE, elsewhere, CHARACTER])
    rooms = [conflict for conflict in decided.conflicts if isinstance(conflict, OverBudget)]
    if dropped == ():
        assert rooms == []
    else:
        expected = ("turned", "style", "character") if dropped is None else dropped
        assert rooms == [OverBudget(needed_bytes=100, budget_bytes=budget, dropped=expected)]
        assert set(decided.disabled) == set(expected)
        assert "the lowest priority goes first" in decided.notes[0]


def test_what_has_to_go_anyway_needs_no_room():
    wrong = summary("wrong", None, problem="of another family", size_bytes=10**9, priority=9)
    decided = decide(stack_of(wrong, STYLE, budget_bytes=30), [wrong, STYLE])
    assert decided.kept == ("style",)


def test_lines_name_the_pair_the_overlap_and_the_strategy():
    decided = decide(stack_of(STYLE, CHARACTER, strategy="orthogonal"), [STYLE, CHARACTER])
    assert decided.notes[0].startswith("character and style both change a layer: cosine ")
    assert "at a; orthogonal: a lower priority keeps" in decided.notes[0]
    before, after = (dense(each.updates["a"], "a").norm() ** 2 for each in (STYLE.layers, decided.layers["style"]))
    rest = dense(low_rank("s", "c"), "c").norm() ** 2
    share = float((after + rest) / (before + rest))
    assert decided.notes[1] == f"style keeps {share:.0%} of its energy beside those of higher priority"
    assert share < 0.99
    assert decide(stack_of(STYLE, CHARACTER), [STYLE, CHARACTER]).layers == {}


def test_points_where_things_add_up_are_no_conflict():
    edges = summary("edges", None, kind="controlnet", points=("skips.0", "skips.1", "middle"))
    pose = summary("pose", None, kind="controlnet", points=("skips.0", "skips.1", "middle"))
    sketch = summary("sketch", None, kind="t2i", points=("middle",))
    stack = stack_of(edges, pose, sketch, STYLE)
    decided = decide(stack, [edges, pose, sketch, STYLE])
    assert decided.conflicts == ()
    assert decided.kept == ("edges", "pose", "sketch", "style")
    assert decided.notes == (
        "edges and pose act at 2 points (skips.0, ...): their contributions add up, in any order",
        "edges and pose and sketch act at middle: their contributions add up, in any order",
    )
    assert len(additive_overlaps([edges, sketch])) == 1


def test_the_order_of_giving_does_not_matter():
    """Priorities decide; whoever attaches in another order gets the same changes."""
    all_three = [
        dataclasses.replace(each, adapter=dataclasses.replace(each.adapter, priority=index))
        for index, each in enumerate((STYLE, CHARACTER, summary("third", {"a": low_rank("t", "a")})))
    ]
    for strategy in ("normalised", "orthogonal", "ties", "priority"):
        found = [decide(stack_of(*order, strategy=strategy), list(order)) for order in permutations(all_three)]
        for other in found[1:]:
            assert (other.kept, other.notes) == (found[0].kept, found[0].notes)
            for name, changed in found[0].layers.items():
                assert changed.key == other.layers[name].key
                for layer, update in changed.updates.items():
                    assert torch.equal(
                        update.weight(base(layer), 1.0), other.layers[name].updates[layer].weight(base(layer), 1.0)
                    )


def during(each, start, end):
    return dataclasses.replace(each, adapter=dataclasses.replace(each.adapter, start=start, end=end))


@pytest.mark.parametrize("strategy", ["normalised", "ties", "priority"])
def test_who_acts_in_other_steps_is_in_nobodys_way(strategy):
    first, second = during(STYLE, 0.0, 0.5), during(CHARACTER, 0.5, 1.0)
    decided = decide(stack_of(first, second, strategy=strategy), [first, second])
    assert (decided.conflicts, decided.layers) == ((), {})
    turned = during(TURNED, 0.5, 1.0)
    assert decide(stack_of(first, turned), [first, turned]).disabled == ()
    throughout = summary("throughout", {"a": low_rank("t", "a")})
    met = [first, second, throughout]
    decided = decide(stack_of(*met, strategy=strategy), met)
    pairs = {conflict.names for conflict in decided.conflicts}
    assert pairs == {("character", "throughout"), ("style", "throughout")}
    assert overlapping_in_time(met) == [met]
    assert overlapping_in_time([first, second]) == [[first], [second]]


def test_without_a_stack_order_is_told_where_it_matters():
    other = summary("other", {"a": dora("o", "a")})
    assert describe_interactions([STYLE, CHARACTER]) == ()
    (line,) = describe_interactions([TURNED, other])
    assert "turned is applied first, as listed, and the other order would give another picture" in line
    (line,) = describe_interactions([STYLE, TURNED])
    expected = "is computed from the base weights of the layer a; the other adapter's change is added after it"
    assert line == f"dora of turned {expected}"
