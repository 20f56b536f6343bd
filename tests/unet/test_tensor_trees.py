"""The tensors in records are found, replaced and described in one order."""

import torch

from undertow.nn.adaptable import WeightRows
from undertow.unet.conditioning import Conditioning, Ports, Residuals
from undertow.unet.tensor_trees import kind_of, tensors_of, with_tensors
from undertow.unet.unet import UNetOutput


def inputs(fill: float = 0.0, **ports: object) -> tuple[object, ...]:
    given = Conditioning(context=torch.full((2, 3, 4), fill))
    return torch.full((2, 4, 8, 8), fill), torch.full((2,), fill), given, Ports(**ports), ("a", "b")


def test_tensors_are_found_and_replaced():
    skips = (torch.full((1, 1), 4.0), torch.full((1, 1), 5.0))
    value = (*inputs(residuals=Residuals(skips=skips, running=(None, skips[0]))), {"b": torch.ones(1)})
    found = list(tensors_of(value))
    assert [one.ndim for one in found] == [4, 1, 3, 2, 2, 2, 1]
    other = with_tensors(value, (one + 1 for one in found))
    assert all(torch.equal(after, before + 1) for after, before in zip(tensors_of(other), found, strict=True))
    assert other[3].residuals.running[0] is None
    assert other[4] == ("a", "b")
    assert kind_of(other) == kind_of(value)
    output = UNetOutput(prediction=torch.zeros(1, 1, 1, 1), observations={"site": torch.zeros(1, 2, 2)})
    assert with_tensors(output, iter((torch.ones(1, 1, 1, 1), torch.ones(1, 2, 2)))).observations["site"].sum() == 4


def test_a_kind_is_everything_but_numbers():
    weights = WeightRows(slots=torch.zeros(2, 1, dtype=torch.int64), gains=torch.ones(2, 1))
    assert kind_of(inputs(1.0)) == kind_of(inputs(2.0))
    kinds = [
        inputs(),
        inputs(weights=weights),
        inputs(feed_forward_chunks=2),
        inputs()[:4],
        (inputs()[0].double(), *inputs()[1:]),
        (inputs()[0].to(memory_format=torch.channels_last), *inputs()[1:]),
    ]
    assert len({kind_of(one) for one in kinds}) == len(kinds)
