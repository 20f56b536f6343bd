"""Whether pictures have the bytes of a fresh process, whatever came before them in a process that is short of memory.

    python -m benchmarks.memory_soak --sequences 300

Draws random sequences of requests in one process, over two models with adapters, under random budgets: models,
adapters, samplers and sizes change, requests are cancelled and asked for again, forwards run out of memory. Every
picture that is finished is drawn once more by a process that has only imported the library, with the same request and
the same course of giving way (`report.memory.course`), and must have the same bytes: pixels and latents. Writes
docs/results/memory-soak.md. Exits with 1 when a picture differs. An interruption ends it with the sequences so far.
"""

import argparse
import multiprocessing
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks.lib.memory_sequences import Drawn, Place, Soak, drawn_anew

PAGE = Path(__file__).parents[1] / "docs" / "results" / "memory-soak.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=300)
    parser.add_argument("--first", type=int, default=0, help="seed of the first sequence; the others count up")
    parser.add_argument("--workers", type=int, default=1, help="fresh processes at a time")
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    for ending in (signal.SIGINT, signal.SIGTERM):  # which shells have their background jobs ignore
        signal.signal(ending, signal.default_int_handler)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder, fresh_processes(options.workers) as pool:
        soak = Soak(make_places(Path(folder)))
        drawn: list[Drawn] = []
        anew: list[Future[str]] = []
        count = 0
        with suppress(KeyboardInterrupt):
            for number in range(options.first, options.first + options.sequences):
                found = soak.sequence(number)
                drawn += found
                anew += [pool.submit(drawn_anew, one) for one in found]
                count += 1
                done = sum(one.done() for one in anew)
                bad = sum(job.done() and job.result() != one.digest for one, job in zip(drawn, anew, strict=True))
                said = f"sequence {number}: {len(drawn)} requests drawn, {done} again, {bad} different"
                print(f"\r{said}", end="", flush=True)
        different = [one for one, job in zip(drawn, anew, strict=True) if job.result() != one.digest]
    print()
    minutes = (time.monotonic() - started) / 60
    options.page.write_text(page(options.first, count, soak.counts, drawn, different, minutes))
    for one in different:
        print(f"different: sequence {one.sequence}, {one.event}, {one.request}, {one.course}")
    print(f"{len(drawn)} requests, {len(different)} different, {minutes:.0f} minutes: {options.page}")
    sys.exit(1 if different else 0)


def make_places(folder: Path) -> list[Place]:
    """Two tiny random models with two LoRA each, a ControlNet, a Control-LoRA and an IP-Adapter."""
    # Imported here, because every fresh process imports this module.
    from tests.adapters.beside import control_file, control_lora_file, prompt_file
    from tests.adapters.lora.files import is_attention, kohya, layers_of, normal, write
    from tests.golden.pipelines import save_pipeline
    from undertow import load_unet

    places = []
    for family in ("sd1", "sdxl"):
        model = save_pipeline(family, folder / family)
        unet = load_unet(model)
        layers = {name: shape for name, shape in layers_of(unet).items() if is_attention(name)}
        adapters = []
        for index in (1, 2):
            tensors = kohya(layers)
            for name in [name for name in tensors if "lora_" in name]:
                tensors[name] = tensors[name] + 0.01 * index * normal(*tensors[name].shape, seed=f"{index} {name}")
            adapters.append(write(folder / f"{family}-{index}.safetensors", tensors))
        beside = (
            control_file(folder / f"{family} control", unet, seed=1),
            control_lora_file(folder / f"{family}-control-lora.safetensors", unet, seed=2),
            prompt_file(folder / family / "ip-adapter.safetensors", unet, seed=3),
        )
        # A kernel that writes scores out can give way by computing in parts.
        attention = "math" if family == "sdxl" else "auto"
        places.append(Place(model=model, loras=adapters, beside=beside, attention=attention))
    return places


def fresh_processes(workers: int) -> ProcessPoolExecutor:
    """Runs every job in a process of its own, forked from one that has only imported the library."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.lib.memory_sequences", "undertow.service"])
    return ProcessPoolExecutor(workers, mp_context=context, max_tasks_per_child=1)


def page(
    first: int,
    count: int,
    counts: dict[str, int],
    drawn: Sequence[Drawn],
    different: Sequence[Drawn],
    minutes: float,
) -> str:
    evicted = sum(one.evictions for one in drawn)
    gave_way = [one.course[-1].economy for one in drawn if one.course]
    # Of finished requests alone: an interruption ends a sequence in the middle.
    happened = counts | {"with a course": len(gave_way), "without a course": len(drawn) - len(gave_way)}
    rows = "\n".join(f"| {what} | {count} |" for what, count in sorted(happened.items()))
    measures = {
        "fewer rows in a forward": sum(one.rows is not None for one in gave_way),
        "attention in parts": sum(one.attention_in_parts for one in gave_way),
        "feed-forward layers in parts": sum(one.feed_forward_chunks > 1 for one in gave_way),
        "layers in memory only while they work": sum(one.offloaded_layers for one in gave_way),
        "decoding in tiles": sum(one.decode_bytes is not None for one in gave_way),
    }
    used = "\n".join(f"| {what} | {count} |" for what, count in measures.items())
    last = first + count - 1
    return f"""# Memory soak

`python -m benchmarks.memory_soak --sequences {count} --first {first}` (`make memory-soak`), on
{datetime.now(UTC):%Y-%m-%d}: {platform.machine()}, {os.cpu_count()} cores, one thread,
Python {platform.python_version()}, torch {torch.__version__}; {minutes:.0f} minutes.

{count} random sequences (seeds {first} to {last}) in one process over two tiny models that come and
go, with LoRA that are merged, ControlNets, Control-LoRA, IP-Adapters,
samplers, sizes, budgets from less than any picture needs to more than is needed,
cancellations, and forwards that run out of memory. Each of the {len(drawn)} requests that were finished was drawn again
by a process that had only imported the library, with the same request and the same course of giving way.

**{len(different)} of {len(drawn)} differ in a byte of their pixels or latents.** Networks left memory {evicted} times
while these were drawn.

| What happened | requests |
| --- | --- |
{rows}

| What was done for less memory at the end of a request | requests |
| --- | --- |
{used}
"""


if __name__ == "__main__":
    main()
