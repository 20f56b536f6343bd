import math

import pytest
import torch
from torch import nn

from undertow.errors import ConfigError
from undertow.training.optimizer import adamw, freeze, learning_rate_schedule
from undertow.unet.unet import UNet


@pytest.fixture
def unet(tiny_config):
    torch.manual_seed(0)
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


def test_patterns_know_capitals_on_every_system(unet):
    with pytest.raises(ConfigError, match="matches no parameter"):
        freeze(unet, ["Down_blocks.*"])


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


def test_decay_and_betas_reach_the_optimizer():
    optimizer = adamw(nn.Linear(2, 2), weight_decay=0.3, betas=(0.8, 0.95))
    assert [(group["weight_decay"], group["betas"]) for group in optimizer.param_groups] == [
        (0.3, (0.8, 0.95)),
        (0.0, (0.8, 0.95)),
    ]
    assert {group["betas"] for group in adamw(nn.Linear(2, 2), weight_decay=0.3).param_groups} == {(0.9, 0.999)}


def rates(*, peak: float = 1.0, warmup_steps: int, steps: int, decay: str, first_step: int = 1) -> list[float]:
    """What the optimizer has at each step of a run."""
    module = nn.Linear(1, 1)
    optimizer = adamw(module, weight_decay=0.0)
    schedule = learning_rate_schedule(
        optimizer, peak=peak, warmup_steps=warmup_steps, steps=steps, decay=decay, first_step=first_step
    )
    found = []
    for _ in range(first_step, steps + 1):
        (rate,) = {group["lr"] for group in optimizer.param_groups}
        assert schedule.get_last_lr() == [rate, rate]
        found.append(rate)
        optimizer.step()
        schedule.step()
    return found


def written_out(step: int, *, peak: float, warmup_steps: int, steps: int, decay: str) -> float:
    """The learning rate of a step by the formulas."""
    if step < warmup_steps:
        return peak * step / warmup_steps
    if decay == "constant":
        return peak
    if decay == "trapezoid":
        return peak * min(1.0, (steps - step) / max(1.0, 0.2 * steps))
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps)))


@pytest.mark.parametrize("decay", ["constant", "cosine", "trapezoid"])
@pytest.mark.parametrize(("warmup_steps", "steps"), [(0, 3), (4, 12), (5, 17), (7, 33), (100, 1000), (4, 4), (9, 10)])
def test_the_schedules_are_the_formulas_at_every_step(decay, warmup_steps, steps):
    given = {"peak": 3e-4, "warmup_steps": warmup_steps, "steps": steps, "decay": decay}
    expected = [written_out(step, **given) for step in range(1, steps + 1)]
    assert rates(**given) == pytest.approx(expected, rel=1e-12, abs=1e-18)


@pytest.mark.parametrize("decay", ["constant", "cosine", "trapezoid"])
def test_a_schedule_goes_on_where_a_run_is_resumed(decay):
    whole = rates(warmup_steps=4, steps=20, decay=decay)
    for first in (2, 5, 18, 20):
        assert rates(warmup_steps=4, steps=20, decay=decay, first_step=first) == whole[first - 1 :]


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ConfigError, match="decay"):
        rates(warmup_steps=1, steps=2, decay="linear")


def test_the_learning_rate_warms_up_and_decays():
    cosine = rates(warmup_steps=4, steps=12, decay="cosine")
    assert cosine[:4] == [0.25, 0.5, 0.75, 1.0]
    assert cosine[7] == pytest.approx(0.5)  # half way down
    assert cosine[-1] == pytest.approx(0.0)
    assert rates(warmup_steps=0, steps=3, decay="constant") == [1, 1, 1]


def test_a_cosine_falls_over_the_steps_behind_the_warm_up():
    cosine = rates(peak=3.0, warmup_steps=5, steps=17, decay="cosine")
    # cos of 0, 45, 90, 120 and 180 degrees.
    assert [cosine[step - 1] for step in (5, 8, 11, 13, 17)] == pytest.approx([3.0, 1.5 * (1 + 0.5**0.5), 1.5, 0.75, 0])
    assert rates(peak=3.0, warmup_steps=4, steps=4, decay="cosine")[3] == 3.0, "nothing behind the warm-up"


def test_a_trapezoid_is_constant_and_falls_to_zero_over_the_last_fifth():
    long = rates(peak=2.0, warmup_steps=4, steps=20, decay="trapezoid")
    assert long == pytest.approx([0.5, 1.0, 1.5, *[2.0] * 13, 1.5, 1.0, 0.5, 0.0])
    longer = rates(peak=2.0, warmup_steps=0, steps=30, decay="trapezoid")
    assert longer[:24] == [2.0] * 24
    assert longer[24:] == pytest.approx([2.0 * left / 6 for left in (5, 4, 3, 2, 1, 0)])
    short = rates(peak=2.0, warmup_steps=0, steps=3, decay="trapezoid")
    assert short == [2.0, 2.0, 0.0], "the fall takes a step at least"
