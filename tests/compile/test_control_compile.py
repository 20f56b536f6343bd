"""A compiled ControlNet: one graph, and no recompilation while only values change.

Run without type checks, which the compiler cannot trace: pytest -o addopts= tests/compile
"""

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from torch import Tensor

from tests.golden.minis import CONTEXT, randomize
from undertow.adapters.control.config import ControlNetConfig
from undertow.adapters.control.controlnet import ControlNet
from undertow.unet.conditioning import Conditioning
from undertow.unet.config import CrossAttention, Level, Middle, UNetConfig
from undertow.unet.runner import EAGER, CompiledRunner

TOLERANCE = 1e-5
"""float32; the traced graph runs the same operations."""

TINY = UNetConfig(
    levels=(Level(channels=8, resnets=1, attention=CrossAttention(heads=2)), Level(channels=8, resnets=1)),
    middle=Middle(attention=CrossAttention(heads=2)),
    context_dim=CONTEXT,
    norm_groups=2,
)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@torch.no_grad()
def test_one_graph_for_all_values(monkeypatch):
    graphs = []

    def as_it_is(module: torch.fx.GraphModule, _inputs: list[Tensor]) -> Callable[..., object]:
        graphs.append(module)
        return module.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=as_it_is))
    network = ControlNet(ControlNetConfig(unet=TINY, hint_channels=(4, 8))).eval()
    randomize(network, 1)
    runner = CompiledRunner()
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        latents = torch.randn(2, 4, 8, 8, generator=generator)
        given = Conditioning(context=torch.randn(2, 5, CONTEXT, generator=generator))
        hint = network.embed_hint(torch.rand(2, 3, 16, 16, generator=generator))
        timesteps = torch.tensor([3.0 + seed, 871.5])
        ours, reference = (one.run(network, latents, timesteps, given, hint) for one in (runner, EAGER))
        for one, other in zip((*ours.skips, ours.middle), (*reference.skips, reference.middle), strict=True):
            torch.testing.assert_close(one, other, atol=TOLERANCE, rtol=TOLERANCE)
    assert len(graphs) == 1
