"""Times the routes of `undertow.nn.matmul` beside PyTorch's own, at the sizes of SD1.5's U-Net.

Products by MKL (`F.linear`) and by oneDNN; 3x3 convolutions by PyTorch and as patches and one product. One thread,
interleaved, medians, GFLOP/s. Prints Markdown tables.

    python benchmarks/matmul.py [--repeats 7]
"""

import argparse

import torch
import torch.nn.functional as F
from lib.timing import interleaved_medians, native_types

from undertow.nn.matmul import _patches, linear, onednn_linear  # pyright: ignore[reportPrivateUsage]

PRODUCTS = [
    (2048, 320, 320),
    (2048, 320, 2560),
    (512, 640, 640),
    (512, 640, 5120),
    (128, 1280, 1280),
    (128, 5120, 1280),
]
CONVOLUTIONS = [(320, 320, 32), (640, 640, 16), (1280, 1280, 8), (2560, 1280, 8), (1280, 1280, 4), (2560, 1280, 4)]


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, 1 thread, median of {repeats}, GFLOP/s\n")
    print("| float32 product, rows x inputs x outputs | F.linear | oneDNN | ratio |\n|---|---|---|---|")
    for rows, inputs, outputs in PRODUCTS:
        x, weight, bias = torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(outputs)
        runs = {"F": lambda: F.linear(x, weight, bias), "oneDNN": lambda: onednn_linear(x, weight, bias)}  # noqa: B023
        print(row(f"{rows} x {inputs} x {outputs}", 2 * rows * inputs * outputs, interleaved_medians(runs, repeats)))
    for dtype in (getattr(torch, name) for name in native_types()):
        print(f"\n| {dtype} 3x3 convolution, 2 rows | F.conv2d | patches | ratio |\n|---|---|---|---|")
        for inputs, outputs, side in CONVOLUTIONS:
            print(convolution(inputs, outputs, side, dtype, repeats), flush=True)


def convolution(inputs: int, outputs: int, side: int, dtype: torch.dtype, repeats: int) -> str:
    def channels_last(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=dtype).contiguous(memory_format=torch.channels_last)

    x, weight, bias = channels_last(2, inputs, side, side), channels_last(outputs, inputs, 3, 3), torch.randn(outputs)
    bias = bias.to(dtype)
    runs = {
        "conv2d": lambda: F.conv2d(x, weight, bias, padding=1),
        "patches": lambda: linear(
            _patches(x.permute(0, 2, 3, 1), 3, 1, 1), weight.permute(0, 2, 3, 1).flatten(1), bias
        ),
    }
    operations = 2 * 2 * side * side * inputs * outputs * 9
    return row(f"{inputs} to {outputs}, {side}x{side}", operations, interleaved_medians(runs, repeats))


def row(name: str, operations: int, medians: dict[str, float]) -> str:
    first, second = medians.values()
    return f"| {name} | {operations / first / 1e9:.0f} | {operations / second / 1e9:.0f} | {second / first:.2f} |"


if __name__ == "__main__":
    main()
