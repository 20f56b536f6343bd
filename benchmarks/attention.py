"""Measures every attention kernel at the shapes of SD1.5's U-Net, 16k tokens, and the error of the approximate one.

One thread, in turns, processor time of the fastest run of each. Two rows of 512 pixels. Memory is what a call allocates
beside its inputs and its output (PyTorch's account), the error the largest of a query's output against float64. Prints
the tables of docs/results/attention.md.

    python benchmarks/attention.py [--repeats 5] [--types float32,bfloat16] [--large 16384]
    python benchmarks/attention.py --gradient
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import torch

import undertow
from undertow.attention.catalogue import KERNELS
from undertow.attention.choose import choose
from undertow.attention.local import local_attention
from undertow.attention.math import math_attention
from undertow.attention.measure import Measured, gathered, measure, requirements_of
from undertow.attention.measurement import Call, Machine, Measurements, Timing
from undertow.nn.attention import AttentionProjections
from undertow.shortage import size_in_words
from undertow.unet.attention_calls import attention_calls
from undertow.unet.config import UNetConfig

LARGE = 2**14
"""Tokens of 1024 pixels in a latent model: 128 x 128 cells."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--types", default="float32,bfloat16")
    parser.add_argument("--large", type=int, default=LARGE)
    parser.add_argument("--gradient", action="store_true", help="both passes of a training step instead")
    options = parser.parse_args()
    torch.set_num_threads(1)
    machine = Machine.here("cpu")
    today = datetime.now(UTC).date().isoformat()
    print(f"{today}, {machine.name}, torch {machine.torch_version}, 1 thread, fastest of {options.repeats} runs.\n")
    if options.gradient:
        print_gradient(options.types.split(","), options.repeats)
        return
    for dtype in options.types.split(","):
        print_kernels(dtype, options.repeats)
    print_large(options.large)
    print_local()


def print_gradient(types: Sequence[str], repeats: int) -> None:
    """Milliseconds of a forward and a backward pass: at the shapes of the embedded model's training, 64 pictures at a
    time, and of SD1.5's at 256 pixels, two."""
    shapes = ((64, 6, 64, 64, 32), (64, 6, 64, 32, 32))
    shapes += ((2, 8, 1024, 1024, 40), (2, 8, 1024, 77, 40), (2, 8, 256, 256, 80), (2, 8, 256, 77, 80))
    names = ("math", "sdpa", "chunked")
    print("Forward + backward, milliseconds:\n")
    print(f"| type | rows x heads | queries x keys, head width | {' | '.join(names)} | by rule |")
    print(f"|{'---|' * (len(names) + 4)}")
    for dtype in types:
        for rows, heads, queries, keys, dim in shapes:
            sides = [(queries, heads * dim), (keys, heads * dim), (keys, heads * dim)]
            tokens = [torch.randn(rows, *side).to(getattr(torch, dtype)).requires_grad_() for side in sides]
            given = [one.unflatten(-1, (heads, dim)).transpose(1, 2) for one in tokens]
            cells = [_both_passes(name, given, repeats) for name in names]
            call = Call(rows=rows, heads=heads, queries=queries, keys=keys, head_dim=dim, dtype=dtype)
            rule = choose(replace(requirements_of(call, "cpu"), gradient=True)).name
            place = f"{rows} x {heads} | {queries} x {keys}, {dim}"
            print(f"| {dtype} | {place} | {' | '.join(cells)} | {rule} |", flush=True)


def _both_passes(name: str, given: Sequence[torch.Tensor], repeats: int) -> str:
    taken: list[tuple[float, float]] = []
    for _ in range(repeats):
        start = time.process_time()
        output = KERNELS[name].kernel(*given)
        between = time.process_time()
        output.sum().backward(retain_graph=True)
        taken.append((between - start, time.process_time() - between))
    forward, backward = (1e3 * min(times) for times in zip(*taken, strict=True))
    return f"{forward:.1f} + {backward:.1f}"


def print_kernels(dtype: str, repeats: int) -> None:
    """Milliseconds, memory and error of each kernel at each shape, and what is chosen with and without the
    measurement."""
    calls = attention_calls(UNetConfig.sd15(), 64, 64, dtype=dtype)
    results = list(measure(calls, repeats=repeats))
    found = {one.call: one for one in gathered(results)}
    names = [name for name in KERNELS if any(name in one.timings for one in found.values())]
    header = ["queries x keys, head width", *names, "by rule", "by measurement"]
    print(f"### {dtype}\n\nMilliseconds / memory:\n")
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    measured = Measurements(machine=Machine.here("cpu"), calls=tuple(found.values()))
    for call in calls:
        timings = found[call].timings
        cells = [_cell(timings.get(name)) for name in names]
        requirements = requirements_of(call, "cpu")
        rule, by_measurement = choose(requirements).name, choose(requirements, measured=measured).name
        place = f"{call.queries} x {call.keys}, {call.head_dim}"
        print(f"| {place} | {' | '.join(cells)} | {rule} | {by_measurement} |", flush=True)
    print(f"\nLargest error: {_errors(results)}.\n", flush=True)


def _cell(timing: Timing | None) -> str:
    return "-" if timing is None else f"{1e3 * timing.seconds:.1f} / {size_in_words(timing.scratch_bytes)}"


def _errors(results: Sequence[Measured]) -> str:
    worst: dict[str, float] = {}
    for one in results:
        if one.timing is not None:
            worst[one.kernel] = max(worst.get(one.kernel, 0), one.timing.error)
    return ", ".join(f"{name} {error:.1e}" for name, error in worst.items())


def print_large(tokens: int) -> None:
    """All queries of a large picture in half precision: seconds, and whether every number is finite."""
    print(f"### {tokens} tokens to each other\n\nOne head 40 wide; the kernels whose memory is bounded.\n")
    print("| type | kernel | seconds | memory at most | finite | error |\n|---|---|---|---|---|---|")
    for dtype in ("float16", "bfloat16"):
        call = Call(rows=1, heads=1, queries=tokens, keys=tokens, head_dim=40, dtype=dtype)
        query, key, value = (torch.randn(1, 1, tokens, 40).to(getattr(torch, dtype)) for _ in range(3))
        few = torch.arange(0, tokens, tokens // 64)
        expected = math_attention(query[:, :, few].double(), key.double(), value.double())
        for name in ("sdpa", "flash", "chunked", "local-approximate"):
            if name == "chunked" and dtype == "float16":
                continue  # half-precision matrix products of this CPU take minutes
            with torch.inference_mode():
                KERNELS[name].kernel(query, key, value)  # makes the code of products, and asks for memory
                start = time.process_time()
                output = KERNELS[name].kernel(query, key, value)
            seconds = time.process_time() - start
            error = ((output[:, :, few].double() - expected).norm() / expected.norm()).item()
            memory = size_in_words(KERNELS[name].scratch_bytes(requirements_of(call, "cpu")))
            finite = "yes" if output.isfinite().all() else "no"
            print(f"| {dtype} | {name} | {seconds:.1f} | {memory} | {finite} | {error:.1e} |", flush=True)
    print()


@torch.inference_mode()
def print_local() -> None:
    """The relative error of the approximate kernel in the activations of a trained model, by the share of keys that it
    sees, and in a whole prediction."""
    print("### The approximate kernel\n")
    print(
        "`digits-flow`'s first step: 64 tokens at its first attention, in blocks that are small enough to hide some.\n"
    )
    print("| block | keys seen | error of attention | error of the prediction |\n|---|---|---|---|")
    unet = undertow.load_unet("digits-flow", dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(8, unet.config.in_channels, 16, 16, generator=generator)
    given = undertow.Conditioning(class_labels=torch.arange(8) % 10)
    exact = unet(latents, 999.0, given)
    for block in (16, 8, 4):
        errors: list[float] = []
        seen: list[float] = []

        def kernel(query, key, value, mask=None, *, block=block, errors=errors, seen=seen):
            output = local_attention(query, key, value, mask, block=block)
            expected = math_attention(query, key, value, mask)
            if query.shape[2] > 2 * block:
                errors.append(((output - expected).norm() / expected.norm()).item())
                seen.append(min(1.0, 3 * block / query.shape[2]))
            return output

        for module in unet.modules():
            if isinstance(module, AttentionProjections):
                module.kernel = kernel
        found = unet(latents, 999.0, given)
        change = ((found - exact).norm() / exact.norm()).item()
        share = f"{100 * min(seen):.0f} %" if seen else "all"
        attention = f"{max(errors):.2f}" if errors else "0"
        print(f"| {block} | {share} | {attention} | {change:.3f} |", flush=True)


if __name__ == "__main__":
    main()
