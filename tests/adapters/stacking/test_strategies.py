"""What several changes of one layer become, against formulas written out on whole matrices, and against PEFT."""

import pytest
import torch
from peft.utils.merge_utils import ties as peft_ties

from tests.adapters.lora.files import normal
from tests.adapters.stacks import SHAPES, base, changes, dense, full, low_rank, summary, total
from undertow.adapters.lora.additive import Hadamard, LowRank
from undertow.adapters.lora.updates import Product, ScaledUpdates
from undertow.adapters.stack import DENSITY, STRATEGIES
from undertow.adapters.stacking.overlap import delta, energy, inner
from undertow.adapters.stacking.strategies import Rule, revised, shared_layers

CLOSE = 1e-5
"""Of the largest value: sums of float32 numbers in another order."""


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=CLOSE * max(1.0, float(expected.abs().max())))


def acting(*summaries):
    return [each.scaled for each in summaries]


HIGH = summary("high", {"a": low_rank("h", "a"), "c": low_rank("h", "c"), "n": full("h", "n")}, scale=0.8)
LOW = summary(
    "low",
    {"a": low_rank("l", "a", rank=2), "b": low_rank("l", "b"), "c": low_rank("l", "c"), "n": full("l", "n")},
    scale=-0.6,
    factors={"a": 0.5},
)
SHARED = ("a", "c", "n")


def at_scale(each, layer):
    return each.layers.gain(layer, each.adapter.scales[0]) * dense(each.layers.updates[layer], layer)


@pytest.mark.parametrize("layer", SHARED)
@pytest.mark.parametrize("make", [low_rank, full])
def test_inner_products_equal_those_of_whole_matrices(layer, make):
    if layer == "n":
        make = full
    one, other = make("one", layer), full("other", layer)
    products = [low_rank("third", layer)] if layer != "n" else []
    for another in (other, *products):
        expected = (dense(one, layer) * dense(another, layer)).sum()
        for found in (inner(delta(one), delta(another)), inner(delta(another), delta(one))):
            assert found == pytest.approx(float(expected), rel=1e-4, abs=1e-4)
    assert energy(delta(one)) == pytest.approx(float(dense(one, layer).square().sum()), rel=1e-5)


def test_low_rank_changes_stay_products_and_large_ranks_become_matrices():
    assert isinstance(delta(low_rank("x", "a")), Product)
    parts = {name: normal(*shape, seed=name) for name, shape in
             (("w1_a", (12, 4)), ("w1_b", (4, 10)), ("w2_a", (12, 4)), ("w2_b", (4, 10)))}  # fmt: skip
    loha = Hadamard(**parts, scale=0.3)
    assert isinstance(delta(loha), torch.Tensor), "rank 16 in 12 x 10"
    assert energy(delta(loha)) == pytest.approx(float(dense(loha, "a").square().sum()), rel=1e-5)


def test_sum_changes_nothing():
    assert revised(acting(HIGH, LOW), Rule(strategy="sum")) == {}
    assert list(shared_layers(acting(HIGH, LOW))) == list(SHARED)


@pytest.mark.parametrize("strategy", sorted(STRATEGIES.keys() - {"sum"}))
def test_layers_of_one_adapter_stay_as_they_are(strategy):
    found = revised(acting(HIGH, LOW), Rule(strategy=strategy))
    assert found["low"].updates["b"] is LOW.layers.updates["b"]
    assert found["low"].gain("b", 0.3) == 0.3
    assert found["low"].key != LOW.layers.key
    assert revised(acting(HIGH), Rule(strategy=strategy)) == {}
    alone = summary("alone", {"b": low_rank("x", "b")})
    assert revised(acting(HIGH, alone), Rule(strategy=strategy)) == {}


@pytest.mark.parametrize("layer", SHARED)
def test_normalised_scales_sum_to_one(layer):
    found = revised(acting(HIGH, LOW), Rule(strategy="normalised"))
    sizes = [abs(each.layers.gain(layer, each.adapter.scales[0])) for each in (HIGH, LOW)]
    expected = (at_scale(HIGH, layer) + at_scale(LOW, layer)) / sum(sizes)
    assert_close(total((HIGH, LOW), found, layer), expected)
    gains = [abs(found[each.name].gain(layer, each.adapter.scales[0])) for each in (HIGH, LOW)]
    assert sum(gains) == pytest.approx(1.0)
    assert found["low"].updates[layer] is LOW.layers.updates[layer], "still low-rank, and bankable"


@pytest.mark.parametrize("layer", SHARED)
def test_weights_multiply_scales_where_layers_are_shared(layer):
    found = revised(acting(HIGH, LOW), Rule(strategy="weighted", weights={"low": 0.25}))
    assert_close(total((HIGH, LOW), found, layer), at_scale(HIGH, layer) + 0.25 * at_scale(LOW, layer))


@pytest.mark.parametrize("layer", SHARED)
def test_priority_leaves_the_highest_alone(layer):
    found = revised(acting(HIGH, LOW), Rule(strategy="priority"))
    assert_close(total((HIGH, LOW), found, layer), at_scale(HIGH, layer))
    assert set(found["low"].updates) == {"b"}


THIRD = summary("third", {"a": low_rank("t", "a"), "c": full("t", "c"), "n": full("t", "n")}, scale=0.3)


@pytest.mark.parametrize("density", [0.1, DENSITY, 0.6])
@pytest.mark.parametrize("layer", SHARED)
def test_ties_is_that_of_peft(layer, density):
    all_three = (HIGH, LOW, THIRD)
    found = revised(acting(*all_three), Rule(strategy="ties", density=density))
    tensors = [at_scale(each, layer).float() for each in all_three]
    expected = peft_ties(tensors, torch.ones(3), density=density)
    assert float(expected.abs().max()) > 0.01
    assert_close(total(all_three, found, layer), expected.double())
    assert found["high"].updates[layer].factored_rank is None, "no slot takes it"


@pytest.mark.filterwarnings("ignore:The density 1.0:UserWarning")  # PEFT's way of saying that nothing is trimmed
def test_a_draw_is_elected_as_peft_does():
    """Two changes that cancel each other: neither sign has more, and the positive one is taken."""
    change = low_rank("same", "a")
    opposite = [summary("x", {"a": change}), summary("y", {"a": change}, scale=-1.0)]
    found = revised(acting(*opposite), Rule(strategy="ties", density=1.0))
    tensors = [at_scale(each, "a").float() for each in opposite]
    expected = peft_ties(tensors, torch.ones(2), density=1.0)
    assert float(expected.min()) >= 0
    assert_close(total(opposite, found, "a"), expected.double())


def test_ties_of_one_change_that_all_share_is_that_change_trimmed():
    """Three copies elect what each says: the mean of equal numbers."""
    copies = [summary(name, {"a": low_rank("same", "a")}) for name in ("x", "y", "z")]
    found = revised(acting(*copies), Rule(strategy="ties", density=1.0))
    assert_close(total(copies, found, "a"), dense(low_rank("same", "a"), "a"))


def test_an_elected_part_follows_its_own_gain():
    found = revised(acting(HIGH, LOW), Rule(strategy="ties"))
    update = found["low"].updates["a"]
    weight = update.weight(base("a"), 0.5)
    assert_close(weight.double(), base("a").double() + 0.5 * dense(update, "a"))
    assert torch.equal(update.weight(base("a"), 0.0), base("a"))
    assert update.fits(SHAPES["a"])
    assert update.size_bytes == LOW.layers.updates["a"].size_bytes
    assert_close(dense(update.on("cpu"), "a"), dense(update, "a"))


def test_biases_are_elected_too():
    pair = [summary(name, {"a": low_rank(name, "a", bias=True)}) for name in ("x", "y")]
    alone = summary("z", {"a": low_rank("z", "a")}, scale=0.4)
    found = revised(acting(*pair, alone), Rule(strategy="ties", density=0.5))
    biases = [each.layers.updates["a"].bias_change for each in pair]
    expected = peft_ties([*biases, torch.zeros(12)], torch.ones(3), density=0.5)
    assert_close(sum(found[each.name].updates["a"].bias_change for each in pair), expected)
    assert found["z"].updates["a"].bias_change is None


@pytest.mark.parametrize("layer", ["a", "c"])
def test_an_orthogonal_change_is_blind_to_what_higher_ones_react_to(layer):
    all_three = (HIGH, LOW, summary("third", {"a": low_rank("t", "a"), "c": low_rank("t", "c")}, scale=0.3))
    found = revised(acting(*all_three), Rule(strategy="orthogonal"))
    projected = [dense(found[each.name].updates[layer], layer).flatten(1) for each in all_three]
    own = [dense(each.layers.updates[layer], layer).flatten(1) for each in all_three]
    assert_close(projected[0], own[0])
    for lower in (1, 2):
        for higher in range(lower):
            assert float((projected[lower] @ own[higher].T).abs().max()) < CLOSE * float(own[lower].abs().max()) * 10
        # Independently: least squares takes away what the higher rows explain.
        rows = torch.cat(own[:lower])
        explained = torch.linalg.lstsq(rows.T, own[lower].T, rcond=1e-5, driver="gelsd").solution
        assert_close(projected[lower], own[lower] - (rows.T @ explained).T)
        assert projected[lower].norm() > 0.1 * own[lower].norm()
        assert isinstance(found[all_three[lower].name].updates[layer], LowRank)
    weight = found["low"].updates["c"].weight(base("c"), 1.0)
    assert weight.shape == SHAPES["c"]


def test_orthogonal_norms_lose_the_direction_of_the_higher_one():
    found = revised(acting(HIGH, LOW), Rule(strategy="orthogonal"))
    high, low = (dense(each.layers.updates["n"], "n") for each in (HIGH, LOW))
    assert_close(dense(found["low"].updates["n"], "n"), low - (low @ high) / (high @ high) * high)


def test_beside_a_full_rank_change_nothing_orthogonal_remains():
    whole = summary("whole", {"a": full("w", "a")})
    found = revised(acting(whole, LOW), Rule(strategy="orthogonal"))
    assert float(dense(found["low"].updates["a"], "a").abs().max()) < CLOSE
    third = summary("third", {"a": low_rank("t", "a")})
    found = revised(acting(whole, LOW, third), Rule(strategy="orthogonal"))
    assert float(dense(found["third"].updates["a"], "a").abs().max()) < CLOSE


def test_an_untrained_change_takes_no_directions():
    untrained = low_rank("u", "a")
    untrained = LowRank(down=untrained.down, up=torch.zeros_like(untrained.up))
    found = revised(acting(summary("new", {"a": untrained}), LOW), Rule(strategy="orthogonal"))
    assert_close(dense(found["low"].updates["a"], "a"), dense(LOW.layers.updates["a"], "a"))


def test_a_layer_that_is_switched_off_is_not_shared():
    off = ScaledUpdates(layers=changes("off", {"a": low_rank("o", "a")}, {"a": 0.0}), gain=1.0)
    assert shared_layers([HIGH.scaled, off]) == {}
