"""Measures what gradient checkpointing saves and costs in training, of all blocks and of some (R51, R68, trap T6).

A training step (forward and backward, gradients as they come) in float32 on one thread of: the cifar10 preset at
32x32 pixels; Stable Diffusion 1.5's U-Net at a quarter of its width, at 512 pixels. Bytes are the peak of what the step
allocates by PyTorch's account, beside them what `memory.forecast` says without running it; seconds are those of the
processor in the fastest step. Prints a Markdown table for each.

    python benchmarks/gradient_checkpointing.py [--repeats 3]
"""

import argparse
import time
from dataclasses import replace
from datetime import UTC, datetime

import torch
from torch import Tensor

from undertow import Conditioning, UNet, UNetConfig
from undertow.attention.measure import scratch_bytes
from undertow.attention.measurement import Machine
from undertow.memory.forecast import forecast
from undertow.memory.work import Subject, TrainingWork, Work
from undertow.shortage import size_in_words
from undertow.unet.blocks import Checkpointing

Inputs = tuple[Tensor, Tensor, Conditioning]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    machine, today = Machine.here("cpu"), datetime.now(UTC).date().isoformat()
    print(f"{today}, {machine.name}, torch {machine.torch_version}, 1 thread, fastest of {repeats}.\n")
    cifar10, rows = UNet(UNetConfig.cifar10()), 16
    labels = Conditioning(class_labels=torch.arange(rows) % 10)
    inputs = torch.randn(rows, 3, 32, 32), torch.rand(rows) * 999, labels
    choices = _choices(cifar10)
    show(f"cifar10 preset, {rows} rows of 32x32", cifar10, inputs, choices, repeats)
    quarter, text = UNet(quarter_sd15()), Conditioning(context=torch.randn(1, 77, 768))
    inputs = torch.randn(1, 4, 64, 64), torch.tensor([500.0]), text
    choices = _choices(quarter)
    show("SD1.5's U-Net at a quarter of its width, 512 pixels, 1 row", quarter, inputs, choices, repeats)


def quarter_sd15() -> UNetConfig:
    config = UNetConfig.sd15()
    levels = tuple(replace(level, channels=level.channels // 4) for level in config.levels)
    return replace(config, levels=levels, norm_groups=16)


def _choices(unet: UNet) -> dict[str, tuple[str, ...]]:
    decoder = tuple(f"up_blocks.{index}" for index in range(len(unet.up_blocks)))
    return {"blocks of the largest maps": ("down_blocks.0", decoder[-1]), "decoder": decoder}


def show(title: str, unet: UNet, inputs: Inputs, choices: dict[str, tuple[str, ...]], repeats: int) -> None:
    """Prints the table of a network: without, whole, and some blocks."""
    print(f"### {title}\n\n| checkpointed | peak of a step | of that without | forecast | seconds | of that without |")
    print("|---|---|---|---|---|---|")
    unet.train()
    cases: dict[str, Checkpointing] = {"nothing": False, "all blocks": True, **choices}
    base: tuple[int, float] | None = None
    for name, blocks in cases.items():
        unet.gradient_checkpointing = blocks
        forget_gradients(unet)  # before what is measured, as a step finds them
        peak = scratch_bytes(lambda: step(unet, inputs), torch.device("cpu"))
        seconds = min(timed(unet, inputs) for _ in range(repeats))
        base = (peak, seconds) if base is None else base
        shares = f"{peak / base[0]:.2f}", f"{seconds / base[1]:.2f}"
        expected = size_in_words(forecast_bytes(unet.config, inputs, blocks))
        print(
            f"| {name} | {size_in_words(peak)} | {shares[0]} | {expected} | {seconds:.2f} | {shares[1]} |", flush=True
        )
    print()


def forecast_bytes(config: UNetConfig, inputs: Inputs, blocks: Checkpointing) -> int:
    """What a step is expected to take beside weights, at most."""
    rows, _, height, width = inputs[0].shape
    wanted = ("layers" if blocks else "none") if isinstance(blocks, bool) else blocks
    training = TrainingWork(kind="full", batch=rows, checkpointing=wanted)
    work = Work(size=(height, width), training=training)
    return forecast(Subject(name="benchmark", unet=config), work).stage("train").activation_bytes


def step(unet: UNet, inputs: Inputs) -> Tensor:
    """Forward and backward; returns the loss."""
    loss = unet(*inputs).square().mean()
    loss.backward()
    return loss.detach()


def forget_gradients(unet: UNet) -> None:
    for parameter in unet.parameters():
        parameter.grad = None


def timed(unet: UNet, inputs: Inputs) -> float:
    forget_gradients(unet)
    began = time.process_time()
    step(unet, inputs)
    return time.process_time() - began


if __name__ == "__main__":
    main()
