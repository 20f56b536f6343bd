import pytest
from torch import nn

from undertow.errors import ConfigError
from undertow.training.optimizer import adamw, freeze, learning_rate_at
from undertow.unet.unet import UNet


@pytest.fixture
def unet(tiny_config):
    return UNet(tiny_config().unet)


def test_freezing_takes_what_matches_and_nothing_else(unet):
    frozen = freeze(unet, ["down_blocks.0.*", "conv_in.bias"])
    for name, parameter in unet.named_parameters():
        expected = name.startswith("down_blocks.0.") or name == "conv_in.bias"
        assert (name in frozen) == expected
        assert parameter.requires_grad == (not expected)


def test_a_pattern_without_a_match_is_an_error_that_shows_patterns_that_match(unet):
    with pytest.raises(ConfigError, match=r"matches no parameter.*down_blocks\.\*"):
        freeze(unet, ["down_blocks.*", "encoder.*"])


def test_freezing_everything_is_an_error(unet):
    with pytest.raises(ConfigError, match="nothing to train"):
        freeze(unet, ["*"])


def test_biases_and_gains_do_not_decay(unet):
    optimizer = adamw(unet, weight_decay=0.1)
    decays = {parameter: group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]}
    assert decays[unet.conv_in.weight] == 0.1
    assert decays[unet.conv_in.bias] == 0.0
    assert decays[unet.conv_norm_out.weight] == 0.0
    assert len(decays) == len(list(unet.parameters()))


def test_the_optimizer_has_only_what_learns():
    module = nn.Linear(2, 2)
    module.bias.requires_grad_(False)
    assert [p for group in adamw(module, weight_decay=0.0).param_groups for p in group["params"]] == [module.weight]


def test_the_learning_rate_warms_up_and_decays():
    rates = [learning_rate_at(step, peak=1.0, warmup_steps=4, steps=12, decay="cosine") for step in range(1, 13)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[7] == pytest.approx(0.5)  # half way down
    assert rates[-1] == pytest.approx(0.0)
    constant = [learning_rate_at(step, peak=1.0, warmup_steps=0, steps=3, decay="constant") for step in range(1, 4)]
    assert constant == [1, 1, 1]
