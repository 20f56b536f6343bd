"""Holds the forecast of memory to what PyTorch's allocator and the kernel count.

    python -m benchmarks.memory                      # 200 random cases, then docs/results/memory.md from all there is
    python -m benchmarks.memory --cases 20 --seed 7  # others, printed alone
    python -m benchmarks.memory --float16            # in float16, small ones
    python -m benchmarks.memory --large              # a few published networks at ordinary sizes
    python -m benchmarks.memory --training           # training steps
    python -m benchmarks.memory --process            # the memory of a few fresh processes, on the CPU
    python -m benchmarks.memory --device cuda        # reserved memory on a GPU, each case in a fresh process: minutes

One thread. On a CPU the allocator's peak is that of torch.profiler, which sees workspaces of kernels too. Measurements
are kept as JSON in docs/results/memory/, one of every kind for each family of processors, and the page is written from
them and from the forecast.
"""

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.lib.memory_cases import CHOSEN, HELD_OUT, LARGE, ON_CPU, TRAINED, Case, cases, float16_cases
from benchmarks.lib.memory_page import CASES, KEPT, SEED, alone, kept, write_page
from benchmarks.lib.memory_stages import measured, prepare
from undertow.memory.forecast import forecast
from undertow.memory.machine import this_machine

PAGE = Path("docs/results/memory.md")
ONE_SECONDS = 300
HERE = replace(this_machine(), threads=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=CASES)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--float16", action="store_true")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--training", action="store_true")
    parser.add_argument("--process", action="store_true")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--page", action="store_true", help="only write the page anew")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.one is not None:
        print(*_one(next(case for case in (*CHOSEN, *HELD_OUT) if case.title == options.one), options.device))
    elif options.process or options.device == "cuda":
        name = "cuda" if options.device == "cuda" else "process"
        _keep(name, _in_fresh_processes(options.device))
    elif options.large:
        _keep("large", _beside_the_allocator(LARGE))
    elif options.training:
        _keep("training", _beside_the_allocator(TRAINED))
    elif options.float16:
        _keep("float16", _beside_the_allocator(float16_cases()))
    elif options.page:
        write_page(PAGE)
    else:
        rows = _beside_the_allocator(cases(options.seed, options.cases))
        if (options.cases, options.seed) == (CASES, SEED):
            _keep("allocator", rows)


def _beside_the_allocator(drawn: Sequence[Case]) -> list[dict[str, Any]]:
    rows, begun = [], time.monotonic()
    for case in drawn:
        expected = forecast(case.subject, case.work, HERE).stage(case.stage).activation_bytes
        real = measured(case.stage, case.subject, case.work)
        rows.append({"case": case.title, "stage": case.stage, "measured": real})
        seconds = f"{time.monotonic() - begun:4.0f} s"
        print(f"{100 * (expected / real - 1):+.3f} % {real:>11} {seconds} {case.title}", flush=True)
    return rows


def _in_fresh_processes(device: str) -> list[dict[str, Any]]:
    """What only a process that does nothing else shows: reserved memory, or all of its memory."""
    rows = []
    for case in CHOSEN if device == "cuda" else CHOSEN[:ON_CPU]:
        command = [sys.executable, "-m", "benchmarks.memory", "--one", case.title, "--device", device]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        begun = time.monotonic()
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=ONE_SECONDS, check=False
        )
        if done.returncode:
            print(f"failed: {case.title}: {done.stderr.strip().splitlines()[-1:]}", flush=True)
            continue
        first, second = map(int, done.stdout.split()[-2:])
        rows.append({"case": case.title, "stage": case.stage, "measured": first, "allocated": second})
        expected = alone(case, device, HERE if device == "cpu" else None)
        print(f"{first:>12} {second:>12} {expected:>12} {time.monotonic() - begun:4.0f} s {case.title}", flush=True)
    return rows


def _one(case: Case, device: str) -> tuple[int, int]:
    """The peak of this process, or reserved and allocated bytes on the GPU."""
    prepared = prepare(case.stage, case.subject, case.work, device)
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with torch.inference_mode():
        for _ in range(2):
            prepared.run()
    if device == "cuda":
        torch.cuda.synchronize()
        return torch.cuda.max_memory_reserved(), torch.cuda.max_memory_allocated()
    return _high_water(), 0


def _high_water() -> int:
    """Linux' own count of the most that this process ever had in memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def _keep(name: str, rows: list[dict[str, Any]]) -> None:
    processor = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    cuda = name == "cuda"
    family = "gpu" if cuda else "amx" if HERE.amx else "avx512" if HERE.bfloat16 else "older"
    kept(
        KEPT / f"{name}-{family}.json",
        {
            "device": torch.cuda.get_device_name() if cuda else f"{processor}, {family.upper()}",
            "machine": {} if cuda else {key: value for key, value in asdict(HERE).items() if value is not None},
            "torch": torch.__version__,
            "date": datetime.now(UTC).date().isoformat(),
            "rows": rows,
        },
    )
    write_page(PAGE)


if __name__ == "__main__":
    main()
