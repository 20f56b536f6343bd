"""What a training step in bfloat16 takes, and what its kernels for attention and GroupNorm save of it.

The embedded model's U-Net with random weights: a forward and a backward pass of 64 pictures' latents, then a step of
each optimizer; and forwards as they draw. "fused attention" takes the fused kernel for every call, "PyTorch's
GroupNorm" its own kernel for channels that lie last; interleaved medians, one thread. Prints the tables of
docs/results/training-speed.md.

    python -m benchmarks.training_step [--repeats 5]
"""

import argparse
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial

import torch
from torch import nn

from benchmarks.lib.timing import interleaved_medians
from recipes.emoji.recipe import CRISP_RECIPE
from undertow.attention.chosen import kernel_named
from undertow.attention.measurement import Machine
from undertow.nn.normalization import GroupNorm
from undertow.training.optimizer import OPTIMIZERS
from undertow.training.precision import autocast
from undertow.unet.conditioning import Conditioning
from undertow.unet.unet import UNet

ROWS, TOKENS = 64, 32
DRAWN = (1, 2, 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    machine = Machine.here("cpu")
    print(f"{datetime.now(UTC).date()}, {machine.name}, torch {machine.torch_version}, 1 thread.\n")
    print_passes(options.repeats)
    print_optimizers(options.repeats)
    print_drawing(options.repeats)


def print_passes(repeats: int) -> None:
    """Seconds of both passes, with each kernel and without."""
    chosen, fused = network("auto"), network("sdpa")
    runs = {
        "as it is": partial(passes, chosen),
        "fused attention": partial(passes, fused),
        "PyTorch's GroupNorm": partial(with_its_norms, passes, chosen),
        "both, as before": partial(with_its_norms, passes, fused),
    }
    print_table(f"forward and backward, {ROWS} rows", interleaved_medians(runs, repeats))


def print_optimizers(repeats: int) -> None:
    """Seconds of a step of each optimizer."""
    unet = network("auto")
    runs: dict[str, Callable[[], object]] = {}
    for name, new in OPTIMIZERS.items():
        runs[name] = partial(step, unet, new(unet, weight_decay=0.01, betas=(0.9, 0.99)))
    print_table("a step of the optimizer", interleaved_medians(runs, repeats))


def print_drawing(repeats: int) -> None:
    """Seconds of a forward without gradients."""
    unet = network("auto").to(torch.bfloat16).requires_grad_(False)
    for rows in DRAWN:
        runs = {
            "as it is": partial(forward, unet, rows),
            "PyTorch's GroupNorm": partial(with_its_norms, forward, unet, rows),
        }
        print_table(f"a forward, {rows} {'row' if rows == 1 else 'rows'}", interleaved_medians(runs, 10 * repeats))


def print_table(title: str, seconds: dict[str, float]) -> None:
    first = next(iter(seconds.values()))
    print(f"| {title} | milliseconds | of the first |\n|---|---|---|")
    for name, one in seconds.items():
        print(f"| {name} | {1e3 * one:.1f} | {one / first:.2f} |")
    print(flush=True)


def network(kernel: str) -> UNet:
    """kernel: a name of `kernel_named`."""
    unet = UNet(CRISP_RECIPE.unet(), kernel_named(kernel))
    return unet.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def given(unet: UNet, rows: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, Conditioning]:
    """Random inputs of `UNet`."""
    side, width = unet.config.sample_size, unet.config.context_dim or 0
    latents = torch.randn(rows, unet.config.in_channels, side, side).to(dtype, memory_format=torch.channels_last)
    return latents, torch.full((rows,), 500.0), Conditioning(context=torch.randn(rows, TOKENS, width).to(dtype))


def passes(unet: UNet) -> None:
    with autocast("bf16", torch.device("cpu")):
        loss = unet(*given(unet, ROWS, torch.float32)).square().mean()
    loss.backward()
    unet.zero_grad()


def step(unet: UNet, optimizer: torch.optim.Optimizer) -> None:
    for parameter in unet.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


@torch.inference_mode()
def forward(unet: UNet, rows: int) -> None:
    unet(*given(unet, rows, torch.bfloat16))


def with_its_norms(run: Callable[..., None], *inputs: object) -> None:
    """A run with PyTorch's GroupNorm as it is."""
    with its_norms():
        run(*inputs)


@contextmanager
def its_norms() -> Generator[None]:
    ours = GroupNorm.forward
    GroupNorm.forward = nn.GroupNorm.forward
    try:
        yield
    finally:
        GroupNorm.forward = ours


if __name__ == "__main__":
    main()
