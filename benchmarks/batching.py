"""Requests drawn together, one after the other, and by diffusers' pipeline called in turn, on the same work in one run.

    python benchmarks/batching.py [--model emoji] [--requests 8] [--steps 10] [--sd15 SIDE] [--repeats 3]
                                  [--device cpu] [--dtype float32] [--backend packed]

Requests differ in prompt, seed, sampler, steps and guidance. For each way the table has pictures per second, and the
median and the longest time from the start until a request has its picture (its latency). In turn, a request waits for
those before it; together, all progress at once. One thread. --sd15: also an SD1.5-size U-Net (random weights, 860 M
parameters) at this side in pixels; on a CPU 4 requests of 2 steps. On an accelerator --dtype float16 is usual.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import diffusers
import torch

import undertow
from undertow import GenerationRequest, UNet, UNetConfig, UNetService
from undertow.embedded import embedded_models
from undertow.unet.diffusers_config import config_to_diffusers

Run = Callable[[], list[float]]
"""Draws all requests and returns when each had its picture, in seconds from the start."""

PEER = "diffusers, one by one"

PROMPTS = ("red apple on white background", "cat face on blue background", "rocket left of owl on pink background")
KINDS = (
    {"sampler": "dpmpp_2m", "guidance_scale": 5.0},
    {"sampler": "euler", "guidance_scale": 3.0},
    {"sampler": "ddim", "schedule": "ddim", "guidance_scale": 7.0},
    {"sampler": "euler", "guidance_scale": 4.0},
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji", help="embedded model or pipeline folder")
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--sd15", type=int, metavar="SIDE")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--backend", default="eager")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder, dtype = embedded_models().get(options.model, Path(options.model)), getattr(torch, options.dtype)
    service = undertow.load(folder, dtype=dtype, device=options.device, backend=options.backend)
    peer = pipeline(folder, options.device, dtype)
    report(str(options.model), service, peer, requests(options.requests, options.steps), options.repeats)
    if options.sd15:
        service, peer = sd15(service, peer)
        side = options.sd15 // 8 * service.vae.config.factor  # as many cells as Stable Diffusion has at this side
        asked = requests(4, 2) if options.device == "cpu" else requests(options.requests, options.steps)
        few = [replace(one, size=(side, side)) for one in asked]
        report(f"SD1.5 size, cells of {options.sd15} pixels", service, peer, few, options.repeats)


def requests(count: int, steps: int) -> list[GenerationRequest]:
    return [
        GenerationRequest(
            prompt=PROMPTS[index % len(PROMPTS)],
            seed=index,
            steps=steps + index % 3,
            **KINDS[index % len(KINDS)],
        )
        for index in range(count)
    ]


def report(
    name: str,
    service: UNetService,
    peer: diffusers.StableDiffusionPipeline,
    asked: list[GenerationRequest],
    repeats: int,
) -> None:
    runs: dict[str, Run] = {
        "undertow, together": lambda: together(service, asked),
        "undertow, one by one": lambda: in_turn(lambda one: service.run(one), asked),
        PEER: lambda: in_turn(lambda one: by_diffusers(peer, one), asked),
    }
    latencies: dict[str, list[list[float]]] = {way: [] for way in runs}
    for repeat in range(repeats + (repeats > 1)):
        for way, run in runs.items():
            times = run()
            if repeat or repeats == 1:  # the first round warms up
                latencies[way].append(times)
    print(
        f"\n{name}: {len(asked)} requests, {sum(one.steps for one in asked)} steps in all, torch {torch.__version__}\n"
    )
    print("| | pictures/s | of diffusers' | median latency s | longest latency s |")
    print("|---|---|---|---|---|")
    totals = {way: statistics.median(max(times) for times in measured) for way, measured in latencies.items()}
    for way, total in totals.items():
        middle = statistics.median(statistics.median(times) for times in latencies[way])
        ratio = totals[PEER] / total
        print(f"| {way} | {len(asked) / total:.2f} | {ratio:.2f} | {middle:.2f} | {total:.2f} |", flush=True)


def together(service: UNetService, asked: list[GenerationRequest]) -> list[float]:
    started, times = time.perf_counter(), []
    service.generate_many(asked, finished=lambda number, result: times.append(time.perf_counter() - started))
    return times


def in_turn(draw: Callable[[GenerationRequest], object], asked: list[GenerationRequest]) -> list[float]:
    started, times = time.perf_counter(), []
    for one in asked:
        draw(one)
        times.append(time.perf_counter() - started)
    return times


def by_diffusers(pipe: diffusers.StableDiffusionPipeline, one: GenerationRequest) -> object:
    size = {} if one.size is None else {"height": one.size[0], "width": one.size[1]}
    kinds = {
        "dpmpp_2m": (diffusers.DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
        "euler": (diffusers.EulerDiscreteScheduler, {"use_karras_sigmas": True}),
        "ddim": (diffusers.DDIMScheduler, {}),
    }
    kind, settings = kinds[one.sampler]
    pipe.scheduler = kind.from_config(pipe.scheduler.config, **settings)
    return pipe(
        one.prompt,
        num_inference_steps=one.steps,
        guidance_scale=one.guidance_scale,
        generator=torch.Generator(pipe.device).manual_seed(one.seed),
        **size,
    ).images


def pipeline(folder: Path, device: str, dtype: torch.dtype) -> diffusers.StableDiffusionPipeline:
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder, torch_dtype=dtype).to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sd15(
    service: UNetService, pipe: diffusers.StableDiffusionPipeline
) -> tuple[UNetService, diffusers.StableDiffusionPipeline]:
    """The model with a U-Net of SD1.5's size in place of its own, the same random weights in both libraries."""
    own = service.config
    channels = {"in_channels": own.in_channels, "out_channels": own.out_channels, "context_dim": own.context_dim}
    config, place = replace(UNetConfig.sd15(), **channels), {"device": pipe.device, "dtype": pipe.dtype}
    unet = UNet(config).eval().to(memory_format=torch.channels_last)
    pipe.unet = diffusers.UNet2DConditionModel.from_config(config_to_diffusers(config)).eval()
    unet.load_state_dict(pipe.unet.state_dict())
    pipe.unet.to(**place)
    return UNetService(replace(service.model, unet=unet.to(**place)), runner=service.runner), pipe


if __name__ == "__main__":
    main()
