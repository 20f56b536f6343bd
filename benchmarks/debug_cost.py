"""What looking inside costs: time with each watch on, over time with none. Writes docs/results/debug-cost.md.

    python -m benchmarks.debug_cost [--rounds 5] [--page docs/results/debug-cost.md]

Ratios to the run without any in the same round, in which all take turns in an order that is drawn anew; medians over
the rounds. Two U-Nets: that of `emoji`, whose layers are so small that a hook counts, and one with its structure and
twice its channels at 32 × 32 cells, where it counts for less, as in larger networks.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import median
from textwrap import fill
from typing import IO

import torch

import undertow
from benchmarks.lib.adapter_page import table
from undertow import GenerationRequest, UNet, UNetService
from undertow.checkpoints.files.atomic import write_text
from undertow.engine.probing import ForwardProbe
from undertow.inspection.activations import ActivationProbe
from undertow.inspection.attention_choice import AttentionChoice
from undertow.inspection.attention_maps import AttentionMapProbe
from undertow.inspection.probe import ModuleProbe
from undertow.inspection.recorder import Recorder

STEPS = 2

NOTE = """What is within a few percent of nothing cannot be told from nothing here. Statistics of every tensor take most
of the time that `layers` takes: the mean and the deviation are slower than the range by far. Reading a range or calling
a hook takes the same for a small tensor as for a larger one, so the share falls with the size of the network; larger
ones than these two were not measured. In a compiled model a forward that is looked into runs eagerly, which costs what
compiling gains besides."""


@contextmanager
def probing(service: UNetService, probe: ForwardProbe) -> Generator[None]:
    """The probe looks into what is drawn meanwhile."""
    service.engine.probes.append(probe)
    try:
        yield
    finally:
        service.engine.probes.remove(probe)


@contextmanager
def traced(service: UNetService) -> Generator[None]:
    """As `--trace`."""
    with tempfile.TemporaryFile("w") as file, probing(service, _written_to(file)):
        yield


def _written_to(file: IO[str]) -> Recorder:
    return Recorder(told=lambda record: print(record.to_json(), file=file))


LEVELS: Mapping[str, tuple[str, Callable[[UNetService], AbstractContextManager[None]]]] = {
    "none": ("", lambda service: nullcontext()),
    "`--debug timing`": ("timing", lambda service: nullcontext()),
    "`--debug shapes`": ("shapes", lambda service: nullcontext()),
    "`--debug sampler`": ("sampler", lambda service: nullcontext()),
    "`--debug vae`": ("vae", lambda service: nullcontext()),
    "`--debug nan`": ("nan", lambda service: nullcontext()),
    "`--debug layers`": ("layers", lambda service: nullcontext()),
    "`--debug all`": ("all", lambda service: nullcontext()),
    "`--trace FILE`": ("", traced),
    "hooks on blocks: `enable_layer_hooks(['*_block*.resnets.?', '*_block*.attentions.?'])`": (
        "",
        lambda service: probing(service, Recorder(patterns=("*_block*.resnets.?", "*_block*.attentions.?"))),
    ),
    "ranges alone of all modules: `Recorder(moments=False)`": (
        "",
        lambda service: probing(service, Recorder(moments=False)),
    ),
    "a probe on all modules that does nothing": (
        "",
        lambda service: probing(service, ModuleProbe(patterns=("*",), probe=lambda site, x: None)),
    ),
    "attention maps of all cross-attentions": (
        "",
        lambda service: probing(service, AttentionMapProbe(unet=service.unet, choice=AttentionChoice())),
    ),
    "activations": ("", lambda service: probing(service, ActivationProbe(unet=service.unet))),
}
"""By what they are called: the watches, and what is on besides."""


def seconds(service: UNetService, level: str, size: tuple[int, int]) -> float:
    """Of one picture."""
    debug, on = LEVELS[level]
    request = GenerationRequest(prompt="red apple", steps=STEPS, seed=3, size=size)
    with on(service):
        start = time.process_time()  # of the processor: other programs run beside it
        service.run(request, debug=debug)
        return time.process_time() - start


def measured(service: UNetService, size: tuple[int, int], rounds: int) -> tuple[float, dict[str, list[float]]]:
    """The seconds of a picture without any, and ratios to it by round."""
    order, pick = list(LEVELS), random.Random(0)
    plain: list[float] = []
    ratios: dict[str, list[float]] = {level: [] for level in order}
    for turn in range(rounds + 1):
        pick.shuffle(order)
        times = {level: seconds(service, level, size) for level in order}
        if turn > 0:  # the first warms up
            plain.append(times["none"])
            for level, taken in times.items():
                ratios[level].append(taken / times["none"])
    return median(plain), ratios


def wider(service: UNetService) -> UNetService:
    """The model with a U-Net of twice the channels, and random weights."""
    config = service.config
    levels = tuple(replace(level, channels=2 * level.channels) for level in config.levels)
    torch.manual_seed(0)
    unet = UNet(replace(config, levels=levels)).eval().requires_grad_(False)
    return UNetService(replace(service.model, unet=unet))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--page", type=Path, default=Path("docs/results/debug-cost.md"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    small = undertow.load("emoji")
    side = small.config.sample_size * small.vae.config.factor
    found = {
        "emoji": measured(small, (side, side), options.rounds),
        "twice as wide, 32 × 32 cells": measured(wider(small), (2 * side, 2 * side), options.rounds),
    }
    rows = []
    for level in list(LEVELS)[1:]:
        cells = [f"{median(ratios[level]) - 1:+.1%}".replace("%", " %") for _, ratios in found.values()]
        spread = [f"{min(ratios[level]) - 1:+.0%} to {max(ratios[level]) - 1:+.0%}" for _, ratios in found.values()]
        rows.append([level, *(f"{cell} ({one.replace('%', ' %')})" for cell, one in zip(cells, spread, strict=True))])
    times = ", ".join(f"{taken:.2f} s ({name})" for name, (taken, _) in found.items())
    what = (
        f"Processor time of a picture of {STEPS} steps with a watch on, more than without, on one thread of a CPU, in "
        f"float32: medians of {options.rounds} rounds, in each of which all take turns, with the least and the most. "
        f"Without any it took {times}. `python -m benchmarks.debug_cost` measures it again."
    )
    parts = ("# What looking inside costs", fill(what, 120), table(["", *found], rows), fill(NOTE, 120))
    page = "\n\n".join(parts) + "\n"
    write_text(page, options.page)
    print(page)


if __name__ == "__main__":
    main()
