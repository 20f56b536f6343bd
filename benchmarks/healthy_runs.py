"""A hundred healthy requests, drawn at random: is the doctor silent? Writes docs/results/healthy-runs.md.

    python -m benchmarks.healthy_runs [--count 100] [--page docs/results/healthy-runs.md]

A fifth each for tiny random models of the shapes of SD1, SD2 and SDXL in float32, SD1 with a LoRA, and `emoji`. Texts,
sizes, steps, guidance, samplers, schedules, seeds and counts are drawn from what such models are drawn with. The host
is one at rest: that others use the processors of this one is no fault of a request.
"""

import argparse
import random
import sys
import tempfile
from pathlib import Path
from textwrap import fill
from typing import Any

import torch

import undertow
from benchmarks.lib.adapter_page import table
from recipes.emoji.names import COLORS, EMOJI
from tests.adapters.lora.files import is_attention, kohya, layers_of
from tests.adapters.lora.files import write as write_lora
from tests.golden.pipelines import save_pipeline
from undertow import Adapter, GenerationRequest, UNetService
from undertow.checkpoints.files.atomic import write_text
from undertow.inspection.doctor.case import Case
from undertow.inspection.doctor.diagnose import diagnose
from undertow.inspection.doctor.host import Host

CALM = Host(
    stat=lambda: "cpu  100 0 100 800 0 0 0 0 0 0\n",
    status=lambda: "VmSwap:\t0 kB\n",
    group=lambda: "",
    cores=2,
    threads=2,
)
WORDS = ("apple", "tree", "house", "river", "cat", "night", "lamp", "boat", "green", "old", "small", "painted")
SAMPLERS = ("euler", "euler_ancestral", "dpmpp_2m", "dpmpp_2m_sde", "ddim", "heun", "unipc", "model")
SCHEDULES = (None, "normal", "karras", "simple", "sgm_uniform")
MODELS = ("sd1", "sd2", "sdxl", "sd1 with a LoRA", "emoji")


def request_for(pick: random.Random, model: str, side: int, lora: Path) -> GenerationRequest:
    """One that is drawn every day. side: of the pictures that the model was trained with."""
    sides = [side] if model == "emoji" else [side, side * 3 // 4 // 8 * 8, side * 5 // 4 // 8 * 8]
    fields: dict[str, Any] = {
        "prompt": " ".join(pick.sample(WORDS, pick.randrange(1, 8))),
        "negative_prompt": pick.choice(("", "blurred", "dark and gray")),
        "steps": pick.randrange(10, 41),
        "guidance_scale": round(pick.uniform(2.0, 12.0), 1),
        "sampler": pick.choice(SAMPLERS),
        "schedule": pick.choice(SCHEDULES),
        "seed": pick.randrange(2**32),
        "size": (pick.choice(sides), pick.choice(sides)),
        "count": pick.randrange(1, 5),
    }
    if model == "emoji":
        first, second = pick.sample(sorted(EMOJI), 2)
        fields["prompt"] = f"{first} left of {second} on {pick.choice(sorted(COLORS))} background"
        fields["negative_prompt"] = ""
    if "LoRA" in model:
        fields["adapters"] = (Adapter(lora, scale=round(pick.uniform(0.3, 1.2), 1)),)
    return GenerationRequest(**fields)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--page", type=Path, default=Path("docs/results/healthy-runs.md"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    pick, rows, alarms = random.Random(0), [], 0
    with tempfile.TemporaryDirectory() as place:
        folders = {name: save_pipeline(name, Path(place) / name / "pipeline") for name in ("sd1", "sd2", "sdxl")}
        services: dict[str, UNetService] = {
            name: undertow.load(folder, dtype=torch.float32) for name, folder in folders.items()
        }
        services |= {"sd1 with a LoRA": services["sd1"], "emoji": undertow.load("emoji", dtype=torch.float32)}
        layers = layers_of(services["sd1"].unet, is_attention)
        lora = write_lora(Path(place) / "style.safetensors", kohya(layers, rank=4, alpha=0.5))
        for model in MODELS:
            service, found, asked = services[model], [], 0
            side = service.config.sample_size * service.vae.config.factor
            for _ in range(options.count // len(MODELS)):
                request = request_for(pick, model, side, lora)
                case = Case(model=service.model, manager=service.adapters, request=request, host=CALM)
                diagnosis = diagnose(case)
                asked = len(diagnosis.rules) - len(diagnosis.skipped)
                found += [(request, one) for one in diagnosis.findings]
            for request, one in found:
                print(f"{model}: {one.rule}: {one.evidence}\n  {request}", flush=True)
            alarms += len({id(request) for request, _ in found})
            rows.append([model, str(options.count // len(MODELS)), str(asked), str(len(found))])
            print(rows[-1], flush=True)
    what = (
        f"{options.count} requests that were drawn at random from what models are drawn with every day "
        "(`benchmarks/healthy_runs.py` says how), each asked all rules of `undertow doctor`: a finding is a false "
        "alarm. The models of random weights have every structural feature of their families, and `emoji` is trained. "
        f"False alarms: {alarms}."
    )
    parts = ("# Healthy runs", fill(what, 120), table(["model", "requests", "rules asked", "findings"], rows))
    text = "\n\n".join(parts) + "\n"
    write_text(text, options.page)
    sys.exit(1 if alarms else 0)


if __name__ == "__main__":
    main()
