"""Draws with `emoji` in float32, as bfloat16 loads on this processor, and with bfloat16 forced upon it.

Once on the processor as it is, once as an older one: oneDNN's and PyTorch's variables let an x86 processor with
AVX-512 BF16 stand for one with AVX2 alone. 8 steps, guidance, one thread, interleaved, medians.

    python benchmarks/bfloat16.py [--repeats 5]
"""

import argparse
import os
import subprocess
import sys

import torch
from lib.timing import interleaved_medians

import undertow
from undertow.processor import has_bfloat16
from undertow.service import UNetService

AS_AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        compare(options.one, options.repeats)
        return
    print(f"torch {torch.__version__}, 1 thread, median of {options.repeats}\n")
    print("| processor | bfloat16 | float32 s | bfloat16 as loaded s | ratio | bfloat16 forced s | ratio |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for name, limits in (("as it is", {}), ("as AVX2", AS_AVX2)):
        command = [sys.executable, __file__, "--one", name, "--repeats", str(options.repeats)]
        subprocess.run(command, check=True, env=os.environ | limits | {"OMP_NUM_THREADS": "1"})


def compare(name: str, repeats: int) -> None:
    torch.set_num_threads(1)
    services = {
        "float32": undertow.load("emoji", dtype=torch.float32),
        "loaded": undertow.load("emoji", dtype=torch.bfloat16),
        "forced": forced(undertow.load("emoji", dtype=torch.float32)),
    }
    runs = {key: lambda service=service: draw(service) for key, service in services.items()}
    seconds = interleaved_medians(runs, repeats)
    loaded, plain = (seconds[key] / seconds["float32"] for key in ("loaded", "forced"))
    has = "by itself" if has_bfloat16() else "imitated"
    print(
        f"| {name} | {has} | {seconds['float32']:.2f} | {seconds['loaded']:.2f} | {loaded:.2f} "
        f"| {seconds['forced']:.2f} | {plain:.2f} |",
        flush=True,
    )


def forced(service: UNetService) -> UNetService:
    """U-Net and text encoder in bfloat16, whatever the processor makes of it."""
    service.unet.to(torch.bfloat16)
    service.model.require_text().to(dtype=torch.bfloat16)
    return service


def draw(service: UNetService) -> None:
    service.model.require_text().forget()
    service.generate("red apple on white background", steps=8)


if __name__ == "__main__":
    main()
