"""How well the seconds of a plan are those of a step: operations measured one by one, and whole forwards, side by side.

Random weights, one thread, float32. Seconds are the processor's, not those of the clock on the wall, so that other work
on the machine does not count. Prints a Markdown table: the sum over the operations of the forecast, and the median of
whole forwards.

    python benchmarks/plan_seconds.py [--repeats 5] [--cases emoji-128 sd15-256 sd15-512 vae-256]
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from lib.networks import random_weights

from undertow import Conditioning, UNet
from undertow.memory.forecast import StageForecast, forecast
from undertow.memory.seconds import OVERHEAD, SecondsTable, processor_name
from undertow.memory.stopwatch import measure
from undertow.memory.subjects import named_model
from undertow.memory.work import Work
from undertow.vae.autoencoder import AutoencoderKL
from undertow.vae.config import VAEConfig

CASES = {
    "emoji-128": ("emoji", "denoise", Work(size=(128, 128))),
    "emoji-128-rows-16": ("emoji", "denoise", Work(size=(128, 128), pictures=8)),
    "sd15-256": ("sd15", "denoise", Work(size=(256, 256))),
    "sd15-512": ("sd15", "denoise", Work(size=(512, 512), branches=1)),
    "vae-256": ("sd15", "decode", Work(size=(256, 256))),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{processor_name()} ({platform.machine()}), torch {torch.__version__}, 1 thread\n")
    print("| what | rows | operations | measured once, s | of the plan, ms | of whole forwards, ms | difference |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for case in options.cases:
        print(compare(case, options.repeats), flush=True)


@torch.no_grad()
def compare(case: str, repeats: int) -> str:
    """One row of the table. The operations are measured between two halves of the forwards."""
    model, name, work = CASES[case]
    stage = forecast(named_model(model).subject, work).stage(name)
    run = forward(model, stage, work)
    run()
    before = [seconds(run) for _ in range(-(-repeats // 2))]
    start = time.process_time()
    table = SecondsTable().with_more(
        work.dtype, measure([OVERHEAD, *stage.operations], torch.float32, clock=time.process_time)
    )
    spent = time.process_time() - start
    whole = statistics.median([*before, *(seconds(run) for _ in range(repeats // 2))])
    planned = table.of(work.dtype, stage.operations)
    rows = 1 if name == "decode" else work.batch
    assert planned is not None
    return (
        f"| {case} | {rows} | {len(stage.operations)} | {spent:.1f} | {planned * 1e3:.1f} | {whole * 1e3:.1f} "
        f"| {planned / whole - 1:+.1%} |"
    )


def seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def forward(model: str, stage: StageForecast, work: Work) -> Callable[[], object]:
    """A call of the network of a stage, with random weights and inputs."""
    subject = named_model(model).subject
    height, width = work.cells(subject)
    if stage.name == "decode":
        vae = random_weights(AutoencoderKL, VAEConfig.sd())
        return lambda: vae.decode(torch.randn(1, 4, height, width))
    assert subject.unet is not None
    unet = random_weights(UNet, replace(subject.unet))
    latents = torch.randn(work.batch, subject.unet.in_channels, height, width)
    conditioning = Conditioning(context=torch.randn(work.batch, work.tokens, subject.unet.context_dim or 1))
    timesteps = torch.full((work.batch,), 500.0)
    return lambda: unet(latents.contiguous(memory_format=torch.channels_last), timesteps, conditioning)


if __name__ == "__main__":
    main()
