"""Blocks that leave: those without effect leave no trace, and what is left is an architecture of diffusers."""

from dataclasses import replace

import pytest
import torch

from tests.few import few
from tests.golden.minis import MINIS, build
from tests.training.pruning.nets import built, inputs, same_in_diffusers
from undertow.training.pruning.blocks import most_removals, removals
from undertow.unet.config import CrossAttention, Level, Middle, UNetConfig

ATTENTION = CrossAttention(heads=2, depth=2)
CONFIG = UNetConfig(
    levels=(Level(channels=8), Level(channels=16, attention=ATTENTION), Level(channels=16)),
    middle=Middle(attention=ATTENTION),
    context_dim=12,
    norm_groups=4,
)
SAME = 1e-5


def silence(unet, *layers):
    """What these layers return is zero."""
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if name.rpartition(".")[0] in layers:
                parameter.zero_()


def pass_on(unet, name):
    """A decoder's ResBlock returns what it receives, without the skip connection."""
    silence(unet, f"{name}.conv2", f"{name}.conv_shortcut")
    shortcut = unet.get_submodule(f"{name}.conv_shortcut")
    with torch.no_grad():
        for channel in range(shortcut.weight.shape[0]):
            shortcut.weight[channel, channel] = 1


def dead_layer(unet):
    silence(unet, "down_blocks.1.resnets.1.conv2", "down_blocks.1.attentions.1.proj_out")
    pass_on(unet, "up_blocks.1.resnets.1")
    silence(unet, "up_blocks.1.attentions.1.proj_out")


def dead_transformer_block(unet):
    block = "up_blocks.1.attentions.0.transformer_blocks.0"
    silence(unet, f"{block}.attn1.to_out.0", f"{block}.attn2.to_out.0", f"{block}.ff.net.2")


def dead_middle(unet):
    silence(unet, "mid_block.attentions.0.proj_out", "mid_block.resnets.1.conv2")


@pytest.mark.parametrize(
    ("kill", "title", "within"),
    [
        (
            dead_layer,
            "layer 1 of down_blocks.1 and layer 1 of up_blocks.1",
            ("down_blocks.1.attentions.1.", "up_blocks.1.attentions.1."),
        ),
        (dead_transformer_block, "up_blocks.1.attentions.0.transformer_blocks.0", ()),
        (dead_middle, "mid_block.attentions.0 and mid_block.resnets.1", ()),
    ],
)
def test_a_block_without_effect_leaves_without_a_change(kill, title, within):
    """And no other block does, but for those within it."""
    unet = built(CONFIG)
    kill(unet)
    expected = unet(*with_latents())
    changes = {one.title: (one.apply(unet)(*with_latents()) - expected).abs().max() for one in removals(CONFIG)}
    assert changes[title] < SAME
    others = {one: change for one, change in changes.items() if one != title and not one.startswith(within or "-")}
    assert min(others.values()) > 100 * SAME


def with_latents():
    latents, timesteps, given = inputs(replace(CONFIG, in_channels=4))
    return latents, timesteps, given


def test_every_architecture_that_is_left_can_lose_blocks_until_none_is_left():
    found, left = CONFIG, []
    while options := removals(found):
        found = options[-1].config
        left.append(options[-1].title)
    assert len(left) <= most_removals(CONFIG) + 2
    assert found.levels[1].resnets == 1
    assert found.levels[1].attention == CrossAttention(heads=2, depth=1)
    assert found.middle == Middle(resnets=1)
    assert removals(found) == []


@pytest.mark.parametrize("name", few(["M15", "MXL"], 1))
def test_diffusers_loads_what_is_left_and_predicts_the_same(name, tmp_path):
    mini, unet = MINIS[name], build(MINIS[name])
    titles = []
    for pick in (0, -1, 7):
        options = removals(unet.config)
        titles.append(options[pick].title)
        unet = options[pick].apply(unet).eval()
    assert len(set(titles)) == 3
    same_in_diffusers(unet, mini, tmp_path / "unet")


def test_pixel_models_and_the_smallest_have_none():
    assert removals(MINIS["MUNC"].config) == []
    assert most_removals(MINIS["MUNC"].config) == 0
