"""How the benchmarks here time things: in turn, so that a busy machine slows all alike, and by the median."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch

from undertow.processor import computes


def interleaved_medians(runs: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Seconds of each run, after one that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def native_types() -> list[str]:
    """The types worth timing on this CPU: bfloat16 only where the processor does not imitate it."""
    return [name for name in ("float32", "bfloat16") if computes(getattr(torch, name), "cpu")]
