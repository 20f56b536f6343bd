from dataclasses import replace

import pytest
import torch
from torch import nn

from undertow.errors import CheckpointError, ConfigError
from undertow.training.fit import FitSettings, fit
from undertow.training.muon import ADAMW_SIZE, OTHERS_RATE, THINNEST, muon, orthogonalize
from undertow.training.optimizer import learning_rate_schedule
from undertow.training.training_state import load_state, save_state, saved_steps

SETTINGS = FitSettings(
    steps=6, batch_size=1, learning_rate=0.01, optimizer="muon", warmup_steps=1, decay="constant",
    precision="float32", checkpoint_every=3,
)  # fmt: skip
BETAS = (0.8, 0.9)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.words = nn.Embedding(40, 48)
            self.linear = nn.Linear(48, 64)
            self.conv = nn.Conv2d(4, 32, 3)
            self.thin = nn.Conv2d(3, 32, 3)

    def forward(self, ids, picture):
        parts = (self.linear(self.words(ids)), self.conv(picture), self.thin(picture[:, :3]))
        return torch.stack([part.square().mean() for part in parts]).sum()


def names_by_group(optimizer, network) -> dict[tuple[bool, float], set[str]]:
    names = {parameter: name for name, parameter in network.named_parameters()}
    return {
        (group["orthogonal"], group["weight_decay"]): {names[parameter] for parameter in group["params"]}
        for group in optimizer.param_groups
    }


@pytest.mark.parametrize("shape", [(32, 32), (32, 90), (90, 32), (64, 576)])
def test_singular_values_end_near_one_and_singular_vectors_stay(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    assert values.max() / values.min() > 1.5
    found = orthogonalize(matrix).float()
    turned = left.T @ found @ right.T  # diagonal, if the vectors are the same
    assert (turned - torch.diag(turned.diagonal())).abs().max() < 0.1  # bfloat16
    assert turned.diagonal().min() > 0.6
    assert turned.diagonal().max() < 1.3
    assert orthogonalize(matrix * 1e-6).equal(orthogonalize(matrix * 1e-6)), "no randomness"


def test_matrices_are_muon_s_and_tables_thin_kernels_and_biases_are_adamw_s():
    network = Network()
    assert names_by_group(muon(network, weight_decay=0.1, betas=BETAS), network) == {
        (True, 0.1): {"linear.weight", "conv.weight"},
        (False, 0.1): {"words.weight", "thin.weight"},
        (False, 0.0): {"linear.bias", "conv.bias", "thin.bias"},
    }
    assert network.thin.weight[0].numel() < THINNEST <= network.conv.weight[0].numel()


def test_what_does_not_learn_is_in_no_group():
    network = Network()
    network.linear.weight.requires_grad_(False)
    found = names_by_group(muon(network, weight_decay=0.1, betas=BETAS), network)
    assert set.union(*found.values()) == {name for name, _ in network.named_parameters()} - {"linear.weight"}


def test_a_step_is_its_formulas_written_out():
    """Two steps with a schedule: momentum, Nesterov's look ahead, size, decay; and AdamW's beside them."""
    network, beside = Network(), Network()
    optimizer = muon(network, weight_decay=0.4, momentum=0.9, betas=BETAS)
    schedule = learning_rate_schedule(optimizer, peak=0.1, warmup_steps=0, steps=2, decay="constant")
    adamw = torch.optim.AdamW([beside.conv.bias], lr=0.1 * OTHERS_RATE, betas=BETAS, weight_decay=0.0)
    kernel, momentum = network.conv.weight.detach().clone(), torch.zeros(32, 36)
    for step in (1, 2):
        generator = torch.Generator().manual_seed(step)
        for parameter in network.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        gradient = network.conv.weight.grad.reshape(32, 36).clone()
        beside.conv.bias.grad = network.conv.bias.grad.clone()
        optimizer.step()
        adamw.step()
        schedule.step()
        momentum = 0.9 * momentum + 0.1 * gradient
        direction = orthogonalize(0.1 * gradient + 0.9 * momentum).float().reshape(kernel.shape)
        kernel = kernel * (1 - 0.1 * 0.4) - 0.1 * ADAMW_SIZE * 36**0.5 * direction
        # bfloat16 rounds a last bit of the momentum to another direction.
        torch.testing.assert_close(network.conv.weight.detach(), kernel, atol=2e-3, rtol=0)
        torch.testing.assert_close(network.conv.bias, beside.conv.bias, atol=1e-6, rtol=1e-5)


def loss_of(network):
    def loss(step):
        generator = torch.Generator().manual_seed(step)
        ids = torch.randint(40, (5,), generator=generator)
        return network(ids, torch.randn(2, 4, 5, 5, generator=generator))

    return loss


def test_a_run_that_was_stopped_goes_on_with_the_same_bits(tmp_path):
    network = Network()
    start = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    fit(network, lambda step: step, loss_of(network), SETTINGS, tmp_path / "whole", recipe={})
    assert all(not tensor.equal(start[name]) for name, tensor in network.state_dict().items()), "all learn"

    stopped = Network()
    with pytest.raises(KeyboardInterrupt):
        fit(stopped, lambda step: step, loss_of(stopped), SETTINGS, tmp_path / "run", recipe={}, stop=lambda: True)
    resumed = Network()
    fit(resumed, lambda step: step, loss_of(resumed), SETTINGS, tmp_path / "run", recipe={})
    assert all(tensor.equal(network.state_dict()[name]) for name, tensor in resumed.state_dict().items())


def test_a_checkpoint_without_an_optimizer_s_name_is_adamw_s(tmp_path):
    """Earlier versions had no other."""
    network, settings = Network(), replace(SETTINGS, optimizer="adamw")
    fit(network, lambda step: step, loss_of(network), replace(settings, steps=3), tmp_path, recipe={})
    state = load_state(tmp_path / "checkpoints")
    assert state.config["settings"].pop("optimizer") == "adamw"
    save_state(tmp_path / "checkpoints", state, keep=1)
    fit(network, lambda step: step, loss_of(network), settings, tmp_path, recipe={})
    assert saved_steps(tmp_path / "checkpoints") == [3, 6]
    with pytest.raises(CheckpointError, match="optimizer was 'adamw' and is now 'muon'"):
        fit(Network(), lambda step: step, loss_of(network), replace(SETTINGS, steps=9), tmp_path, recipe={})


def test_an_optimizer_that_there_is_not_is_refused():
    with pytest.raises(ConfigError, match="optimizer = 'sgd': must be 'adamw' or 'muon'"):
        replace(SETTINGS, optimizer="sgd")
