"""Running out of memory is called that at every door, and what cannot fit is refused before it is begun."""

import numpy as np
import pytest
import torch

from tests.services import fresh_service, service_of
from undertow import GenerationRequest, OutOfMemory, RequestFailed, free_memory
from undertow.cli import main
from undertow.engine import memory_need
from undertow.engine.memory_need import decoding_bytes, drawing_bytes
from undertow.free_memory import free_bytes, naming_memory
from undertow.shortage import asked_memory, is_out_of_memory, size_in_words
from undertow.training.fit import FitSettings
from undertow.training.lora import LoraSettings, new_lora

TOO_MANY = 2**55


def allocators() -> list[BaseException]:
    """What runs out of memory on this machine, by asking each allocator for an exbibyte."""
    found = []
    for ask in (lambda: torch.empty(TOO_MANY), lambda: np.empty(TOO_MANY), lambda: bytearray(TOO_MANY)):
        with pytest.raises((RuntimeError, MemoryError)) as raised:
            ask()
        found.append(raised.value)
    return found


# PyTorch's own wordings: CUDACachingAllocator.cpp, alloc_cpu.cpp on Windows, MPSAllocator.mm, CUDABlas.cpp.
REPORTED = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 14.88 GiB. GPU 0 has a total capacity of 23.65 GiB"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 3200000000 bytes."),
    RuntimeError("MPS backend out of memory (MPS allocated: 17.96 GB, other allocations: 384.00 KB)"),
    RuntimeError("Invalid buffer size: 24.00 GB"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
)


@pytest.mark.parametrize("error", [*allocators(), *REPORTED], ids=lambda error: str(error)[:40])
def test_it_is_recognized(error):
    assert is_out_of_memory(error)
    with pytest.raises(OutOfMemory, match="drawing needs") as raised, naming_memory("drawing"):
        raise error
    assert raised.value.__cause__ is error
    assert isinstance(raised.value, MemoryError)


def test_other_errors_stay_what_they_are():
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(ZeroDivisionError), naming_memory("drawing"):
        raise ZeroDivisionError


def test_how_much_was_asked_for_is_said():
    assert [asked_memory(error) for error in REPORTED[:3]] == ["15.98 GB", "3.20 GB", ""]
    assert [size_in_words(count) for count in (12, 1536, 3 * 2**40)] == ["12 bytes", "1.5 kB", "3.30 TB"]


def test_a_verb_that_runs_out_of_memory_is_no_bug(capsys):
    def fill() -> None:
        torch.empty(TOO_MANY)

    assert main(["fill"], {"fill": fill, "other": fill}) == 2
    error = capsys.readouterr().err
    assert "of memory; free some, or ask for less" in error
    assert "bug" not in error


def held_bytes(run) -> int:
    """The most that tensors hold at once while something runs, measured by the allocator."""
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    held, most = 0, 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


@torch.no_grad()
def test_a_prediction_is_at_most_what_is_held():
    """Nothing is refused that could be drawn."""
    service = service_of("sd1")
    cells = (96 // service.vae.config.factor, 64 // service.vae.config.factor)
    request = GenerationRequest(prompt="a", steps=1, size=(96, 64), guidance_scale=1.0)
    service.run(request)  # what is kept between pictures
    held = held_bytes(lambda: service.run(request))
    assert 0 < drawing_bytes(service.unet, cells) < held
    assert held / 4 < decoding_bytes(service.vae, cells, low_vram=False) <= held


def test_a_picture_that_cannot_fit_is_refused_before_it_is_drawn():
    """The size of the issue; a terabyte is more than there is."""
    service, forwards = fresh_service("sd1"), []
    service.unet.register_forward_pre_hook(lambda *_: forwards.append(1))
    with pytest.raises(
        OutOfMemory, match=r"400000x400000 needs at least .* TB .* smaller picture, up to about"
    ) as raised:
        service.run(GenerationRequest(prompt="a", size=(400_000, 400_000)))
    assert raised.value.needed_bytes > raised.value.free_bytes > 0
    assert not forwards
    assert len(service.run(GenerationRequest(prompt="a", steps=1)).images) == 1, "the engine goes on"


@pytest.mark.parametrize(
    ("options", "free", "helps"),
    [({}, "whole", "decode in parts"), ({"low_vram": True}, "parts", "up to about"), ({}, "tiny", "up to about")],
)
def test_what_helps_is_what_would_fit(options, free, helps, monkeypatch):
    service = service_of("sd1")
    cells = (256 // service.vae.config.factor,) * 2
    whole, parts = (decoding_bytes(service.vae, cells, low_vram=low_vram) for low_vram in (False, True))
    assert parts < whole
    monkeypatch.setattr(
        memory_need, "free_bytes", lambda _: {"whole": whole - 1, "parts": parts - 1, "tiny": 1000}[free]
    )
    with pytest.raises(OutOfMemory) as raised:
        service.run(GenerationRequest(prompt="a", size=(256, 256)), **options)
    assert helps in raised.value.remedy
    assert ("--low-vram" in raised.value.remedy) == (free == "whole")


def test_running_out_while_drawing_names_the_picture(monkeypatch):
    service = service_of("sd1")

    def draw(self, shape):
        raise torch.OutOfMemoryError("Tried to allocate 40.00 GiB")

    monkeypatch.setattr("undertow.sampling.noise.NoiseSource.draw", draw)
    with pytest.raises(
        RequestFailed, match=r"picture 0, while it was drawn.*40.00 GiB; the least .* needs is .*; draw a smaller"
    ):
        service.run(GenerationRequest(prompt="a", steps=1))


def test_what_is_free_is_known_on_linux(tmp_path, monkeypatch):
    free = free_bytes(torch.device("cpu"))
    assert free is None or 2**20 < free < 2**50
    assert free_bytes(torch.device("meta")) is None
    (tmp_path / "meminfo").write_text(
        "MemTotal: 24000 kB\nMemAvailable:   16000 kB\nSwapFree: 8000 kB\nHugePages_Free: 0\n"
    )
    monkeypatch.setattr(free_memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(free_memory, "GROUP", tmp_path)
    assert free_bytes(torch.device("cpu")) == 24_000 * 1024
    (tmp_path / "memory.max").write_text("10000000\n")
    (tmp_path / "memory.current").write_text("4000000\n")
    (tmp_path / "memory.stat").write_text("anon 3000000\nfile 1000000\n")
    assert free_bytes(torch.device("cpu")) == 7_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes(torch.device("cpu")) == 24_000 * 1024


def test_a_lora_that_cannot_fit_is_refused_before_it_is_made():
    model = service_of("sd1").model
    settings = LoraSettings(fit=FitSettings(steps=1, batch_size=1, learning_rate=1e-4), rank=10**12)
    with pytest.raises(OutOfMemory, match=r"a LoRA of rank 1000000000000 over \d+ layers needs .* smaller rank"):
        new_lora(model.require_unet(), model.require_text(), settings)
