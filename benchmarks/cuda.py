"""What undertow does on a CUDA device: the same pictures, speed beside diffusers, and a batch that runs out of memory.

    python benchmarks/cuda.py [--repeats 15] [--only NAME ...]

Sections: pictures (emoji on the device beside float32 on the CPU), unet (one forward of the SD1.5-size U-Net at 512
pixels, random weights, beside diffusers'), memory (a request too large for the device among five that fit), training
(a few steps of the digits). Each prints what it found; one that fails prints why, and the others go on. Requests drawn
together: `python benchmarks/batching.py --device cuda --dtype float16 --sd15 512`.
"""

import argparse
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from unet import build_diffusers, build_undertow

import undertow
from undertow import Adapter, Conditioning, GenerationRequest
from undertow.unet.compiled import CompiledUNet

REQUESTS = (
    GenerationRequest(prompt="red apple on white background", seed=1, steps=8, guidance_scale=4),
    GenerationRequest(prompt="owl", seed=2, steps=10, sampler="euler_a", adapters=(Adapter("mosaic"),)),
    GenerationRequest(prompt="cat face on blue background", seed=3, steps=6, guidance_method="cfg+pag"),
    GenerationRequest(prompt="rocket", negative_prompt="moon", seed=4, steps=8, sampler="dpmpp_sde"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    sections = {"pictures": pictures, "unet": unet, "memory": memory, "training": training}
    parser.add_argument("--only", nargs="+", choices=list(sections), default=list(sections))
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device: nothing to measure")
        return
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    for name in options.only:
        print(f"\n## {name}\n", flush=True)
        try:
            sections[name](options.repeats)
        except Exception:
            traceback.print_exc()
        torch.cuda.empty_cache()


def pictures(_: int) -> None:
    """Largest and mean difference of 8-bit levels from float32 on the CPU, and of drawing together from one by one."""
    expected = [levels(result) for result in undertow.load("emoji", dtype=torch.float32).generate_many(REQUESTS)]
    print("| type | request | largest difference from the CPU's | mean | from drawing together, largest |")
    print("|---|---|---|---|---|")
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        service = undertow.load("emoji", dtype=dtype, device="cuda")
        together = [levels(result) for result in service.generate_many(REQUESTS)]
        for request, mine, reference in zip(REQUESTS, together, expected, strict=True):
            apart = np.abs(levels(service.run(request)) - mine).max()
            difference = np.abs(mine - reference)
            print(
                f"| {dtype} | {request.prompt} | {difference.max()} | {difference.mean():.2f} | {apart} |", flush=True
            )


def levels(result) -> np.ndarray:
    return np.asarray(result.images[0]).astype(int)


@torch.inference_mode()
def unet(repeats: int) -> None:
    """Milliseconds of one forward by the device's clock, in turn; diffusers in its faster memory layout."""
    print("| mode | type | rows | undertow ms | diffusers ms | ratio | difference |")
    print("|---|---|---|---|---|---|---|")
    for dtype in (torch.float16, torch.bfloat16):
        torch.manual_seed(0)
        theirs = build_diffusers(dtype)
        ours, last = build_undertow(dtype, theirs.state_dict()).cuda(), build_diffusers(dtype)
        last.load_state_dict(theirs.state_dict())
        theirs, last = theirs.cuda(), last.cuda().to(memory_format=torch.channels_last)
        for rows in (2, 16):
            runs = {"undertow": ours_by(ours), "contiguous": theirs_by(theirs), "channels last": theirs_by(last)}
            print(table_row("eager", dtype, rows, runs, repeats), flush=True)
        if dtype == torch.float16:
            compiled = CompiledUNet.of(ours)
            runs = {"undertow": ours_by(compiled), "channels last": theirs_by(torch.compile(last, fullgraph=True))}
            print(table_row("compile", dtype, 2, runs, repeats), flush=True)


Forward = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def ours_by(network) -> Forward:
    return lambda latents, timesteps, context: network(latents, timesteps, Conditioning(context=context))


def theirs_by(network) -> Forward:
    return lambda latents, timesteps, context: network(latents, timesteps, context, return_dict=False)[0]


def table_row(mode: str, dtype: torch.dtype, rows: int, runs: dict[str, Forward], repeats: int) -> str:
    inputs = (
        torch.randn(rows, 4, 64, 64, dtype=dtype, device="cuda"),
        torch.linspace(10, 900, rows, device="cuda"),
        torch.randn(rows, 77, 768, dtype=dtype, device="cuda"),
    )
    outputs = {name: run(*inputs).float() for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 3):
        for name, run in runs.items():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            run(*inputs)
            end.record()
            torch.cuda.synchronize()
            if repeat >= 3:
                times[name].append(start.elapsed_time(end))
    medians = {name: statistics.median(values) for name, values in times.items()}
    mine, best = medians.pop("undertow"), min(medians.values())
    reference = outputs["channels last"]
    difference = ((outputs["undertow"] - reference).norm() / reference.norm()).item()
    kind = str(dtype).removeprefix("torch.")
    return f"| {mode} | {kind} | {rows} | {mine:.2f} | {best:.2f} | {mine / best:.2f} | {difference:.1e} |"


def memory(_: int) -> None:
    """Five small requests and one that cannot fit: the five must come out as they do without it."""
    service = undertow.load("emoji", dtype=torch.float16, device="cuda")
    small = [GenerationRequest(prompt="owl", seed=seed, steps=4) for seed in range(5)]
    alone = [levels(result) for result in service.generate_many(small)]
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(2 * 2**30 / total)
    try:
        engine = service.engine
        handles = [engine.submit(request) for request in small]
        large = engine.submit(GenerationRequest(prompt="owl", steps=4, size=(4096, 4096)))
        engine.run()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    same = [np.array_equal(levels(handle.result()), expected) for handle, expected in zip(handles, alone, strict=True)]
    print(f"within 2 GiB: {sum(same)} of 5 small requests have the same bytes as without the large one")
    try:
        large.result()
        print("the large one was drawn too")
    except Exception as error:
        print(f"the large one: {type(error).__name__}: {error}")


def training(_: int) -> None:
    """Seconds of 100 steps from start to end, and the last loss."""
    from undertow.training.data import Digits
    from undertow.training.pixel_models import train_pixel_model
    from undertow.training.presets import preset

    data = Digits()
    config = replace(preset(data, data.open(), "flow"), steps=100, sample_every=100, checkpoint_every=100)
    for device in ("cuda", "cpu"):
        records = []
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            train_pixel_model(config, Path(folder) / "run", cpu=device == "cpu", on_record=records.append)
        print(f"{device}: {time.perf_counter() - started:.1f} s for 100 steps; {records[-1]}", flush=True)


if __name__ == "__main__":
    main()
