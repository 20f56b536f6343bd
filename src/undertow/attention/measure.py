"""Measures every kernel at given shapes on one device: is it right, how long does it take, and how much memory."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import torch
from jaxtyping import Float
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from undertow.attention.catalogue import KERNELS
from undertow.attention.kernel import KernelEntry, Requirements
from undertow.attention.measurement import Call, MeasuredCall, Timing
from undertow.free_memory import free_bytes
from undertow.processor import has_amx, has_bfloat16, threads
from undertow.shapes import Keys, Queries
from undertow.shortage import size_in_words

Rows = Float[Tensor, "batch heads checked head_dim"]

CHECKED = 64
"""Queries whose output is compared: the whole score matrix in float64 would take more memory than any kernel."""

GATE = {torch.float64: 1e-9, torch.float32: 2e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}
"""Largest relative error of a query's output, by type: ten to twenty roundings. A kernel beyond it does not count."""

SHARE = 0.5
"""Of the free memory that a kernel may need to be measured at all."""

MOST_SECONDS = 5.0
"""A kernel that took longer once is not asked again."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One kernel at one call: a timing, or why there is none."""

    call: Call
    kernel: str
    timing: Timing | None
    refused: str = ""


def measure(
    calls: Iterable[Call], device: torch.device | str = "cpu", *, repeats: int = 5, inexact: bool = False
) -> Iterator[Measured]:
    """Measures each kernel of the catalogue at each call, in turns, on random tensors laid out as a U-Net's are.

    inexact: also the kernels that approximate, which pass the gate of no type and are timed all the same. Yields a
    result as soon as it is known; `gathered` puts those of a call together.
    """
    place = torch.device(device)
    for call in calls:
        yield from _measure_call(call, place, repeats, inexact=inexact)


def gathered(results: Iterable[Measured]) -> tuple[MeasuredCall, ...]:
    """The results by call, dated today."""
    by_call: dict[Call, list[Measured]] = {}
    for one in results:
        by_call.setdefault(one.call, []).append(one)
    return tuple(
        MeasuredCall(
            call=call,
            timings={one.kernel: one.timing for one in found if one.timing is not None and KERNELS[one.kernel].exact},
            refused={one.kernel: one.refused for one in found if one.timing is None},
            date=datetime.now(UTC).date().isoformat(),
        )
        for call, found in by_call.items()
    )


@torch.inference_mode()
def _measure_call(call: Call, device: torch.device, repeats: int, *, inexact: bool) -> Iterator[Measured]:
    query, key, value = _inputs(call, device)
    expected = _expected(query, key, value)
    requirements = requirements_of(call, device)
    entries = [entry for entry in KERNELS.values() if entry.exact or inexact]
    runs: dict[str, Callable[[], Tensor]] = {}
    for entry in entries:
        refused = entry.lacks(requirements) or _too_large(entry, requirements, device)
        if refused is None:
            runs[entry.name] = lambda entry=entry: entry.kernel(query, key, value)
        else:
            yield Measured(call=call, kernel=entry.name, timing=None, refused=refused)
    errors: dict[str, float] = {}
    for name in list(runs):
        try:
            errors[name] = _error(runs[name](), expected)
        except Exception as error:
            yield Measured(call=call, kernel=name, timing=None, refused=f"it failed: {_sentence(error)}")
            del runs[name]
            continue
        if KERNELS[name].exact and not errors[name] <= GATE[query.dtype]:
            yield Measured(
                call=call, kernel=name, timing=None, refused=f"it is wrong: relative error {errors[name]:.1g}"
            )
            del runs[name]
    seconds = _fastest_runs(runs, device, repeats)
    for name, run in runs.items():
        timing = Timing(seconds=seconds[name], scratch_bytes=scratch_bytes(run, device), error=errors[name])
        yield Measured(call=call, kernel=name, timing=timing)


def requirements_of(call: Call, device: torch.device | str, *, float32_logits: bool = False) -> Requirements:
    """The call as the chooser sees it."""
    dtype = getattr(torch, call.dtype)
    return Requirements(
        device=torch.device(device).type,
        dtype=dtype,
        queries=call.queries,
        keys=call.keys,
        rows=call.rows,
        heads=call.heads,
        head_dim=call.head_dim,
        float32_logits=float32_logits,
        imitated=dtype == torch.bfloat16 and not has_bfloat16(),
        amx=dtype == torch.bfloat16 and has_amx(),
    )


def scratch_bytes(run: Callable[[], Tensor], device: torch.device) -> int:
    """What a call allocates at most beside its inputs and its output: by PyTorch's allocators, which libraries that
    allocate for themselves pass by."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        output = run()
        return torch.cuda.max_memory_allocated(device) - before - _bytes(output)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        output = run()
    events = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]  # pyright: ignore[reportOptionalMemberAccess]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()  # pyright: ignore[reportAttributeAccessIssue]  its stub leaves it out
        most = max(most, held)
    return max(most - _bytes(output), 0)


def _inputs(call: Call, device: torch.device) -> tuple[Queries, Keys, Keys]:
    """Normal numbers, in memory as projections leave them: tokens before heads."""
    generator = torch.Generator().manual_seed(0)

    def normal(tokens: int) -> Tensor:
        drawn = torch.randn(call.rows, tokens, call.heads, call.head_dim, generator=generator)
        return drawn.to(device, getattr(torch, call.dtype)).transpose(1, 2)

    return normal(call.queries), normal(call.keys), normal(call.keys)


def _expected(query: Queries, key: Keys, value: Keys) -> Rows:
    """The formula in float64 on the CPU, for `CHECKED` of the queries."""
    query, key, value = query[:, :, _checked(query)].cpu().double(), key.cpu().double(), value.cpu().double()
    return (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1) @ value


def _checked(query: Queries) -> Tensor:
    tokens = query.shape[2]
    return torch.linspace(0, tokens - 1, min(CHECKED, tokens)).long()


def _error(output: Queries, expected: Rows) -> float:
    """The largest relative error of a query's output; infinite where it is not finite."""
    found = output[:, :, _checked(output)].cpu().double()
    error = ((found - expected).norm(dim=-1) / expected.norm(dim=-1)).max().item()
    return math.inf if math.isnan(error) else error


def _too_large(entry: KernelEntry, requirements: Requirements, device: torch.device) -> str | None:
    needed, free = entry.scratch_bytes(requirements), free_bytes(device)
    if free is None or needed <= SHARE * free:
        return None
    return f"it would take {size_in_words(needed)} of {size_in_words(free)} that are free"


def _fastest_runs(runs: dict[str, Callable[[], Tensor]], device: torch.device, repeats: int) -> dict[str, float]:
    """Seconds of the fastest run of each, in turns: what else the machine does only ever adds to a run.

    In one thread of a CPU they are the processor's, which do not pass while others have it.
    """
    now = time.process_time if device.type == "cpu" and threads() == 1 else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            if max(seconds[name], default=0) > MOST_SECONDS:
                continue
            _wait(device)
            start = now()
            run()
            _wait(device)
            seconds[name].append(now() - start)
    return {name: min(found) for name, found in seconds.items()}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _sentence(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
