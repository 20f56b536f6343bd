"""Measures what gradient checkpointing saves and costs in training (trap T6).

One training step of the cifar10 preset at 32x32 pixels in float32, one thread, in a process of its own each: peak
resident memory above that before the step, and seconds (median). Prints a Markdown table.

    python benchmarks/checkpointing.py [--rows 64] [--repeats 3]
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time

import torch

from undertow import Conditioning, UNet, UNetConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", choices=["without", "with"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(*measure(options.one == "with", options.rows, options.repeats))
        return
    results = {}
    for name in ("without", "with"):
        command = [sys.executable, __file__, "--one", name, "--rows", str(options.rows)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        output = subprocess.run(
            [*command, "--repeats", str(options.repeats)], check=True, env=environment, capture_output=True, text=True
        ).stdout
        results[name] = [float(word) for word in output.split()]
    print(f"cifar10 preset, {options.rows} rows, float32, torch {torch.__version__}, 1 thread\n")
    print("| checkpointing | peak memory of a step, MiB | seconds a step |\n|---|---|---|")
    for name, (memory, seconds) in results.items():
        print(f"| {name} | {memory:.0f} | {seconds:.2f} |")
    memory, seconds = (results["with"][i] / results["without"][i] for i in (0, 1))
    print(f"| ratio | {memory:.2f} | {seconds:.2f} |")


def measure(checkpointing: bool, rows: int, repeats: int) -> tuple[float, float]:
    """Peak MiB above the start, and median seconds, of a training step."""
    torch.set_num_threads(1)
    unet = UNet(UNetConfig.cifar10()).train()
    unet.gradient_checkpointing = checkpointing
    latents, timesteps = torch.randn(rows, 3, 32, 32), torch.rand(rows) * 999
    conditioning = Conditioning(class_labels=torch.arange(rows) % 10)
    for parameter in unet.parameters():
        parameter.grad = torch.zeros_like(parameter)  # counted before the step: both need it
    start = peak_mib()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        unet(latents, timesteps, conditioning).square().mean().backward()
        seconds.append(time.perf_counter() - began)
    return peak_mib() - start, statistics.median(seconds)


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
