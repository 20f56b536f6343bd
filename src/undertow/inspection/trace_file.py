"""PyTorch's own profiler around a request: every operation, as a table and as a trace that Chrome and Perfetto open."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from undertow.checkpoints.files.atomic import atomic_write

TOP = 15
"""Rows of the table."""


@dataclass(kw_only=True)
class OperatorTrace:
    """table: the operations that took most memory, most first; there once the tracing is over."""

    table: str = ""


@contextmanager
def traced(device: torch.device, *, path: Path | None = None, top: int = TOP) -> Generator[OperatorTrace]:
    """Traces what is done inside, with shapes and memory. path: of the trace as JSON. The tracing itself takes time and
    memory: trace few steps."""
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    found = OperatorTrace()
    with profile(activities=activities, profile_memory=True, record_shapes=True) as profiler:
        yield found
    order = f"self_{'device' if cuda else 'cpu'}_memory_usage"
    found.table = profiler.key_averages().table(sort_by=order, row_limit=top, max_name_column_width=48)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as draft:
            # PyTorch chooses the format by the name's ending.
            whole = draft.with_name(f"{draft.name}.json")
            profiler.export_chrome_trace(str(whole))
            whole.replace(draft)
