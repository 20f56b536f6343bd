"""The batches of everything that learns beside a frozen model: a function of seed, purpose and step."""

from dataclasses import replace

import pytest
import torch

from tests.training.lora_runs import FIT
from undertow.diffusion.parameterizations import Epsilon
from undertow.diffusion.schedules import NoiseSchedule
from undertow.errors import ConfigError, InvalidInput
from undertow.training.checkpointing import checkpointing
from undertow.training.examples import Examples, require_settings
from undertow.training.objective import Objective
from undertow.training.timesteps import LogitNormalTimesteps
from undertow.unet.unet import UNet

CPU = torch.device("cpu")
OBJECTIVE = Objective(
    parameterization=Epsilon(),
    schedule=NoiseSchedule.scaled_linear(),
    timesteps=LogitNormalTimesteps(mean=2.0, std=0.01),
)


def examples(**changes) -> Examples:
    """Of eight pictures, each plain in its own number; four a step."""
    latents = torch.arange(8.0).reshape(-1, 1, 1, 1).repeat(1, 1, 3, 3)
    return Examples(
        **({"latents": latents, "fit": FIT, "objective": OBJECTIVE, "purpose": "test", "device": CPU} | changes)
    )


def test_a_batch_depends_on_seed_purpose_and_step_alone():
    batch = examples().at(3)
    again = examples().at(3)
    assert batch.indices.equal(again.indices)
    assert batch.uniform.equal(again.uniform)
    assert batch.example.inputs.equal(again.example.inputs)
    others = (
        examples(fit=replace(FIT, seed=1)).at(3),
        examples(purpose="other").at(3),
        examples().at(4),
    )
    for other in others:
        assert not batch.uniform.equal(other.uniform)
        assert not batch.example.target.equal(other.example.target)


def test_every_epoch_shows_every_picture_once_in_the_seed_s_order():
    def shown(seed: int) -> list[int]:
        few = examples(fit=replace(FIT, seed=seed))
        return torch.cat([few.at(step).indices for step in (1, 2)]).tolist()

    assert sorted(shown(0)) == sorted(shown(1)) == list(range(8))
    assert shown(0) != shown(1)


def test_examples_are_the_chosen_pictures_with_their_noise_at_the_objective_s_levels():
    batch = examples().at(1)
    alphas = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).cumprod(0)
    level = alphas[batch.example.timesteps.long()].float().reshape(-1, 1, 1, 1)
    x0 = batch.indices.float().reshape(-1, 1, 1, 1)
    expected = level.sqrt() * x0 + (1 - level).sqrt() * batch.example.target
    torch.testing.assert_close(batch.example.inputs, expected, rtol=1e-4, atol=1e-5)
    # The sigmoid of 2, in thousandths.
    torch.testing.assert_close(batch.example.timesteps, torch.full((4,), 880.0, dtype=torch.float64), rtol=0, atol=5)


def test_shares_are_spread_from_zero_to_one():
    share = torch.cat([examples().at(step).uniform for step in range(1, 501)])
    assert share.mean().item() == pytest.approx(0.5, abs=0.03)  # standard error 0.006
    assert share.min() < 0.01
    assert 0.99 < share.max() < 1


def test_settings_are_refused_by_the_first_rule_that_does_not_hold():
    require_settings(FIT, "uniform", [("rank", 1, True, "must be at least 1")])
    with pytest.raises(ConfigError, match="rank = 0: must be at least 1"):
        require_settings(FIT, "late", [("rank", 0, False, "must be at least 1")])
    with pytest.raises(ConfigError, match="timesteps = 'late'"):
        require_settings(FIT, "late")
    for field in ("steps", "batch_size", "learning_rate"):
        with pytest.raises(ConfigError, match=f"{field} = 0: must be positive"):
            require_settings(replace(FIT, **{field: 0}), "logit_normal")


@pytest.mark.parametrize("wanted", [False, True])
def test_checkpointing_needs_training_mode_and_leaves_the_network_as_it_was(tiny_config, wanted):
    torch.manual_seed(0)
    unet = UNet(tiny_config().unet).eval()
    with checkpointing(unet, wanted):
        assert (unet.gradient_checkpointing, unet.training) == (wanted, wanted)
    assert (unet.gradient_checkpointing, unet.training) == (False, False)


def test_a_block_that_the_network_does_not_have_is_refused(tiny_config):
    unet = UNet(tiny_config().unet)
    with (
        pytest.raises(InvalidInput, match=r"'up_block\.1', expected blocks of down_blocks\.0.*'up_blocks\.1'"),
        checkpointing(unet, ("mid_block", "up_block.1")),
    ):
        pass
