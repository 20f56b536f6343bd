"""Networks leave memory and come back with the same bits, and what is in use stays."""

import gc
import mmap

import pytest
import torch

import undertow
from tests.adapters.lora.files import is_attention, kohya, layers_of, write
from tests.services import copy_pipeline, fresh_service, pipeline_folder
from undertow import GenerationRequest
from undertow.checkpoints.read.home import is_stand_in, stand_in
from undertow.errors import CorruptFile
from undertow.memory.component import HostHome, Part
from undertow.memory.keeper import Keeper
from undertow.memory.monitor import BudgetMemoryError, Guard, ProcessMemory, Tracker


@pytest.fixture
def service():
    return fresh_service("sd1")


def weights(service):
    return {name: tensor.clone() for name, tensor in service.model.unet.state_dict().items()}


def test_weights_come_back_with_the_same_bits_and_layout(service):
    model, before = service.model, weights(service)  # which asking the service for it would bring in again
    unet, residency = model.unet, Keeper(model).residency
    layouts = {name: (one.stride(), one.dtype, one.requires_grad) for name, one in unet.named_parameters()}
    identities = {name: id(one) for name, one in unet.named_parameters()}
    left = residency.evict_idle()
    assert residency.present == ()
    assert left == sum(one.nbytes for part in (unet, model.vae, *model.text.encoders) for one in part.parameters())
    assert all(is_stand_in(one) and one.isnan().all() for one in unet.parameters()), "nothing can use them unnoticed"
    assert (unet.dtype, unet.device) == (torch.float32, torch.device("cpu"))
    with residency.acquire("unet") as network:
        assert network is unet
        assert residency.present == ("unet",)
        assert residency.evict_idle() == 0, "what is acquired cannot leave"
    assert all(torch.equal(one, before[name]) for name, one in unet.state_dict().items())
    assert {name: (one.stride(), one.dtype, one.requires_grad) for name, one in unet.named_parameters()} == layouts
    assert {name: id(one) for name, one in unet.named_parameters()} == identities


def test_what_was_changed_since_it_was_read_stays(service):
    """A weight that somebody changed is in no file any more."""
    residency = Keeper(service.model).residency
    with torch.no_grad():
        service.model.unet.conv_out.bias += 1
        service.model.vae.decoder.conv_in.weight.mul_(1)  # written, with the same bits
    assert residency.can_evict("text")
    residency.evict_idle()
    assert residency.present == ("unet",)
    with torch.no_grad():
        service.model.unet.conv_out.bias -= 1


def test_a_change_behind_the_counter_of_versions_is_seen_after_an_eviction_of_the_rest(service):
    part = Keeper(service.model).residency._components["vae"].parts[0]
    assert part.is_kept()
    parameter = next(iter(part.parameters.values()))
    parameter.data = parameter.data + 1
    assert not part.is_kept()


def test_a_file_that_changed_is_refused(tmp_path):
    folder = copy_pipeline("sd1", tmp_path / "model")
    service = undertow.load(folder, dtype=torch.float32, lazy=True)
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(CorruptFile, match="the file changed"):
        service.unet  # noqa: B018


def test_cached_adapter_files_leave_too_and_single_numbers_stay(service, tmp_path):
    layers = {name: shape for name, shape in layers_of(service.model.unet).items() if is_attention(name)}
    path = write(tmp_path / "style.safetensors", kohya(layers))
    service.run(GenerationRequest(prompt="a", steps=1, size=(16, 16), adapters=(undertow.Adapter(source=path),)))
    library, size = service.adapters.library, service.adapters.library.size_bytes
    assert size > 0
    assert service.engine.memory.residency.evict_idle() > size
    assert len(library) == 0
    one = torch.nn.Parameter(torch.tensor([3.0]))
    assert not is_stand_in(stand_in(one))
    assert stand_in(one) == 3.0


def test_the_least_needed_leaves_for_the_budget(service):
    residency = Keeper(service.model).residency
    sizes = {name: one.present_bytes for name, one in residency._components.items()}
    residency.evict_idle()
    residency.tracker.limit_bytes = sizes["unet"] + sizes["text"]
    for name in ("text", "unet", "vae"):
        with residency.acquire(name):
            pass
    assert residency.present == ("unet", "vae"), "the text encoders left for the VAE, not the U-Net"
    residency.tracker.limit_bytes = sizes["unet"] + 1
    with residency.acquire("unet"), pytest.raises(BudgetMemoryError, match=r"with a budget of .* for weights"):
        residency.acquire("text")
    assert residency.present == ("unet",)
    assert residency._held["text"] == 0


@torch.no_grad()
def test_layers_are_in_memory_only_while_they_work(service):
    unet, residency, before = service.model.unet, Keeper(service.model).residency, weights(service)
    component, most = residency._components["unet"], []
    size = component.present_bytes
    context = torch.randn(1, 7, unet.config.context_dim, generator=torch.Generator().manual_seed(1))
    inputs = (torch.ones(1, 4, 8, 8), torch.tensor([3.0]), undertow.Conditioning(context=context))
    expected = unet(*inputs)
    with residency.streaming(unet):
        for module in unet.modules():
            module.register_forward_pre_hook(lambda *_: most.append(component.present_bytes))
        assert torch.equal(unet(*inputs), expected)
    assert component.present_bytes == 0
    assert size / 100 < max(most) < size / 4
    with residency.acquire("unet"):
        assert all(torch.equal(one, before[name]) for name, one in unet.state_dict().items())


def test_copies_in_the_host_are_taken_again_when_weights_change(service):
    """What a CUDA device uses, on a CPU."""
    weight = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    part = Part(parameters={"weight": weight}, home=HostHome(torch.device("cpu"), service.model.homes["unet"]))
    for change in (0.0, 1.0):
        with torch.no_grad():
            weight += change
        expected = weight.detach().clone()
        assert part.is_kept()
        part.drop(["weight"])
        assert part.absent == {"weight"}
        part.bring_in(["weight"])
        assert torch.equal(weight, expected)


def test_a_lazy_model_reads_what_it_needs():
    service = undertow.load(pipeline_folder("sd1"), dtype=torch.float32, lazy=True)
    assert all(map(is_stand_in, service._model.unet.parameters()))
    request = GenerationRequest(prompt="a cat", steps=1, seed=3, size=(64, 64))
    pictures = [one.run(request).images[0].tobytes() for one in (service, fresh_service("sd1"))]
    assert pictures[0] == pictures[1]
    assert not any(map(is_stand_in, service.unet.parameters()))


@torch.inference_mode()
def test_a_guard_counts_what_operations_allocate_and_what_is_let_go():
    tracker = Tracker(limit_bytes=10_000)
    given = torch.ones(1000)
    with Guard(tracker) as guard:
        doubled = given * 2
        view = doubled.reshape(10, 100).t()
        given.add_(1)
        assert tracker.live_bytes == 4000, "views and what is written in place are no new memory"
        del doubled
        assert view.sum() == 2000
        assert 4000 <= tracker.live_bytes < 4100, "a view keeps its memory"
        del view
        gc.collect()
        assert tracker.live_bytes < 100
        with guard.aside():
            aside = torch.ones(10_000)
        with pytest.raises(BudgetMemoryError, match=r"tried to allocate 12 kB beside .* a budget of 10 kB"):
            torch.ones(3000)
        del aside
    assert tracker.peak_bytes < 10_000


def test_the_process_s_peak_is_of_now():
    memory = ProcessMemory()
    if memory.peak() is None:
        pytest.skip("no /proc here")
    size = 2**26
    with mmap.mmap(-1, size) as big:  # of the system, whatever an allocator has kept of what was freed
        big.write(b"1" * size)
        before = memory.peak()
    memory.begin()
    lower = memory.peak()
    assert lower <= before - size / 2
    assert 0 < memory.in_use() <= before


def test_counting_does_not_go_through_the_compiler():
    """PyTorch wraps the method of a mode so that its first call imports `torch._dynamo` and sympy: 60 MiB, seconds."""
    layer = Guard.__torch_dispatch__
    while layer is not None:
        assert layer.__globals__["__name__"] != "torch._compile"
        layer = getattr(layer, "__wrapped__", None)
