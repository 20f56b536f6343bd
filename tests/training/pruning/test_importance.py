"""Importance is how much predictions change where a channel is scaled down: against finite differences."""

import pytest
import torch

from tests.training.pruning.nets import built, config, predict
from undertow.training.pruning.importance import measured
from undertow.training.pruning.spaces import Spaces

STEP = 1e-3
PROBES = 150
SPREAD = 0.4
"""Relative, of a mean over so many squares of normal numbers: three standard deviations."""


def scaled(unet, spaces, space, channel):
    """A copy of the network whose readers see a little less of one channel."""
    twin = built(unet.config)
    twin.load_state_dict(unet.state_dict())
    with torch.no_grad():
        for name, tensor in twin.named_parameters():
            axes = spaces.axes.get(name, ())
            if len(axes) == 2 and space in axes[1]:
                offset = 0
                for one in axes[1]:
                    if one == space:
                        tensor[:, offset + channel] *= 1 - STEP
                    offset += spaces.spaces[one].size
            if name == f"{space.removesuffix('queries')}to_q.weight":
                tensor[channel] *= 1 - STEP
    return twin


@pytest.fixture(scope="module")
def unet():
    return built(config("text", 4))


@pytest.fixture(scope="module")
def importance(unet):
    return measured(unet, lambda _: predict(unet, 1), PROBES, seed=0)[0]


@pytest.mark.parametrize(
    "space",
    [
        "conv_in",
        "mid_block.resnets.0.hidden",
        "down_blocks.1.attentions.0.tokens",
        "mid_block.attentions.0.transformer_blocks.0.attn2.queries",
        "up_blocks.0.attentions.1.transformer_blocks.0.attn1.values",
        "mid_block.attentions.0.transformer_blocks.0.ff",
        "time_embedding.hidden",
    ],
)
@pytest.mark.slow
def test_it_is_the_square_of_the_change(space, unet, importance):
    spaces = Spaces(unet.config)
    with torch.no_grad():
        for channel in (0, 3):
            change = (predict(scaled(unet, spaces, space, channel), 1) - predict(unet, 1)) / STEP
            assert importance[space][channel].item() == pytest.approx(change.square().sum().item(), rel=SPREAD)


def test_squares_of_what_layer_norms_receive_are_measured_and_nothing_is_left_behind():
    unet = built(config("text", 4)).requires_grad_(False)
    seen = []
    norm = unet.mid_block.attentions[0].transformer_blocks[0].norm2
    handle = norm.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    _, moments = measured(unet, lambda batch: predict(unet, batch), 2, seed=0)
    handle.remove()
    expected = sum(one.double().flatten(0, 1).square().mean(0) for one in seen)
    name = "mid_block.attentions.0.transformer_blocks.0.norm2.weight"
    assert torch.allclose(moments.squares[name], expected)
    assert not any(one.requires_grad for one in unet.parameters())
    assert not any(module._forward_pre_hooks for module in unet.modules())
