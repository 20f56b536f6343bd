"""Nobody waits for the compiler: calls are computed eagerly until their graph is there, or for ever where it fails."""

import logging
from collections.abc import Callable, Iterator
from functools import partial
from threading import Event

import pytest
import torch

from tests.compile.test_unet_compile import SMALL_TEXT, TOLERANCE
from tests.golden.minis import build, conditioning_for, latents_for
from undertow.nn.adaptable import WeightRows
from undertow.unet.background import BackgroundGraphs
from undertow.unet.conditioning import Ports
from undertow.unet.unet import UNet

SOON_S = 120.0


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def unet() -> UNet:
    return build(SMALL_TEXT).requires_grad_(False)


class Compiler:
    """Makes a graph, which runs as it was traced, when it may. made, run: how many graphs, and how often."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, fails: bool = False):
        self.may, self.fails, self.made, self.run = Event(), fails, 0, 0
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=self))

    def __call__(self, module: torch.fx.GraphModule, _inputs: object) -> Callable[..., object]:
        assert self.may.wait(SOON_S)
        if self.fails:
            raise RuntimeError("no compiler on this machine")
        self.made += 1

        def counted(*inputs: object) -> object:
            self.run += 1
            return module(*inputs)

        return counted


def call(graphs: BackgroundGraphs, unet: UNet, side: int = 8, **ports: object) -> None:
    """One call, whose prediction is that of the network."""
    inputs = latents_for(SMALL_TEXT, side, side), torch.tensor([3.0, 871.5]), conditioning_for(SMALL_TEXT)
    found = graphs.predict(unet, *inputs, Ports(**ports)).prediction
    expected = unet.predict(*inputs, Ports(**ports)).prediction
    assert (found - expected).abs().max() <= TOLERANCE * max(1, expected.abs().max())


@torch.inference_mode()
def test_calls_are_computed_without_a_graph_until_there_is_one(monkeypatch, unet):
    compiler, graphs = Compiler(monkeypatch), BackgroundGraphs()
    for _ in range(3):
        call(graphs, unet)
    assert (graphs.ready, compiler.run) == (0, 0)
    assert not graphs.wait(0.01)
    compiler.may.set()
    assert graphs.wait(SOON_S)
    assert (graphs.ready, compiler.made) == (1, 1)
    before = compiler.run
    call(graphs, unet)
    assert compiler.run == before + 1


@torch.no_grad()
def test_each_kind_of_call_has_a_graph(monkeypatch, unet):
    compiler, graphs = Compiler(monkeypatch), BackgroundGraphs()
    compiler.may.set()
    unet.conv_in.allocate_slots(2, 2)
    weights = WeightRows(slots=torch.zeros(2, 1, dtype=torch.int64), gains=torch.ones(2, 1))
    kinds = ({}, {"side": 12}, {"weights": weights})
    for settings in (*kinds, *kinds):
        call(graphs, unet, **settings)
        assert graphs.wait(SOON_S)
    assert (graphs.ready, compiler.made) == (3, 3)
    # Other values are no other kind.
    call(graphs, unet, weights=WeightRows(slots=weights.slots + 1, gains=weights.gains / 2))
    assert graphs.ready == 3


@torch.no_grad()
def test_where_no_graph_can_be_made_all_goes_on_without(monkeypatch, unet, caplog):
    compiler, graphs = Compiler(monkeypatch, fails=True), BackgroundGraphs()
    compiler.may.set()
    with caplog.at_level(logging.WARNING, "undertow"):
        call(graphs, unet)
        assert graphs.wait(SOON_S)
        call(graphs, unet)
    assert (graphs.ready, compiler.run) == (0, 0)
    assert [record.message for record in caplog.records if "no compiler on this machine" in record.message]


@torch.no_grad()
def test_a_graph_that_does_not_fit_any_more_is_not_made_anew_while_somebody_waits(monkeypatch, unet):
    """As when weights got another type: a part of no input."""
    compiler, graphs = Compiler(monkeypatch), BackgroundGraphs()
    compiler.may.set()
    call(graphs, unet)
    assert graphs.wait(SOON_S)
    unet.conv_in.bias = None
    call(graphs, unet)
    assert (graphs.ready, compiler.made) == (0, 1)
