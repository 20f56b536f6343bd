"""Narrower networks: dead channels leave without a change, the least important first, and diffusers reads the rest."""

import pytest
import torch

from tests.few import few
from tests.golden.minis import MINIS, build
from tests.training.pruning.nets import (
    GROUPS,
    KEPT,
    built,
    config,
    inputs,
    kill,
    live_members,
    predict,
    same_in_diffusers,
    same_members,
    weaken,
)
from undertow.errors import ConfigError, InvalidInput
from undertow.nn.embeddings import sinusoid
from undertow.training.pruning.importance import measured
from undertow.training.pruning.narrowing import Moments, chosen, narrow
from undertow.training.pruning.spaces import Spaces
from undertow.training.pruning.widths import groups_for, narrowed, possible_groups
from undertow.unet.config import CrossAttention, Level, UNetConfig

ROUNDING = 2e-3
"""Of float32 through a whole network, and of LayerNorm's epsilon beside another variance; random channels in place of
dead ones change predictions by more than half."""
FITTED = 0.25
"""Relative error of the first layer of the time embedding at other frequencies."""


@pytest.mark.parametrize("name", MINIS)
def test_spaces_cover_every_tensor_of_every_architecture(name):
    of = MINIS[name].config
    if of.guidance_dim is not None:
        with pytest.raises(ConfigError, match="pruned before it is distilled"):
            Spaces(of)
        return
    sizes, tensors = Spaces(of).sizes(), build(MINIS[name]).state_dict()
    assert sizes.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert all(size in (0, tensor.shape[index]) for index, size in enumerate(sizes[key])), key


@pytest.mark.parametrize(("kind", "heads"), [("pixels", 4), ("text", 4), ("text", 1)])
def test_channels_that_are_dead_leave_without_a_change(kind, heads):
    """Of feature maps and their normalization, skip connections, hidden layers, tokens, heads, queries and values
    within a head that becomes narrower, feed-forward layers and the time embedding, all at once."""
    of = config(kind, heads)
    after = narrowed(of, KEPT)
    assert after.block_out_channels == [4, 8]
    assert after.norm_groups == KEPT
    unet, live = built(of), live_members(Spaces(of), Spaces(after))
    random = unet(*inputs(of))
    kill(unet, live)
    expected = unet(*inputs(of))
    importance, moments = measured(unet, lambda batch: predict(unet, batch), 3, seed=0)
    assert same_members(chosen(Spaces(of), Spaces(after), importance), live) == []
    smaller = narrow(unet, after, importance, moments).eval()
    found = smaller(*inputs(of))
    scale = expected.square().mean().sqrt()
    assert (found - expected).abs().max() < ROUNDING * scale
    assert (random - expected).abs().max() > 0.5 * scale, "what is dead now mattered"
    assert sum(one.numel() for one in smaller.parameters()) < 0.12 * sum(one.numel() for one in unet.parameters())


def test_what_matters_least_changes_predictions_least():
    """By a third of what random members change, and most of all by those that matter most."""
    of = config("text", 4)
    unet, after = built(of), narrowed(of, 6)
    weaken(unet)
    importance, moments = measured(unet, lambda batch: predict(unet, batch), 12, seed=0)
    generator = torch.Generator().manual_seed(0)
    others = {name: torch.rand(one.shape, dtype=torch.float64, generator=generator) for name, one in importance.items()}
    wrong = {name: -one for name, one in importance.items()}
    expected = unet(*inputs(of, batch=8))
    errors = [
        (narrow(unet, after, one, moments)(*inputs(of, batch=8)) - expected).square().mean()
        for one in (importance, others, wrong)
    ]
    assert errors[0] < 0.7 * errors[1] < 0.7 * errors[2]


@pytest.mark.parametrize("name", few(["M15", "MXL", "MSSD", "M21"], 2))
def test_diffusers_loads_it_and_predicts_the_same(name, tmp_path):
    mini, unet = MINIS[name], build(MINIS[name])
    after = narrowed(unet.config, groups_for(unet.config, 0.5))
    generator = torch.Generator().manual_seed(0)
    importance = {
        key: torch.rand(space.size, dtype=torch.float64, generator=generator)
        for key, space in Spaces(unet.config).spaces.items()
    }
    smaller = narrow(unet, after, importance, Moments({})).eval()
    theirs = same_in_diffusers(smaller, mini, tmp_path / "unet")
    assert list(theirs.config["block_out_channels"]) == [width // 2 for width in unet.config.block_out_channels]


def test_the_time_embedding_is_fitted_to_the_frequencies_of_the_new_width():
    of = UNetConfig(levels=(Level(channels=64),), time_dim=16, norm_groups=32)
    unet, after = built(of), narrowed(of, 24)
    with torch.no_grad():  # faster than a radian in 20 steps no other frequency follows
        unet.time_embedding.linear_1.weight[:, :11] = unet.time_embedding.linear_1.weight[:, 32:43] = 0
    importance = {key: torch.ones(space.size, dtype=torch.float64) for key, space in Spaces(of).spaces.items()}
    smaller = narrow(unet, after, importance, Moments({}))
    timesteps = torch.arange(0, 1000, 7)
    wanted = unet.time_embedding.linear_1(sinusoid(timesteps, 64))
    found = smaller.time_embedding.linear_1(sinusoid(timesteps, 48))
    assert (found - wanted).norm() < FITTED * wanted.norm()
    kept = [*range(24), *range(32, 56)]
    cut = sinusoid(timesteps, 48) @ unet.time_embedding.linear_1.weight[:, kept].T + unet.time_embedding.linear_1.bias
    assert (cut - wanted).norm() > 3 * (found - wanted).norm()
    assert smaller.time_embedding.linear_1.weight.abs().max() < 4 * unet.time_embedding.linear_1.weight.abs().max()


@pytest.mark.parametrize(
    ("heads", "groups", "expected"),
    [(6, 24, 6), (6, 16, 3), (6, 28, 6), (2, 16, 1), (1, 8, 1), (12, 16, 6)],
)
def test_whole_heads_leave_where_they_fit_and_else_they_become_narrower(heads, groups, expected):
    attention = CrossAttention(heads=heads)
    of = UNetConfig(levels=(Level(channels=192, attention=attention),), context_dim=8)
    found = narrowed(of, groups).levels[0]
    assert found.channels == 6 * groups
    assert isinstance(found.attention, CrossAttention)
    assert found.attention.heads == expected
    assert found.channels // expected <= 192 // heads


def test_a_width_is_rounded_down_to_one_that_exists():
    of = MINIS["M15"].config
    for width, groups in ((0.75, 24), (0.74, 20), (0.999, 28), (0.5, 16)):
        assert groups_for(of, width) == groups
    assert all(Spaces(narrowed(of, groups)) for groups in possible_groups(of))


@pytest.mark.parametrize("width", [0.0, -0.5, 0.01, 1.0, 2.0, float("nan")])
def test_a_width_that_leaves_nothing_or_all_is_refused_with_what_works(width):
    of = config("text", 4)
    least = possible_groups(of)[-1] / GROUPS
    with pytest.raises(InvalidInput, match=rf"from {least:g} to 0\.\d+") as caught:
        groups_for(of, width)
    assert f"the smallest U-Net is that of {least:g}" in str(caught.value)
