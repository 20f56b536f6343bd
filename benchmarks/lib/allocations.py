"""What PyTorch's allocator gave out while a function ran, as torch.profiler recorded it."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(function: Callable[[], Any]) -> int:
    """Most bytes that lived at the same time beside what lived before, of all tensors and workspaces on the CPU."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = function()
    del result
    live = highest = 0
    for size in _sizes(profiler):
        live += size
        highest = max(highest, live)
    return highest


def _sizes(profiler: profile) -> Iterator[int]:
    """What was taken (positive) and given back (negative), in order."""
    results: Any = profiler.profiler
    events = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    yield from (event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))


def seeded(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Numbers that depend on nothing but the shape."""
    numbers = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(0), device="cpu")
    return numbers.to(device=torch.get_default_device(), dtype=dtype)
