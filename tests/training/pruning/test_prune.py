"""Pruning a model as a person asks for it: what leaves, what is written, and what is refused."""

import pytest
import torch
from diffusers import UNet2DConditionModel

import undertow
from tests.services import pipeline_folder
from tests.training.adapter_runs import fit_for, is_as_before, weights
from tests.training.lora_runs import load, pictures
from undertow.errors import InvalidInput
from undertow.training.distillation import DistillationSettings, train_distilled
from undertow.training.distillation_export import write_with_unet
from undertow.training.feature_distillation import FeatureDistillation
from undertow.training.pruning.blocks import most_removals
from undertow.training.pruning.prune import PruningSettings, prune


@pytest.fixture(scope="module")
def sd1():
    return load(pipeline_folder("sd1"))


@pytest.fixture(scope="module")
def pruned(sd1):
    return prune(sd1, pictures(), PruningSettings(width=0.5, blocks=1, batches=2))


def test_blocks_leave_first_and_then_width(sd1, pruned):
    before, config = sd1.unet.config, pruned.unet.config
    assert config.block_out_channels == [width // 2 for width in before.block_out_channels]
    assert len(pruned.removed) == 1
    assert config.layers < before.layers
    assert 0 < pruned.error < 2


def test_the_same_settings_give_the_same_bits_and_leave_the_model_alone(sd1, pruned):
    before = weights(sd1)
    again = prune(sd1, pictures(), PruningSettings(width=0.5, blocks=1, batches=2))
    assert is_as_before(sd1, before)
    assert again.removed == pruned.removed
    states = again.unet.state_dict(), pruned.unet.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not any(one.requires_grad is False for one in again.unet.parameters()), "it can be trained"


def test_the_block_that_matters_least_leaves(sd1):
    """Of one whose output is zero, nothing is missed."""
    silent = load(pipeline_folder("sd1"))
    with torch.no_grad():
        for name, parameter in silent.unet.named_parameters():
            if name.startswith(("mid_block.attentions.0.proj_out", "mid_block.resnets.1.conv2")):
                parameter.zero_()
    found = prune(silent, pictures(), PruningSettings(blocks=1, batches=1))
    assert found.removed == ("mid_block.attentions.0 and mid_block.resnets.1",)
    assert found.error < 1e-9


def test_it_is_written_as_a_model_that_diffusers_draws_with(sd1, pruned, tmp_path):
    folder = write_with_unet(pruned.unet, sd1, tmp_path / "pruned")
    theirs = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    service = undertow.load(folder, dtype=torch.float32)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    context = torch.randn(1, 7, service.config.context_dim or 0, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs.float()(latents, 500, encoder_hidden_states=context, return_dict=False)[0]
        found = service.unet(latents, 500.0, undertow.Conditioning(context=context))
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert service.generate("owl", steps=1, seed=1, size=(32, 32)).images


@pytest.mark.slow
def test_distillation_brings_predictions_nearer(sd1, pruned, tmp_path):
    """From the pruned network on, not from the teacher's tensors."""
    method = FeatureDistillation(unet=pruned.unet.config)
    settings = DistillationSettings(fit=fit_for(12, learning_rate=2e-3), method=method)
    losses = []
    train_distilled(
        sd1,
        pictures(),
        settings,
        tmp_path / "run",
        start=pruned.unet,
        on_record=lambda record: losses.append(record.loss),
    )
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"width": 0.001}, "the smallest U-Net is that of"),
        ({"width": 1.5}, "a share of the channels that stay"),
        ({"blocks": 99}, "at most"),
        ({"blocks": -1}, "at least 0"),
        ({}, "a share of the channels that stay, or a number of blocks"),
        ({"width": 0.5, "batches": 0}, "at least 1"),
    ],
)
def test_what_leaves_nothing_is_refused_with_what_works(sd1, changes, said):
    with pytest.raises(InvalidInput, match=said):
        prune(sd1, pictures(), PruningSettings(**changes))


def test_the_most_blocks_that_can_leave_do(sd1):
    most = most_removals(sd1.unet.config)
    with pytest.raises(InvalidInput, match=f"at most {most} for this U-Net"):
        prune(sd1, pictures(), PruningSettings(blocks=most + 1))
