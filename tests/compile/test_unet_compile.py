"""Compiling is a contract: one graph, no breaks, and no recompilation while only values change.

Run without type checks, which the compiler cannot trace: pytest -o addopts= tests/compile
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

import undertow
from tests.golden.minis import CONTEXT, Mini, build, conditioning_for, latents_for
from undertow.checkpoints.write.unet_folder import save_unet
from undertow.nn.adaptable import Conv2d, Linear, WeightRows
from undertow.nn.attention import ImageTokens
from undertow.unet import stored_graphs
from undertow.unet.compiled import CompiledUNet, Graphs
from undertow.unet.conditioning import Conditioning, Ports, Residuals
from undertow.unet.config import ClassLabels, CrossAttention, Level, Middle, SelfAttention, TextTime, UNetConfig
from undertow.unet.unet import UNet

TOLERANCE = 1e-5
"""float32; the traced graph runs the same operations."""


# One ResBlock a level and 8 channels: what is asked here does not depend on width.
TINY = Mini(
    config=UNetConfig(
        levels=(Level(channels=8, resnets=1), Level(channels=8, resnets=1, attention=SelfAttention(heads=2))),
        in_channels=1,
        out_channels=1,
        norm_groups=2,
    ),
    diffusers={},
)
TINY_TEXT = Mini(
    config=UNetConfig(
        levels=(
            Level(channels=8, resnets=1, attention=CrossAttention(heads=2)),
            Level(channels=8, resnets=1, attention=CrossAttention(heads=2, depth=2)),
        ),
        middle=Middle(attention=CrossAttention(heads=2)),
        context_dim=CONTEXT,
        linear_projection=True,
        added=TextTime(pooled_dim=8, sinusoid_dim=4),
        guidance_dim=4,
        norm_groups=2,
    ),
    diffusers={},
)

SMALL_TEXT = Mini(
    config=UNetConfig(
        levels=(Level(channels=8, resnets=1), Level(channels=8, resnets=1, attention=CrossAttention(heads=2))),
        middle=Middle(attention=CrossAttention(heads=2)),
        context_dim=CONTEXT,
        norm_groups=2,
    ),
    diffusers={},
)
"""Less of the same, where many graphs are traced: a layer of each kind, and what is called twice. Its projections are
convolutions, as in SD1."""

CLASSES = replace(TINY, config=replace(TINY.config, added=ClassLabels(count=10, null=True), cos_first=False))

SMALLEST = replace(TINY, config=replace(TINY.config, levels=(Level(channels=4, resnets=1),)))


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Counter:
    """A compiler backend that runs the graph as it is, and counts graphs."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, module: torch.fx.GraphModule, _inputs: list[Tensor]) -> Callable[..., object]:
        self.graphs += 1
        return module.forward


def _normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _ports(mini: Mini, seed: int) -> Ports:
    """All three ports, full of random numbers."""
    skips = tuple(_normal(2, *shape, seed=seed + i) for i, shape in enumerate(mini.config.skip_shapes(8, 8)))
    image = {
        site: (
            ImageTokens(
                keys=_normal(2, 4, width, seed=seed),
                values=_normal(2, 4, width, seed=seed + 1),
                gain=_normal(2, seed=seed + 2),
            ),
        )
        for site, width in mini.config.cross_attentions().items()
    }
    return Ports(
        weights=WeightRows(
            slots=torch.randint(0, 3, (2, 2), generator=torch.Generator().manual_seed(seed)),
            gains=_normal(2, 2, seed=seed),
        ),
        residuals=Residuals(skips=skips, middle=torch.zeros_like(skips[-1]), running=skips),
        image=image or None,
    )


def _with_slots(unet: UNet) -> list[Tensor]:
    """Allocates the slots of every layer; returns the buffers."""
    buffers = []
    for module in unet.modules():
        if isinstance(module, Linear | Conv2d):
            module.allocate_slots(3, 2)
            buffers += [module.slots.down, module.slots.up]
    return buffers


def _refill(buffers: list[Tensor], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for buffer in buffers:
        buffer.normal_(std=0.05, generator=generator)


def _calls(mini: Mini) -> list[tuple[Tensor, Tensor, Conditioning]]:
    """The same shapes with other values in every argument."""
    times = (torch.tensor([3.0, 871.5]), torch.tensor([0.0, 0.0]), torch.tensor([999.0, 1.0]))
    return [
        (latents_for(mini, 8, 8, seed=i), time, conditioning_for(mini, seed=10 + i)) for i, time in enumerate(times)
    ]


@pytest.mark.parametrize("mini", [SMALL_TEXT, CLASSES, TINY_TEXT], ids=["text", "classes", "with guidance"])
@torch.no_grad()
def test_one_graph_whatever_the_values(mini):
    counter = Counter()
    unet = build(mini)
    compiled = torch.compile(unet, fullgraph=True, dynamic=False, backend=counter)
    compiled(*_calls(mini)[0])
    with torch._dynamo.config.patch(error_on_recompile=True):
        for latents, timesteps, given in _calls(mini):
            output = compiled(latents, timesteps, given)
            assert (output - unet(latents, timesteps, given)).abs().max() <= TOLERANCE * max(1, output.abs().max())
    assert counter.graphs == 1


@pytest.mark.parametrize("mini", [SMALL_TEXT, TINY], ids=["text", "pixels"])
@torch.no_grad()
def test_one_graph_whatever_is_in_the_ports(mini):
    """Slots, gains, residuals and image tokens: swapping adapters never recompiles."""
    counter = Counter()
    unet = build(mini)
    buffers = _with_slots(unet)
    compiled = torch.compile(unet, fullgraph=True, dynamic=False, backend=counter)
    outputs = []
    compiled(*_calls(mini)[0], _ports(mini, 0))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in (1, 2):
            _refill(buffers, seed)
            call = _calls(mini)[0]
            output = compiled(*call, _ports(mini, seed))
            assert (output - unet(*call, _ports(mini, seed))).abs().max() <= TOLERANCE * max(1, output.abs().max())
            outputs.append(output)
    assert counter.graphs == 1
    assert (outputs[0] - outputs[1]).norm() > 0.1 * outputs[0].norm(), "the contents were used, not baked in"


@torch.no_grad()
def test_a_port_that_is_absent_is_not_in_the_graph():
    mini, sizes = TINY, []

    def count(module: torch.fx.GraphModule, _inputs: list[Tensor]) -> Callable[..., object]:
        sizes.append(len(module.graph.nodes))
        return module.forward

    unet = build(mini)
    compiled = torch.compile(unet, fullgraph=True, dynamic=False, backend=count)
    latents, timesteps, given = _calls(mini)[0]
    compiled(latents, timesteps, given)
    compiled(latents, timesteps, given, _ports(mini, 0))
    assert len(sizes) == 2
    assert sizes[0] < sizes[1]


def test_training_traces_too():
    mini, counter = TINY, Counter()
    unet = build(mini).train()
    latents, timesteps, given = _calls(mini)[0]
    torch.compile(unet, fullgraph=True, backend=counter)(latents, timesteps, given).square().mean().backward()
    assert counter.graphs == 1
    assert all(parameter.grad is not None for parameter in unet.parameters())


@torch.no_grad()
def test_aot_autograd_accepts_the_graph():
    """The compiler's second stage decomposes every operation, the custom ones of nn/matmul.py included."""
    mini = SMALL_TEXT
    unet = build(mini).to(memory_format=torch.channels_last)
    latents, timesteps, given = _calls(mini)[0]
    output = torch.compile(unet, fullgraph=True, backend="aot_eager")(latents, timesteps, given)
    assert (output - unet(latents, timesteps, given)).abs().max() <= TOLERANCE


# PyTorch's own: importing a part of its compiler.
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
@torch.no_grad()
def test_load_unet_compiles_for_real(tmp_path, monkeypatch):
    """Inductor, once, on a very small network; as where a graph cannot be stored."""
    monkeypatch.setattr(stored_graphs, "_graph", lambda *_: None)
    save_unet(build(TINY), tmp_path)
    eager, compiled = undertow.load_unet(tmp_path), undertow.load_unet(tmp_path, backend="compile")
    latents = latents_for(TINY, 8, 8)
    compiled(latents, torch.tensor([3.0, 871.5]))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for timesteps in (torch.tensor([3.0, 871.5]), torch.tensor([500.0, 1.0])):
            output = compiled(latents, timesteps)
            assert (output - eager(latents, timesteps)).abs().max() <= TOLERANCE
    with pytest.raises(undertow.InvalidInput, match="timesteps"):
        compiled(latents, torch.tensor([3.0, 2000.0]))


@torch.no_grad()
def test_a_service_may_see_many_sizes(monkeypatch):
    """Each size has a graph of its own, and PyTorch's usual limit of eight must not end in an error."""
    counter = Counter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    unet = CompiledUNet.of(build(SMALLEST))
    sizes = range(4, 14)
    for size in sizes:
        assert unet(latents_for(SMALLEST, size, 4), torch.tensor([3.0, 871.5])).shape[2] == size
    assert counter.graphs == len(sizes)


@torch.no_grad()
def test_networks_of_one_structure_share_a_graph(monkeypatch):
    counter = Counter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    graphs, one, other = Graphs(), build(TINY), build(TINY, seed=9)
    inputs = latents_for(TINY, 8, 8), torch.tensor([3.0, 871.5]), Conditioning(), Ports()
    for unet in (one, other):
        output, expected = graphs.predict(unet, *inputs).prediction, unet.predict(*inputs).prediction
        assert (output - expected).abs().max() <= TOLERANCE * max(1, expected.abs().max())
    assert counter.graphs == 1


@torch.no_grad()
@pytest.mark.parametrize("slots", [False, True])
def test_freezing_makes_constants_of_all_weights_and_of_no_slot(monkeypatch, slots):
    """Of the digits U-Net 213 parameters are constants, and its 3 inputs are the only inputs."""
    kept, constants = [], []

    def count(module: torch.fx.GraphModule, _inputs: list[Tensor]) -> Callable[..., object]:
        kept.append([node.name for node in module.graph.nodes if node.op == "placeholder"])
        constants.append({node.target for node in module.graph.nodes if node.op == "get_attr"})
        return module.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=count))
    mini = SMALL_TEXT if slots else CLASSES
    unet, graphs = build(mini), Graphs(freeze=True)
    buffers = _with_slots(unet) if slots else []
    inputs = *_calls(mini)[0], Ports(weights=_ports(mini, 0).weights) if slots else Ports()
    outputs = []
    for seed in (1, 2):
        _refill(buffers, seed)
        output, expected = graphs.predict(unet, *inputs).prediction, unet.predict(*inputs).prediction
        assert (output - expected).abs().max() <= TOLERANCE * max(1, expected.abs().max())
        outputs.append(output)
    assert len(kept) == 1, "refilling slots does not recompile"
    assert len(constants[0]) == len(list(unet.parameters()))
    assert len([name for name in kept[0] if "slots" in name]) == (len(buffers) + 1 if slots else 0)
    assert len(kept[0]) - len(buffers) < 10
    assert torch.equal(*outputs) != slots, "what is in slots is read at every run"
    other = build(mini, seed=9)
    expected = other.predict(*inputs).prediction
    assert (graphs.predict(other, *inputs).prediction - expected).abs().max() <= TOLERANCE * expected.abs().max()
    assert len(kept) == 2, "another network's weights are other constants"


def test_the_contracts_above_can_fail():
    """A function that reads a value breaks the graph; one whose shape changes recompiles."""

    def reads(x: Tensor) -> Tensor:
        return x + 1 if x.sum().item() > 0 else x

    with pytest.raises(torch._dynamo.exc.TorchDynamoException):
        torch.compile(reads, fullgraph=True, backend="eager")(torch.ones(2))
    doubled = torch.compile(lambda x: 2 * x, fullgraph=True, dynamic=False, backend="eager")
    doubled(torch.ones(2))
    with torch._dynamo.config.patch(error_on_recompile=True), pytest.raises(torch._dynamo.exc.RecompileError):
        doubled(torch.ones(3))
