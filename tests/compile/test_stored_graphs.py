"""Graphs that stay on disk: made once, loaded by everybody after, and made anew where they do not fit.

One graph is made for real, by AOTInductor in a process of its own; the others are run by Python.
"""

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.compile.test_unet_compile import SMALLEST, TOLERANCE, Counter
from tests.golden.minis import build, latents_for
from undertow.nn.adaptable import Conv2d, WeightRows
from undertow.unet import stored_graphs
from undertow.unet.background import BackgroundGraphs
from undertow.unet.compiled import CompiledUNet, NoGraph
from undertow.unet.conditioning import Conditioning, Ports
from undertow.unet.graph_process import (
    CALL,
    GRAPH,
    OUTPUT,
    FlatPredict,
    GraphFailed,
    make_graph,
    started,
    weights_of,
    written_call,
)
from undertow.unet.stored_graphs import StoredGraphs
from undertow.unet.tensor_trees import tensors_of, with_tensors
from undertow.unet.unet import UNet

TIMESTEPS = torch.tensor([3.0, 871.5])


def network(seed: int = 0) -> UNet:
    """With slots, which no state dict holds."""
    unet = build(SMALLEST, seed=seed).requires_grad_(False)
    for module in unet.modules():
        if isinstance(module, Conv2d):
            module.allocate_slots(2, 2)
            for buffer in (module.slots.down, module.slots.up):
                buffer.normal_(std=0.1, generator=torch.Generator().manual_seed(seed))
    return unet


def call(seed: int = 0, side: int = 8) -> tuple[object, ...]:
    weights = WeightRows(slots=torch.tensor([[seed % 2], [1]]), gains=torch.tensor([[1.0], [0.5 + seed]]))
    return latents_for(SMALLEST, side, side, seed=seed), TIMESTEPS, Conditioning(), Ports(weights=weights)


class Maker:
    """In place of the compiler: its graphs are run by Python, from files that name them."""

    def __init__(self):
        self.made: list[FlatPredict] = []
        self.calls, self.fails = 0, ""

    def __call__(self, network: UNet, inputs: tuple[object, ...], folder: Path) -> None:
        self.calls += 1
        if self.fails:
            raise GraphFailed(self.fails)
        forms: list[object] = []
        read, given, _ = pickle.loads(written_call(network, inputs))
        flat = FlatPredict(read, given, forms.append)
        flat(*weights_of(network).values(), *tensors_of(inputs))
        (folder / GRAPH).write_text(str(len(self.made)))
        (folder / OUTPUT).write_bytes(pickle.dumps(forms[-1]))
        self.made.append(flat)

    def load(self, file: Path, output: object) -> SimpleNamespace:
        flat = self.made[int(file.read_text())]
        return SimpleNamespace(run=lambda tensors: with_tensors(output, iter(flat(*tensors))))


@pytest.fixture
def maker(monkeypatch, tmp_path) -> Iterator[Maker]:
    monkeypatch.setenv("UNDERTOW_CACHE", str(tmp_path))
    maker = Maker()
    monkeypatch.setattr(stored_graphs, "make_graph", maker)
    monkeypatch.setattr(stored_graphs, "StoredGraph", maker.load)
    stored_graphs._say.cache_clear()
    torch._dynamo.reset()
    with torch.no_grad():
        yield maker
    torch._dynamo.reset()


def check(graphs: StoredGraphs | BackgroundGraphs, unet: UNet, *inputs: object) -> torch.Tensor:
    found, expected = graphs.predict(unet, *inputs), unet.predict(*inputs)
    assert type(found) is type(expected)
    difference = (found.prediction - expected.prediction).abs().max()
    assert difference <= TOLERANCE * max(1, expected.prediction.abs().max())
    return found.prediction


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.name == stored_graphs.__name__]


def test_a_graph_is_made_once_for_all_weights_slots_and_values(maker, tmp_path, caplog):
    graphs, unet = StoredGraphs(), network()
    outputs = [check(graphs, unet, *call(seed)) for seed in range(3)]
    unet.conv_in.slots.up.zero_()
    outputs.append(check(graphs, unet, *call(2)))
    unet.conv_out.weight.mul_(2)  # as merging does
    outputs.append(check(graphs, unet, *call(2)))
    assert len({output.sum().item() for output in outputs}) == 5
    check(graphs, network(seed=9), *call())
    assert maker.calls == 1
    with torch.inference_mode():
        check(StoredGraphs(), network(), *call())
    assert maker.calls == 1, "as in another process"
    assert sorted(file.suffix for file in (tmp_path / "graphs").iterdir()) == [".json", ".pt2"]
    assert not warnings(caplog)


def test_another_kind_of_call_has_another_graph(maker, monkeypatch):
    graphs, unet = StoredGraphs(), network()
    graphs.predict(unet, *call())
    asked = []
    monkeypatch.setattr(stored_graphs, "_graph", lambda *given: asked.append(given))
    monkeypatch.setattr(
        graphs, "_graphs", type("Eager", (), {"predict": staticmethod(lambda net, *x: net.predict(*x))})
    )
    for inputs in (call(side=12), (*call()[:3], Ports()), call(1)):
        graphs.predict(unet, *inputs)
    assert len(asked) == 2
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    graphs.predict(unet, *call())
    torch.set_num_threads(threads)
    graphs.predict(unet.double(), call()[0].double(), *call()[1:])
    assert len(asked) == 4


@pytest.mark.parametrize("what", ["versions", "package", "features"])
def test_what_does_not_fit_is_made_anew_and_told_once(what, maker, monkeypatch, tmp_path, caplog):
    """Of another version, damaged, or for a processor with other instructions."""
    check(StoredGraphs(), network(), *call())
    (package,) = (tmp_path / "graphs").glob("*.pt2")
    match what:
        case "versions":
            monkeypatch.setattr(stored_graphs, "_versions", lambda: {"torch": "3.0"})
        case "package":
            package.write_bytes(b"nothing")
        case "features":
            monkeypatch.setattr(stored_graphs, "features", lambda: "none")
    for _ in range(2):
        check(StoredGraphs(), network(), *call())
    assert maker.calls == 2
    said = {"versions": "graphs of another version in", "package": "a graph in", "features": None}[what]
    assert [line.startswith(said) for line in warnings(caplog)] == ([] if said is None else [True])
    assert len(list((tmp_path / "graphs").glob("*.pt2"))) == (2 if what == "features" else 1)


def test_graphs_that_were_not_used_for_the_longest_time_make_room(maker, monkeypatch, tmp_path):
    monkeypatch.setattr(stored_graphs, "MOST_BYTES", 2)  # each of the maker's has one
    calls = [call(side=side) for side in (8, 12, 16, 20)]
    for inputs in calls[:2]:
        check(StoredGraphs(), network(), *inputs)
    for index, file in enumerate(sorted((tmp_path / "graphs").glob("*.pt2"), key=lambda file: file.read_text())):
        os.utime(file, (index, index))
    check(StoredGraphs(), network(), *calls[0])  # the older one is used
    check(StoredGraphs(), network(), *calls[2])
    check(StoredGraphs(), network(), *calls[3])
    kept = {file.stem for file in (tmp_path / "graphs").glob("*.pt2")}
    assert kept == {file.stem for file in (tmp_path / "graphs").glob("*.json")}
    assert {(tmp_path / "graphs" / f"{stem}.pt2").read_text() for stem in kept} == {"2", "3"}
    assert maker.calls == 4
    check(StoredGraphs(), network(), *calls[2])
    assert maker.calls == 4
    check(StoredGraphs(), network(), *calls[0])
    assert maker.calls == 5


def test_a_folder_that_cannot_be_written_is_told_once_and_all_goes_on(maker, monkeypatch, tmp_path, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("UNDERTOW_CACHE", str(tmp_path / "file"))
    for _ in range(2):
        check(StoredGraphs(), network(), *call())
    assert maker.calls == 2
    (said,) = warnings(caplog)
    assert said.startswith(f"graphs cannot be kept in {tmp_path / 'file' / 'graphs'} (Not a directory)")
    assert said.endswith("UNDERTOW_CACHE names another folder")


def test_what_cannot_be_stored_is_compiled(maker, monkeypatch, caplog):
    """By torch.compile; also where gradients are wanted."""
    counter = Counter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    graphs, unet, maker.fails = StoredGraphs(), network(), "no C++ compiler"
    for seed in range(2):
        check(graphs, unet, *call(seed))
    assert (counter.graphs, maker.calls) == (1, 1)
    assert warnings(caplog) == [
        "no graph that could be stored, torch.compile makes one of each process: no C++ compiler"
    ]
    with torch.enable_grad():
        check(graphs, unet, *call())
    assert (counter.graphs, maker.calls) == (2, 1)


def test_in_the_background_nobody_waits(maker):
    graphs, unet = BackgroundGraphs(StoredGraphs()), network()
    for _ in range(2):
        check(graphs, unet, *call())
        assert graphs.wait(60)
    assert (graphs.ready, maker.calls) == (1, 1)
    with pytest.raises(NoGraph):
        StoredGraphs().predict_made(unet, *call())


def test_networks_that_compute_in_them_are_copied_with_graphs_of_their_own(maker):
    """By the maker, and by others."""
    for graphs in (StoredGraphs(), BackgroundGraphs(StoredGraphs())):
        compiled = CompiledUNet.of(network(), graphs)
        inputs = call()
        assert torch.equal(compiled(*inputs), deepcopy(compiled)(*inputs))
        if isinstance(graphs, BackgroundGraphs):
            assert graphs.wait(60)
            assert graphs.ready == 1
    assert maker.calls == 1


@pytest.mark.slow
@torch.no_grad()
def test_a_graph_is_made_for_real_and_another_process_loads_it(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("UNDERTOW_CACHE", str(tmp_path))
    first = [check(StoredGraphs(), network(), *call(seed)) for seed in range(2)]
    code = """
import sys
import time
import torch
from tests.compile.test_stored_graphs import call, network
from undertow.unet import stored_graphs
stored_graphs.make_graph = None
started = time.perf_counter()
with torch.no_grad():
    print(stored_graphs.StoredGraphs().predict(network(), *call(1)).prediction.sum().item())
assert time.perf_counter() - started < 5
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(first[1].sum().item(), rel=1e-5)
    assert not warnings(caplog)


@torch.no_grad()
def test_the_process_ends_with_the_one_that_waits_for_it(tmp_path):
    (tmp_path / CALL).write_bytes(written_call(network(), call()))
    process = started(tmp_path)
    process.stdin.close()  # as the system does it for a process that ends
    assert process.wait(60) == -signal.SIGKILL
    assert not (tmp_path / GRAPH).exists()


@pytest.mark.slow
def test_the_process_says_why_it_failed(tmp_path):
    with torch.no_grad(), pytest.raises(GraphFailed, match="no attribute 'context_mask'"):
        make_graph(network(), (latents_for(SMALLEST, 8, 8), TIMESTEPS, "no Conditioning", Ports()), tmp_path)
