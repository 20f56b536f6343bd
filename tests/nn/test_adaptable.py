"""The weight port against layers with merged weights, row by row (arXiv:2106.09685, Eq. 3)."""

import pytest
import torch
from torch import Tensor

from tests.golden.minis import randomize
from undertow.nn.adaptable import Conv2d, Linear, Run, WeightRows

T1 = 2e-5
"""Two small products in place of one merged product: other roundings, no other numbers."""

SLOTS, RANK = 3, 4
RANKS = (4, 2, 1)
"""Slot i is used up to RANKS[i]; the rest stays zero, as an adapter of lower rank would leave it."""

ROWS = WeightRows(
    slots=torch.tensor([[0, 1], [2, 0], [1, 1], [0, 2], [0, 0]]),
    gains=torch.tensor([[1.0, -0.5], [2.0, 0.0], [0.3, 0.7], [0.0, 0.0], [0.5, 0.5]]),
)
"""Two slots, one slot and a zero gain, one slot twice, nothing, one slot twice again."""


def _fill(layer: Linear | Conv2d) -> None:
    randomize(layer, 1)
    layer.allocate_slots(SLOTS, RANK)
    generator = torch.Generator().manual_seed(2)
    for slot, rank in enumerate(RANKS):
        layer.slots.down[slot, :rank] = torch.randn(rank, layer.slots.down.shape[2], generator=generator) * 0.2
        layer.slots.up[slot, :, :rank] = torch.randn(layer.slots.up.shape[1], rank, generator=generator)
        layer.slots.ranks[slot] = rank


def _merged(layer: Linear | Conv2d, row: int, x: Tensor) -> Tensor:
    """The same layer with the row's updates in its weight."""
    delta = sum(
        gain * layer.slots.up[slot] @ layer.slots.down[slot]
        for slot, gain in zip(ROWS.slots[row], ROWS.gains[row], strict=True)
    )
    weight = layer.weight + delta.reshape(layer.weight.shape)
    if isinstance(layer, Linear):
        return torch.nn.functional.linear(x, weight, layer.bias)
    return torch.nn.functional.conv2d(x, weight, layer.bias, layer.stride, layer.padding)


LAYERS = {
    "linear": (lambda: Linear(12, 10), (7, 12)),
    "linear without bias": (lambda: Linear(12, 10, bias=False), (7, 12)),
    "linear of vectors": (lambda: Linear(12, 10), (12,)),
    "conv 3x3": (lambda: Conv2d(6, 10, 3, padding=1), (6, 9, 7)),
    "conv 3x3 stride 2": (lambda: Conv2d(6, 10, 3, stride=2, padding=1), (6, 9, 7)),
    "conv 1x1": (lambda: Conv2d(6, 10, 1), (6, 9, 7)),
    "conv 1x1 stride 2": (lambda: Conv2d(6, 10, 1, stride=2), (6, 9, 7)),
    "conv 3x3 channels last": (lambda: Conv2d(6, 10, 3, padding=1).to(memory_format=torch.channels_last), (6, 9, 7)),
}


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_each_row_gets_its_own_merged_weights(name):
    make, shape = LAYERS[name]
    layer = make()
    _fill(layer)
    x = torch.randn(len(ROWS.slots), *shape, generator=torch.Generator().manual_seed(3))
    output, plain = layer(x, ROWS), layer(x)
    for row in range(len(x)):
        reference = _merged(layer, row, x[row : row + 1])[0]
        assert (output[row] - reference).abs().max() <= T1 * max(1.0, float(reference.abs().max()))
        if ROWS.gains[row].any():
            assert (output[row] - plain[row]).norm() > 0.1 * plain[row].norm()
        else:
            assert torch.equal(output[row], plain[row]), "gain 0 leaves the base alone"


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_runs_of_rows_compute_what_gathered_rows_do(name):
    make, shape = LAYERS[name]
    layer = make()
    _fill(layer)
    x = torch.randn(5, *shape, generator=torch.Generator().manual_seed(3))
    runs = (
        Run(start=0, stop=3, slot=1, gain=-0.5),
        Run(start=4, stop=5, slot=0, gain=2.0),
        Run(start=1, stop=2, slot=0, gain=1.0),
    )
    slots = torch.tensor([[1, 2], [1, 0], [1, 2], [2, 2], [0, 2]])
    gains = torch.tensor([[-0.5, 0.0], [-0.5, 1.0], [-0.5, 0.0], [0.0, 0.0], [2.0, 0.0]])
    gathered = layer(x, WeightRows(slots=slots, gains=gains))
    found = layer(x, WeightRows(slots=slots, gains=gains, runs=runs))
    assert (found - gathered).abs().max() <= T1 * max(1.0, float(gathered.abs().max()))
    assert torch.equal(found[3], layer(x)[3])
    layer.slots.ranks[1] = 0
    assert torch.equal(layer(x, WeightRows(slots=slots, gains=gains, runs=runs[:1])), layer(x)), "nothing in its slot"


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_without_slots_or_rows_the_layer_is_torchs(name):
    make, shape = LAYERS[name]
    layer, x = make(), torch.randn(5, *shape, generator=torch.Generator().manual_seed(3))
    plain = layer(x)
    assert torch.equal(layer(x, ROWS), plain), "no slots allocated: the port does nothing"
    layer.allocate_slots(SLOTS, RANK)
    assert torch.equal(layer(x), plain)
    assert torch.equal(layer(x, ROWS), plain), "empty slots change nothing"


@pytest.mark.parametrize("name", LAYERS)
def test_slots_are_no_part_of_the_state(name):
    layer = LAYERS[name][0]()
    names = set(layer.state_dict())
    layer.allocate_slots(SLOTS, RANK)
    assert set(layer.state_dict()) == names
    assert set(dict(layer.named_parameters())) == names
    layer.load_state_dict(LAYERS[name][0]().state_dict())


@pytest.mark.parametrize("name", ["linear", "conv 3x3"])
@torch.no_grad()
def test_slots_follow_the_layers_type(name):
    """Gains stay float32: they are few, and products of strengths."""
    make, shape = LAYERS[name]
    layer = make()
    _fill(layer)
    x = torch.randn(5, *shape, generator=torch.Generator().manual_seed(3))
    exact = layer(x, ROWS)
    layer = layer.to(torch.bfloat16)
    output = layer(x.to(torch.bfloat16), ROWS)
    assert output.dtype == layer.slots.up.dtype == torch.bfloat16
    assert (output.float() - exact).norm() <= 1e-2 * exact.norm()
    layer.allocate_slots(SLOTS, RANK)
    assert layer.slots.up.dtype == torch.bfloat16


@torch.no_grad()
def test_refilling_a_slot_in_place_changes_the_next_call():
    layer = Linear(12, 10)
    _fill(layer)
    x = torch.randn(5, 7, 12, generator=torch.Generator().manual_seed(3))
    before = layer(x, ROWS)
    layer.slots.up.zero_()
    assert torch.equal(layer(x, ROWS), layer(x))
    assert not torch.equal(before, layer(x))
