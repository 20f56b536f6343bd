"""Memory on a CUDA device, in one call of under eight minutes and without downloads: what is forecast, what is taken.

    python -m benchmarks.cuda_memory [--only SECTION ...] [--seconds 440]
    python -m benchmarks.cuda_memory --device cpu       # the same path with networks that take a CPU seconds

Sections: calibration (each case in a process of its own; the result is stored for `undertow plan --device cuda`, and
held to cases that it was not made from), layers (of a network that come in while others compute: the same bits, and
milliseconds beside those without a second queue), short (requests that run out of the device's memory: what gives way,
the same bytes by the same course), attention (every kernel against float64, and 16,384 tokens in half precision),
training (bytes and seconds of a step with and without checkpointing beside the forecast). Each prints Markdown; one
that fails prints why, and the others go on; one that would begin after --seconds is named and left out. Speed beside
diffusers, and pictures beside a CPU's: `benchmarks/gpu.py`.
"""

import argparse
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

import undertow
from benchmarks.lib.memory_cases import CHOSEN, HELD_OUT, NARROW, ON_CPU, TRAINED, Case
from benchmarks.lib.memory_page import weights_alone
from benchmarks.lib.memory_stages import measured, prepare
from undertow import Conditioning, GenerationRequest
from undertow.attention.measure import measure
from undertow.attention.measurement import Call
from undertow.engine.options import RunOptions
from undertow.engine.result import GenerationResult
from undertow.memory.calibration import Calibration, Measured, calibrated, store_calibration
from undertow.memory.component import Component, HostHome, Part
from undertow.memory.copies import CopyQueue, copies_beside
from undertow.memory.families import family
from undertow.memory.forecast import forecast
from undertow.memory.machine import Machine
from undertow.memory.residency import Residency
from undertow.shortage import size_in_words
from undertow.unet.unet import UNet

SECONDS = 440
MIB = 2**20


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    options = parser.parse_args(given)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device: nothing to measure")
        return
    begun, device = time.monotonic(), torch.device(options.device)
    print(f"{_name(device)}, torch {torch.__version__}")
    for name in options.only:
        print(f"\n## {name}\n", flush=True)
        if time.monotonic() - begun > options.seconds:
            print(f"left out: {options.seconds:.0f} seconds are over")
            continue
        try:
            SECTIONS[name](device)
        except Exception:
            traceback.print_exc(file=sys.stdout)
        _empty(device)
    print(f"\n{time.monotonic() - begun:.0f} seconds in all", flush=True)


def calibration(device: torch.device) -> None:
    """Reserved bytes of fresh processes, the upper line through them, and others held to it. Of a CPU the allocator's
    own, which need no line and are stored nowhere."""
    tiny = device.type == "cpu"
    fitted, held_out = (CHOSEN[:2], CHOSEN[:2]) if tiny else (CHOSEN[ON_CPU:], HELD_OUT)
    found = calibrated(_name(device), torch.__version__, [one for case in fitted if (one := _taken(case, device))])
    if not tiny:
        print(f"stored in {store_calibration(found)}\n")
    print("| stage | factor | more MiB |\n|---|---|---|")
    for line in found.stages:
        print(f"| {line.stage} | {line.factor:.3f} | {line.more_bytes / MIB:.0f} |")
    print("\nHeld out:\n\n| case | taken MiB | forecast MiB | above |\n|---|---|---|---|", flush=True)
    for case in held_out:
        _held_to(found, case, device)


def _taken(case: Case, device: torch.device) -> Measured | None:
    """`None` for a process that failed, which is said."""
    expected = forecast(case.subject, case.work, Machine(device=device.type)).stage(case.stage).activation_bytes
    if device.type == "cpu":
        return Measured(
            stage=case.stage, activation_bytes=expected, excess_bytes=measured(case.stage, case.subject, case.work)
        )
    command = [sys.executable, "-m", "benchmarks.memory", "--one", case.title, "--device", "cuda"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=os.environ)
    if done.returncode:
        print(f"failed: {case.title}: {done.stderr.strip().splitlines()[-1:]}\n", flush=True)
        return None
    reserved = int(done.stdout.split()[-2])
    return Measured(stage=case.stage, activation_bytes=expected, excess_bytes=max(0, reserved - weights_alone(case)))


def _held_to(found: Calibration, case: Case, device: torch.device) -> None:
    taken = _taken(case, device)
    if taken is None:
        return
    weights = weights_alone(case)
    real, expected = weights + taken.excess_bytes, weights + found.reserved(case.stage, taken.activation_bytes)
    print(f"| {case.title} | {real / MIB:.1f} | {expected / MIB:.1f} | {expected / real - 1:+.1%} |", flush=True)


class Nowhere:
    """A home of weights that were never in a file."""

    is_there = True

    def keep(self, name: str, tensor: Tensor) -> bool:
        return False

    def read(self, names: Collection[str], *, mapped: bool = False) -> Mapping[str, Tensor]:
        raise LookupError(sorted(names))


@torch.no_grad()  # weights that come and go are no inference tensors
def layers(device: torch.device) -> None:
    """A U-Net as a whole, in groups that come in turn, and in groups of which the next comes meanwhile."""
    subject, cells = (NARROW[0], 16) if device.type == "cpu" else (family("sd15"), 64)
    assert subject.unet is not None
    dtype = torch.float32 if device.type == "cpu" else torch.float16
    torch.manual_seed(0)
    with torch.device(device):
        unet = UNet(subject.unet).to(dtype).to(memory_format=torch.channels_last).eval().requires_grad_(False)
        latents, context = torch.randn(2, 4, cells, cells), torch.randn(2, 77, subject.unet.context_dim or 1)
        inputs = (latents.to(dtype), torch.tensor([10.0, 500.0]), Conditioning(context=context.to(dtype)))
    expected, seconds, peak = _timed(lambda: unet(*inputs), device)
    print("| weights | ms | most MiB | difference |\n|---|---|---|---|")
    print(f"| in memory | {1000 * seconds:.1f} | {peak / MIB:.0f} | |", flush=True)
    ways: dict[str, Callable[[torch.device], CopyQueue | None]] = {
        "in turn": lambda _: None,
        "the next while one computes": copies_beside,
    }
    for name, copies in ways.items():
        part = Part(parameters=dict(unet.named_parameters()), home=HostHome(device, Nowhere()))
        component = Component(name="unet", network=unet, parts=[part], priority=0)
        residency = Residency([component], copies=copies)

        def run(residency: Residency = residency) -> Tensor:
            with residency.streaming(unet):
                return unet(*inputs)

        output, seconds, peak = _timed(run, device)
        difference = (output - expected).abs().max().item()
        print(f"| {name} | {1000 * seconds:.1f} | {peak / MIB:.0f} | {difference} |", flush=True)
        component.bring_in()


def _timed(run: Callable[[], Tensor], device: torch.device, repeats: int = 5) -> tuple[Tensor, float, int]:
    """The output, seconds of the fastest run, and the most bytes allocated; after two runs to warm up."""
    output = run()
    run()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    fastest = float("inf")
    for _ in range(repeats if device.type == "cuda" else 1):
        _wait(device)
        started = time.perf_counter()
        run()
        _wait(device)
        fastest = min(fastest, time.perf_counter() - started)
    return output, fastest, torch.cuda.max_memory_allocated() if device.type == "cuda" else 0


def short(device: torch.device) -> None:
    """Requests of the emoji model that run out of the device's memory, drawn again by the course that they took."""
    dtype = torch.float32 if device.type == "cpu" else torch.float16
    count, side = (2, 64) if device.type == "cpu" else (16, 256)
    request = GenerationRequest(prompt="owl", seed=3, steps=2, count=count, size=(side, side))
    print("| how | same bytes as | gave way | most tensors |\n|---|---|---|---|", flush=True)
    service = undertow.load("emoji", dtype=dtype, device=device)
    plain = service.run(request)
    less = service.run(request, low_vram=True)
    print(f"| low_vram | without: {_same(plain, less)} | | |", flush=True)
    service.engine.memory.others_bytes = 0
    for share in (0.9, 0.7, 0.5):
        budget = int(share * service.plan(size=(side, side), batch=count).peak_bytes)
        with _limited(device, budget):
            handle = service.engine.submit(request, options=RunOptions(budget_bytes=budget))
            drawn = handle.result()
        memory = drawn.report.memory
        again = undertow.load("emoji", dtype=dtype, device=device).run(request, course=memory.course)
        tensors = "" if memory.tensors_bytes is None else size_in_words(memory.tensors_bytes)
        said = "; ".join(map(str, memory.course)) or "nothing"
        print(f"| {size_in_words(budget)} | a fresh service: {_same(drawn, again)} | {said} | {tensors} |", flush=True)


@contextmanager
def _limited(device: torch.device, size_bytes: int) -> Generator[None]:
    """The device itself refuses more than a quarter beyond the budget."""
    if device.type != "cuda":
        yield
        return
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(1.0, (1.25 * size_bytes + torch.cuda.memory_reserved()) / total))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def attention(device: torch.device) -> None:
    """Every kernel at shapes of SD1.5 and SDXL, against float64; 16,384 tokens must be finite in half precision."""
    tiny = device.type == "cpu"
    tokens, dtypes = (64, ("float32",)) if tiny else (4096, ("float16", "bfloat16", "float32"))
    calls = [
        Call(rows=2, heads=heads, queries=tokens, keys=keys, head_dim=dim, dtype=dtype)
        for dtype in dtypes
        for heads, dim, keys in ((8, 40, tokens), (10, 64, tokens), (8, 160, 77))
    ]
    if not tiny:
        calls += [Call(rows=1, heads=8, queries=2**14, keys=2**14, head_dim=40, dtype=dtype) for dtype in dtypes[:2]]
    print("| call | type | kernel | ms | scratch MiB | error |\n|---|---|---|---|---|---|", flush=True)
    for one in measure(calls, device, repeats=1 if tiny else 5):
        timing = one.timing
        figures = (
            f"| | {one.refused}"
            if timing is None
            else f"{1000 * timing.seconds:.2f} | {timing.scratch_bytes / MIB:.1f} | {timing.error:.1e}"
        )
        print(f"| {one.call} | {one.call.dtype} | {one.kernel} | {figures} |", flush=True)


def training(device: torch.device) -> None:
    """A step of LoRA on a narrow network, with activations kept and computed again."""
    print("| case | taken MiB | forecast MiB | ms |\n|---|---|---|---|", flush=True)
    for case in TRAINED[:1] if device.type == "cpu" else TRAINED[:3]:
        prepared = prepare(case.stage, case.subject, case.work, device.type)
        prepared.run()
        before = torch.cuda.memory_allocated() if device.type == "cuda" else 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        _wait(device)
        started = time.perf_counter()
        prepared.run()
        _wait(device)
        seconds = time.perf_counter() - started
        taken = torch.cuda.max_memory_allocated() - before if device.type == "cuda" else 0
        stage = forecast(case.subject, case.work, Machine(device=device.type)).stage(case.stage)
        print(f"| {case.title} | {taken / MIB:.1f} | {stage.activation_bytes / MIB:.1f} | {1000 * seconds:.0f} |")


SECTIONS: dict[str, Callable[[torch.device], None]] = {
    "calibration": calibration,
    "layers": layers,
    "short": short,
    "attention": attention,
    "training": training,
}


def _same(one: GenerationResult, other: GenerationResult) -> bool:
    pairs = zip(one.images, other.images, strict=True)
    return torch.equal(one.latents, other.latents) and all(a.tobytes() == b.tobytes() for a, b in pairs)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name() if device.type == "cuda" else "CPU"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _empty(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
