"""Layers are copied beside what a device computes: the order in which copies, marks, waits and layers are queued, with
a queue that records what it is asked for. What CUDA does with it is in `benchmarks/gpu.py`."""

from contextlib import contextmanager

import pytest
import torch

import undertow
from tests.services import fresh_service
from undertow.memory.component import HostHome, Part
from undertow.memory.copies import CopyQueue, copies_beside
from undertow.memory.keeper import Keeper
from undertow.memory.residency import Residency


class Recorded:
    """A queue that copies at once, and writes down what it is asked for."""

    def __init__(self):
        self.events, self.beside_now = [], False

    @contextmanager
    def beside(self):
        self.beside_now = True
        yield
        self.beside_now = False

    def mark(self):
        self.events.append(("mark", len(self.events)))
        return self.events[-1]

    def wait(self, mark, tensors):
        assert all(tensor.numel() and not tensor.isnan().any() for tensor in tensors)
        self.events.append(("wait", mark))


@pytest.fixture
def recorded():
    return Recorded()


@pytest.fixture
def streamed(recorded):
    """A residency of a service's networks whose weights wait in the host's memory, as on an accelerator, and the
    U-Net."""
    model = fresh_service("sd1").model
    residency = Residency([*Keeper(model).residency._components.values()], copies=lambda device: recorded)
    part = residency._components["unet"].parts[0]
    part.home = HostHome(torch.device("cpu"), part.home)
    return residency, model.unet


def inputs(unet):
    context = torch.randn(1, 7, unet.config.context_dim, generator=torch.Generator().manual_seed(1))
    return torch.ones(1, 4, 8, 8), torch.tensor([3.0]), undertow.Conditioning(context=context)


@contextmanager
def computing(groups, recorded):
    """Writes down when the layers of each group compute, behind the hooks of the stream."""
    names = {group.module: group.names for group in groups}

    def note(module, _):
        recorded.events.append(("compute", names[module]))

    hooks = [module.register_forward_pre_hook(note) for module in names]
    yield
    for hook in hooks:
        hook.remove()


@torch.no_grad()
def test_each_group_is_copied_while_the_one_before_it_computes(streamed, recorded, monkeypatch):
    residency, unet = streamed
    given, copied = inputs(unet), []
    expected = unet(*given)
    original = Part.bring_in

    def bring_in(part, names):
        if part.absent & names:
            recorded.events.append(("copy" if recorded.beside_now else "copy in turn", frozenset(names)))
            copied.append(frozenset(names))
        return original(part, names)

    monkeypatch.setattr(Part, "bring_in", bring_in)
    with residency.streaming(unet):
        assert torch.equal(unet(*given), expected)
    assert {kind for kind, _ in recorded.events} == {"copy in turn"}, "the order is not known yet"
    order, groups = list(copied), residency._stream("unet", unet)._groups
    recorded.events.clear()
    for _ in range(2):
        recorded.events.clear()
        with residency.streaming(unet), computing(groups, recorded):
            assert torch.equal(unet(*given), expected), "to the bit"
        # wait for its own copy, begin the next one's, and only then compute
        kinds = [kind for kind, _ in recorded.events]
        first, last = ["copy", "mark"], ["wait", "compute"]
        assert kinds == [*first, *["wait", "copy", "mark", "compute"] * (len(order) - 1), *last]
        assert [names for kind, names in recorded.events if kind == "copy"] == order
        assert [names for kind, names in recorded.events if kind == "compute"] == order
        marks = [event for event in recorded.events if event[0] == "mark"]
        assert [mark for kind, mark in recorded.events if kind == "wait"] == marks
    assert residency._components["unet"].present_bytes == 0


@torch.no_grad()
def test_without_room_for_two_groups_each_comes_when_it_is_called(streamed, recorded):
    residency, unet = streamed
    given = inputs(unet)
    expected = unet(*given)
    with residency.streaming(unet):
        unet(*given)
    groups = residency._stream("unet", unet)._groups
    residency.evict_idle()
    residency.tracker.limit_bytes, residency.tracker.peak_bytes = max(group.size_bytes for group in groups), 0
    with residency.streaming(unet):
        assert torch.equal(unet(*given), expected)
    assert residency.tracker.peak_bytes <= residency.tracker.limit_bytes
    waited = sum(kind == "wait" for kind, _ in recorded.events)
    assert waited < len(groups) - 1, "some had to come in turn"


@torch.no_grad()
def test_a_forward_that_fails_leaves_nothing_underway(streamed, recorded):
    residency, unet = streamed
    given = inputs(unet)
    with residency.streaming(unet):
        expected = unet(*given)
    hook = unet.mid_block.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("broken")))
    with pytest.raises(RuntimeError, match="broken"), residency.streaming(unet):
        unet(*given)
    hook.remove()
    assert residency._components["unet"].present_bytes == 0
    for _ in range(2):
        with residency.streaming(unet):
            assert torch.equal(unet(*given), expected)


def test_a_cpu_has_no_second_queue(recorded):
    assert copies_beside(torch.device("cpu")) is None
    assert isinstance(recorded, CopyQueue)
