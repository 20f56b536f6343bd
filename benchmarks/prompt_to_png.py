"""How long a prompt takes to become the bytes of a PNG file, warm, on one thread: by steps and by type.

    python -m benchmarks.prompt_to_png [MODEL] [--rounds 20] [--steps 1,2,4] [--threads 1] [--backend packed]

Prints medians in milliseconds of the whole and of its parts, the fastest round, and the time of the processor: what it
takes where other programs want the processor too.
"""

import argparse
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

import undertow
from recipes.arguments import count
from undertow import UNetService
from undertow.engine.saving import encoded

PROMPTS = ("red apple on white background", "owl on pink background", "octopus above rocket on green background")
PARTS = ("text", "unet", "decode", "png", "rest")


def measured(service: UNetService, prompt: str, steps: int) -> Mapping[str, float]:
    """Milliseconds of each part of a picture, of the whole, and of the processor."""
    started, busy = time.perf_counter(), time.process_time()
    result = service.generate(prompt, steps=steps, seed=7)
    drawn = time.perf_counter()
    encoded(result.images[0], Path("picture.png"), result.report, 0)
    ended, busy = time.perf_counter(), time.process_time() - busy
    found = {name: result.report.seconds.get(name, 0.0) for name in PARTS[:3]} | {"png": ended - drawn}
    whole = ended - started
    found |= {"rest": whole - sum(found.values()), "whole": whole, "processor": busy}
    return {name: 1000 * seconds for name, seconds in found.items()}


def row(name: str, steps: int, rounds: Sequence[Mapping[str, float]]) -> str:
    """A line of the table."""
    middle = {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
    parts = "".join(f"{middle[part]:8.1f}" for part in PARTS)
    fastest = min(one["whole"] for one in rounds)
    return f"{name:9}{steps:6}{middle['whole']:8.1f}{fastest:9.1f}{middle['processor']:11.1f}{parts}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="emoji-turbo")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", default="1,2,4")
    parser.add_argument("--threads", type=count, default=1)
    parser.add_argument("--backend", default="eager")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{'type':9}{'steps':>6}{'whole':>8}{'fastest':>9}{'processor':>11}" + "".join(f"{one:>8}" for one in PARTS))
    for dtype in (torch.float32, torch.bfloat16):
        service = undertow.load(options.model, dtype=dtype, backend=options.backend)
        for steps in map(int, options.steps.split(",")):
            measured(service, PROMPTS[0], steps)
            rounds = [measured(service, PROMPTS[k % len(PROMPTS)], steps) for k in range(options.rounds)]
            print(row(str(dtype).removeprefix("torch."), steps, rounds))


if __name__ == "__main__":
    main()
