"""Which operations the compiled U-Net of `emoji` joins into one kernel, and what that saves.

    python -m benchmarks.fusion [--rows 2] [--repeats 15]

Compiles the network, which takes a minute or more, and reads from inductor's code which operations of the model each of
its kernels computes. Prints Markdown: the kinds of kernels, what is left to libraries, and seconds beside eager mode in
one thread, in turn.
"""

import argparse
import platform
import re
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor
from torch._inductor.utils import run_and_get_code

import undertow
from benchmarks.lib.timing import interleaved_medians
from undertow import Conditioning
from undertow.unet.compiled import CompiledUNet

COMPUTED = (
    "native_group_norm", "native_layer_norm", "constant_pad_nd", "convolution", "softmax", "silu", "gelu", "addmm",
    "add", "mul", "cat", "cos", "sin", "exp", "div", "index",
)  # fmt: skip
"""Operations in the names of kernels; the others move no number: views, slices, permutations."""
NAMED = re.compile("|".join(COMPUTED))
FUSED = re.compile(r"^ *cpp_fused_(\w+)_\d+\(", re.MULTILINE)
LIBRARY = re.compile(r"= (?:extern_kernels|torch\.ops\.\w+)\.(\w+)[.(]|^ *extern_kernels\.(\w+)\(", re.MULTILINE)
TOKENS, CELLS = 16, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    unet = undertow.load("emoji", dtype=torch.float32).model.require_unet()
    compiled = CompiledUNet.of(unet)
    config = unet.config
    inputs = (
        torch.randn(options.rows, config.in_channels, CELLS, CELLS),
        torch.linspace(10, 900, options.rows),
        Conditioning(context=torch.randn(options.rows, TOKENS, config.context_dim or 1)),
    )
    with torch.no_grad():
        _, codes = run_and_get_code(compiled, *inputs)
        operations = dispatched(lambda: unet(*inputs))
        runs = {"eager": lambda: unet(*inputs), "compiled": lambda: compiled(*inputs)}
        seconds = interleaved_medians(runs, options.repeats)
    print(f"{platform.machine()}, torch {torch.__version__}, {options.rows} rows, one thread\n")
    report(codes[0], operations, seconds)


def dispatched(run: Callable[[], Tensor]) -> int:
    """Operations that compute something, one after the other, in eager mode."""
    with torch.profiler.profile() as profile:
        run()
    views = ("aten::view", "aten::transpose", "aten::t", "aten::permute", "aten::as_strided", "aten::unflatten")
    kept = ("addmm", "mm", "bmm", "mkldnn_convolution", "convolution", "group_norm", "layer_norm", "silu", "gelu")
    kept += ("add", "mul", "cat", "copy_", "flash", "softmax", "sin", "cos", "upsample")
    names = {event.key: event.count for event in profile.key_averages() if event.self_cpu_time_total > 0}
    return sum(count for name, count in names.items() if name not in views and any(one in name for one in kept))


def report(code: str, operations: int, seconds: dict[str, float]) -> None:
    calls = code[code.index("def call(") :]
    kinds = Counter(" + ".join(NAMED.findall(names)) or "copies" for names in FUSED.findall(calls))
    libraries = Counter(one or other for one, other in LIBRARY.findall(calls))
    print("| operations in one kernel | calls |\n|---|---|")
    for names, count in kinds.most_common():
        print(f"| {names} | {count} |")
    print(f"\nLeft to libraries: {', '.join(f'{count} x {name}' for name, count in libraries.most_common())}.")
    print(f"\n{operations} operations in eager mode, {kinds.total() + libraries.total()} calls compiled:")
    eager, compiled = seconds["eager"], seconds["compiled"]
    print(f"{1000 * eager:.1f} ms, {1000 * compiled:.1f} ms, a ratio of {compiled / eager:.2f}.")


if __name__ == "__main__":
    main()
