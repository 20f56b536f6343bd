"""Times every attention kernel at the shapes of SD1.5's U-Net, and says which one `choose` takes.

Two rows, 8 heads, one thread, interleaved, medians in milliseconds. Prints a Markdown table.

    python benchmarks/attention.py [--repeats 7]
"""

import argparse

import torch
from lib.timing import interleaved_medians

from undertow.attention.choose import KERNELS, choose
from undertow.attention.kernel import Requirements
from undertow.processor import computes

SHAPES = [
    # queries, keys, head_dim: self-attention at 512 pixels and below, and attention to 77 text tokens
    (4096, 4096, 40),
    (1024, 1024, 40),
    (1024, 1024, 80),
    (256, 256, 80),
    (64, 64, 160),
    (4096, 77, 40),
    (1024, 77, 40),
]


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, 1 thread, median of {repeats}, milliseconds\n")
    print(f"| type | queries x keys, head_dim | {' | '.join(KERNELS)} | chosen |\n|---|---|{'---|' * len(KERNELS)}---|")
    for dtype in (torch.float32, torch.bfloat16):
        for queries, keys, head_dim in SHAPES:
            query = torch.randn(2, 8, queries, head_dim, dtype=dtype)
            key, value = torch.randn(2, 2, 8, keys, head_dim, dtype=dtype)
            runs = {name: lambda entry=entry: entry.kernel(query, key, value) for name, entry in KERNELS.items()}  # noqa: B023
            medians = interleaved_medians(runs, repeats)
            times = " | ".join(f"{medians[name] * 1e3:.1f}" for name in KERNELS)
            chosen = choose(
                Requirements(device="cpu", dtype=dtype, queries=queries, keys=keys, imitated=not computes(dtype, "cpu"))
            ).name
            print(f"| {dtype} | {queries} x {keys}, {head_dim} | {times} | {chosen} |", flush=True)


if __name__ == "__main__":
    main()
