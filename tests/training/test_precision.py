"""In which type a loss is computed: the loop asks for it, for the device that the module is on."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.training.test_fit import RECIPE, SETTINGS, loss_of, same, small_network
from undertow.training import precision
from undertow.training.fit import fit


class Elsewhere(nn.Parameter):
    """A parameter in main memory that says it lies on an accelerator."""

    @property
    def device(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        return torch.device("xpu")


@pytest.fixture
def asked(monkeypatch) -> list[tuple[str, torch.dtype]]:
    """What `torch.autocast` is asked for, on devices that all compute bfloat16."""
    calls = []

    def autocast(device_type, dtype):
        calls.append((device_type, dtype))
        return nullcontext()

    monkeypatch.setattr(precision, "computes", lambda dtype, device: True)
    monkeypatch.setattr(torch, "autocast", autocast)
    return calls


@pytest.mark.parametrize("device", ["cpu", "cuda:1", "meta", "xpu"])
def test_autocast_is_asked_for_the_type_of_the_device(device, asked):
    with precision.autocast("bf16", torch.device(device)):
        pass
    assert asked == [(device.partition(":")[0], torch.bfloat16)]
    with precision.autocast("float32", torch.device(device)):
        pass
    assert len(asked) == 1


def test_the_loop_asks_once_a_step_for_the_device_of_the_module(tmp_path, asked):
    network = small_network()
    network[0].weight = Elsewhere(network[0].weight.detach())
    fit(network, same, loss_of(network), replace(SETTINGS, steps=2, precision="bf16"), tmp_path, recipe=RECIPE)
    assert asked == [("xpu", torch.bfloat16)] * 2


def test_batches_are_made_in_full_precision_and_the_loss_alone_in_the_other(tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "computes", lambda dtype, device: True)
    network, seen = small_network(), []

    def dataset(step):
        seen.append(torch.is_autocast_enabled("cpu"))
        return step

    def loss(step):
        seen.append(torch.is_autocast_enabled("cpu"))
        return loss_of(network)(step)

    fit(network, dataset, loss, replace(SETTINGS, steps=1, precision="bf16"), tmp_path, recipe=RECIPE)
    assert seen == [False, True]
