"""What a step of the engine costs beside the forward inside it, at Stable Diffusion 1.5's size and of `emoji`.

    OMP_NUM_THREADS=1 python benchmarks/engine_overhead.py --dtype bfloat16
    OMP_NUM_THREADS=1 python benchmarks/engine_overhead.py --emoji --steps 20

A U-Net of SD1.5's size with random weights draws one picture with guidance at the cells of 256x256 pixels. Each
`engine.step()` is timed, and so is the forward of the network inside it, by the time of the thread, in which other
processes have no part: the rest of the step is the engine's own (batching, guidance, sampler, checks, events). The same
rows are also given to the bare U-Net, in turns with the steps.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from torch import nn

import undertow
from undertow import GenerationRequest, UNet, UNetConfig, UNetService
from undertow.engine.events import WorkEvent
from undertow.unet.runner import EAGER

MOST, MOST_OF_EMOJI = 0.03, 0.15
"""Of a step, asked for."""


class Timed:
    """The eager runner, which keeps what it was given and the seconds of each run."""

    capabilities = EAGER.capabilities

    def __init__(self) -> None:
        self.seconds = 0.0
        self.inputs: tuple[Any, ...] = ()

    def run(self, network: nn.Module, *inputs: Any) -> Any:
        self.inputs = inputs
        found, self.seconds = timed(lambda: EAGER.run(network, *inputs))
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--sampler", default="dpmpp_2m")
    parser.add_argument("--emoji", action="store_true", help="the embedded model as it is, at its own size")
    options = parser.parse_args()
    torch.set_num_threads(1)
    dtype = getattr(torch, options.dtype)
    service, runner = embedded(dtype) if options.emoji else sd15(dtype)
    engine, unet = service.engine, service.unet
    kinds: list[str] = []

    def note(event: WorkEvent) -> None:
        kinds.append(event.kind)

    engine.watchers.append(note)
    cells = unet.config.sample_size if options.emoji else 32
    side = cells * service.model.require_vae().config.factor
    request = GenerationRequest(prompt="red apple", steps=options.steps, size=(side, side), sampler=options.sampler)
    handle = engine.submit(request)
    steps: list[tuple[float, float, float]] = []
    while not handle.done:
        kinds.clear()
        _, whole = timed(engine.step)
        if kinds == ["denoise"]:
            with torch.inference_mode():
                _, bare = timed(lambda: unet(*runner.inputs))
            steps.append((whole, runner.seconds, bare))
    steps = steps[1:]  # the first one allocates
    own = median((whole - inside) for whole, inside, _ in steps)
    inside = median(inside for _, inside, _ in steps)
    bare = median(bare for *_, bare in steps)
    print(
        f"{options.dtype}, {options.sampler}, 2 rows of {cells}x{cells} cells, {len(steps)} steps, one thread, medians"
    )
    print(f"forward inside a step: {inside:.4f} s; the bare network on the same rows: {bare:.4f} s")
    most = MOST_OF_EMOJI if options.emoji else MOST
    print(f"the engine's own: {1000 * own:.1f} ms, {100 * own / (inside + own):.2f} % of a step (at most {most:.0%})")


def embedded(dtype: torch.dtype) -> tuple[UNetService, Timed]:
    """`emoji` as it is."""
    runner = Timed()
    return UNetService(undertow.load("emoji", dtype=dtype).model, runner=runner), runner


def sd15(dtype: torch.dtype) -> tuple[UNetService, Timed]:
    """The embedded model with a U-Net of SD1.5's size in place of its own."""
    small = undertow.load("emoji", dtype=dtype)
    own, runner = small.config, Timed()
    given = {"in_channels": own.in_channels, "out_channels": own.out_channels, "context_dim": own.context_dim}
    unet = UNet(replace(UNetConfig.sd15(), **given)).eval().to(dtype=dtype, memory_format=torch.channels_last)
    return UNetService(replace(small.model, unet=unet), runner=runner), runner


def timed(act: Callable[[], Any]) -> tuple[Any, float]:
    """What it returns, and its seconds of this thread."""
    started = time.thread_time()
    return act(), time.thread_time() - started


if __name__ == "__main__":
    main()
