"""Who runs a network, and what others must know about it."""

from dataclasses import replace

import pytest
import torch

from tests.adapters.lora.files import layers_of, low_rank
from tests.golden.minis import M15, build, conditioning_for, latents_for, randomize
from tests.services import service_of
from undertow.adapters.control.controlnet import ControlNet
from undertow.adapters.control.residuals import ControlRow
from undertow.adapters.kind import RowAdapters
from undertow.adapters.lora.additive import LowRank
from undertow.adapters.lora.bank import AdapterCapacity
from undertow.adapters.lora.kind import LoraInput, LoraKind
from undertow.adapters.lora.updates import LayerUpdates, ScaledUpdates
from undertow.adapters.manager import AdapterManager
from undertow.engine.forward import forward
from undertow.engine.rows import Row
from undertow.errors import InvalidInput
from undertow.service import UNetService
from undertow.unet.background import BackgroundGraphs
from undertow.unet.runner import EAGER, Capabilities, CompiledRunner, EagerRunner, runner_named
from undertow.unet.unet import UNet

SIDE = 8


class Recorder(EagerRunner):
    """Runs eagerly, and remembers what it ran with which inputs."""

    def __init__(self, **capabilities: bool):
        self.capabilities = replace(EAGER.capabilities, **capabilities)
        self.runs = []

    def run(self, network, *inputs):
        self.runs.append((network, inputs))
        return super().run(network, *inputs)


@pytest.fixture(scope="module")
def unet() -> UNet:
    return build(M15).requires_grad_(False)


def row(unet: UNet, seed: int, **settings) -> Row:
    return Row(
        unet=unet,
        latents=latents_for(M15, SIDE, SIDE, batch=1, seed=seed),
        timestep=torch.tensor([500.0]),
        conditioning=conditioning_for(M15, batch=1, seed=seed),
        **settings,
    )


def updates(unet: UNet) -> LayerUpdates:
    name, shape = next(iter(layers_of(unet).items()))
    down, up = low_rank("one", shape, 2)
    return LayerUpdates(key=1, title="one", updates={name: LowRank(down=down, up=up)}, factors={})


def test_runners_have_names():
    assert runner_named("eager") is EAGER
    assert isinstance(runner_named("compile"), CompiledRunner)
    assert isinstance(runner_named("background").graphs, BackgroundGraphs)
    with pytest.raises(
        InvalidInput, match="backend is 'onnx', expected 'eager', 'packed', 'compile', 'background' or 'openvino'"
    ):
        runner_named("onnx")


def test_capabilities_are_declared():
    assert EAGER.capabilities == Capabilities(observable=True, fixed_shapes=False, slots=True, merging=True)
    compiled, frozen = CompiledRunner().capabilities, CompiledRunner(freeze=True).capabilities
    assert compiled == Capabilities(observable=False, fixed_shapes=True, slots=True, merging=True)
    assert frozen == replace(compiled, merging=False, copies=True)
    assert CompiledRunner(background=True).capabilities == replace(compiled, repeatable=False)


@torch.no_grad()
def test_a_compiled_run_has_the_hooks_and_checks_of_the_network(unet, monkeypatch):
    """Only the computation is the graph's."""
    computed, hooked = [], []

    def compile_nothing(function, **_options):
        return lambda *inputs: computed.append(inputs[0]) or function(*inputs)

    monkeypatch.setattr(torch, "compile", compile_nothing)
    runner, inputs = CompiledRunner(), (latents_for(M15, SIDE, SIDE), torch.tensor([3.0, 871.5]), conditioning_for(M15))
    handle = unet.register_forward_hook(lambda *_: hooked.append(True))
    found = runner.run(unet, *inputs)
    handle.remove()
    assert torch.equal(found, EAGER.run(unet, *inputs))
    assert (computed, hooked) == ([unet], [True])
    with pytest.raises(InvalidInput, match="context"):
        runner.run(unet, *inputs[:2])
    assert computed == [unet]


@torch.no_grad()
def test_control_networks_run_in_the_runner_of_the_u_net(unet):
    control = ControlNet.from_unet(unet, (8,)).requires_grad_(False)
    randomize(control, 5)
    hint = control.embed_hint(torch.rand(1, 3, SIDE, SIDE))
    acting = ControlRow(network=control, hint=hint, gains=(1.0,) * len(control.points))
    manager, runner = AdapterManager(unet, None), Recorder()
    rows = [row(unet, 0, adapters=RowAdapters(inputs=(acting,)))]
    (found,), (expected,) = forward(rows, manager, runner=runner), forward(rows, manager)
    assert [network for network, _ in runner.runs] == [control, unet]
    assert torch.equal(found.prediction, expected.prediction)


@torch.no_grad()
@pytest.mark.parametrize(("fixed_shapes", "entries"), [(False, 1), (True, 3)])
def test_rows_have_all_their_entries_where_shapes_are_fixed(fixed_shapes, entries):
    """One graph then fits a batch with one adapter and one with three."""
    unet = build(M15).requires_grad_(False)
    manager = AdapterManager(unet, None, capacity=AdapterCapacity(slots=3, rank=2, per_row=3))
    active = ScaledUpdates(layers=updates(unet), gain=1.0)
    runner = Recorder(fixed_shapes=fixed_shapes)
    forward(
        [row(unet, 0, adapters=RowAdapters(inputs=(LoraInput(scaled=active, residency="banked"),)))],
        manager,
        runner=runner,
    )
    ((_, inputs),) = runner.runs
    assert inputs[3].weights.slots.shape == (1, entries)


@torch.no_grad()
def test_merged_weights_are_run_eagerly_where_a_runner_has_a_copy_of_the_others(unet):
    manager, fixed, other = AdapterManager(unet, None), Recorder(merging=False), Recorder()
    active = ScaledUpdates(layers=updates(unet), gain=1.0)
    rows = [row(unet, 0, adapters=RowAdapters(inputs=(LoraInput(scaled=active, residency="merged"),)))]
    (merged,), (expected,) = forward(rows, manager, runner=fixed), forward(rows, manager, runner=other)
    assert torch.equal(merged.prediction, expected.prediction)
    assert manager.kind(LoraKind).merged.present != ()
    assert (len(fixed.runs), len(other.runs)) == (0, 1)
    (plain,) = forward([row(unet, 0)], manager, runner=fixed)
    assert len(fixed.runs) == 1
    assert not torch.equal(plain.prediction, merged.prediction)


def test_slots_need_a_runner_that_has_them():
    with pytest.raises(InvalidInput, match="this runner has no slots for LoRA"):
        UNetService(service_of("sd1").model, adapter_capacity=AdapterCapacity(), runner=Recorder(slots=False))
