"""Adapters inside a compiled U-Net: one graph with slots, one without, and none for what is in them.

Run without type checks, which the compiler cannot trace: pytest -o addopts= tests/compile
"""

from random import Random

import pytest
import torch

from tests.adapters.lora.files import layers_of, low_rank
from tests.compile.test_unet_compile import TINY_TEXT, Counter
from tests.golden.minis import build, conditioning_for, latents_for
from undertow.adapters.active import Active, Changes
from undertow.adapters.lora.bank import AdapterCapacity, Bank
from undertow.adapters.lora.low_rank import LowRank
from undertow.adapters.lora.merge import MergedWeights
from undertow.unet.conditioning import Ports

TOLERANCE = 1e-5
"""float32, of the largest value; the traced graph runs the same operations."""


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@torch.no_grad()
def test_a_hundred_swaps_gains_mixtures_and_merges_make_two_graphs():
    """With and without the weight port; whatever is in slots, in gains or merged is values."""
    unet, counter, random = build(TINY_TEXT), Counter(), Random(0)
    bank = Bank(unet, AdapterCapacity(slots=2, rank=4, per_row=2), fixed=True)
    merged, layers = MergedWeights(unet), layers_of(unet)
    files = []
    for number in range(5):
        chosen = dict(list(layers.items())[number :: 2 + number])
        rank = 1 + number % 4
        updates = {
            name: LowRank(down=down, up=up)
            for name, shape in chosen.items()
            for down, up in [low_rank(f"{number}{name}", shape, rank)]
        }
        files.append(Changes(key=number, title=str(number), updates=updates, factors={}))
    compiled = torch.compile(unet.predict, fullgraph=True, dynamic=False, backend=counter)
    call = latents_for(TINY_TEXT, 8, 8), torch.tensor([3.0, 871.5]), conditioning_for(TINY_TEXT)

    def mixture():
        few = random.sample(files, 2)
        rows = [
            [Active(changes=each, gain=random.uniform(-1, 1)) for each in few if random.random() < 0.7] for _ in "ab"
        ]
        return rows if any(rows) else [[Active(changes=few[0], gain=1.0)], []]

    compiled(*call, Ports(weights=bank.bind(mixture())))
    compiled(*call, Ports())
    outputs = []
    with torch._dynamo.config.patch(error_on_recompile=True):
        for turn in range(100):
            if turn % 10 == 9:
                merged.become([Active(changes=random.choice(files), gain=random.uniform(-1, 1))])
            ports = Ports() if turn % 7 == 6 else Ports(weights=bank.bind(mixture()))
            output = compiled(*call, ports)
            if turn % 10 == 0:
                assert (output - unet(*call, ports)).abs().max() <= TOLERANCE * max(1, output.abs().max())
            outputs.append(output)
        merged.become(())
    assert counter.graphs == 2
    assert bank.writes > 20
    assert len({output.sum().item() for output in outputs}) > 80
