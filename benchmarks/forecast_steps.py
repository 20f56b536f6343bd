"""Fewer evaluations of the network for a picture: by forecasts, by deep features of an earlier step, by fewer steps, by
guidance in a part of them.

    python -m benchmarks.forecast_steps [--prompts 100] [--page docs/results/forecast-steps.md] [--machine "AMD Zen 5"]

Draws the same prompts and seeds of `emoji` in each way, and compares with all the steps: rows that the U-Net evaluates,
how many pictures show what was asked, and how far the pictures are from those of all steps. A forward of the first
level alone counts by its share of a whole one's time. One thread.
"""

import argparse
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import undertow
from benchmarks.lib.deep_features import DeepFeatureRunner
from recipes.emoji.evaluate import kinds
from recipes.emoji.recognize import recognize
from recipes.emoji.render import FONT, Glyphs
from recipes.emoji.scenes import Scene
from recipes.emoji.sections import replace_section
from undertow import BatchLimits, Engine, GenerationRequest, RunOptions, StepForecast, UNetService, WorkEvent
from undertow.unet.runner import EAGER

STEPS = 20
OPTIONS = RunOptions(limits=BatchLimits(rows=16))


@dataclass(frozen=True, kw_only=True)
class Way:
    """A name for people, and fields of a request. whole: the steps at which the whole network is computed; empty for
    all of them."""

    name: str
    fields: dict[str, object]
    whole: tuple[bool, ...] = ()


def ways(sampler: str) -> list[Way]:
    """All steps first; then, by about as many rows, every way to need fewer."""
    every_other, first = StepForecast(), StepForecast(first=2, last=0.0)
    return [
        Way(name=f"{STEPS} steps", fields={"sampler": sampler}),
        Way(name="every other one forecast, after 4", fields={"sampler": sampler, "forecast_steps": every_other}),
        Way(name="13 steps", fields={"sampler": sampler, "steps": 13}),
        Way(name="every other one forecast, after 2", fields={"sampler": sampler, "forecast_steps": first}),
        Way(name="11 steps", fields={"sampler": sampler, "steps": 11}),
        Way(name="deep features kept at every other", fields={"sampler": sampler}, whole=(True, False) * (STEPS // 2)),
        Way(name="guidance in the first half", fields={"sampler": sampler, "guidance_method": "cfg(end=0.5)"}),
        Way(name="15 steps", fields={"sampler": sampler, "steps": 15}),
    ]


@dataclass(frozen=True, kw_only=True)
class Found:
    """rows: that the U-Net evaluates for a picture. right: shares of pictures with the right emoji, by kind. apart: of
    the 255 levels of a pixel, as root of the mean square, from the pictures of all steps."""

    rows: float
    right: tuple[float, ...]
    apart: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=100, help="of each kind: one emoji, and two")
    parser.add_argument("--samplers", nargs="+", default=["dpmpp_2m", "euler"])
    parser.add_argument("--page", type=Path, help="replace its section `measured`")
    parser.add_argument("--machine", default=platform.machine(), help="for the page")
    options = parser.parse_args()
    torch.set_num_threads(1)
    glyphs = Glyphs(FONT)
    glyphs.require()
    one, _, two = kinds(options.prompts)
    scenes = [one.scenes, two.scenes]
    service = undertow.load("emoji", dtype=torch.float32)
    lines = ["| sampler | way | rows | one emoji right | two right | apart |", "|---|---|---|---|---|---|"]
    for sampler in options.samplers:
        whole: list[Tensor] = []
        for way in ways(sampler):
            pictures, rows = draw(service, scenes, way)
            whole = whole or pictures
            found = compare(pictures, whole, rows, scenes, glyphs)
            right = " | ".join(f"{share:.1%}".replace("%", " %") for share in found.right)
            lines.append(f"| {sampler} | {way.name} | {found.rows:.0f} | {right} | {found.apart:.1f} |")
            print(lines[-1], flush=True)
    if options.page is not None:
        command = f"`python -m benchmarks.forecast_steps --prompts {options.prompts}`"
        head = f"{command}, {datetime.now(UTC):%Y-%m-%d}, {options.machine}"
        page = replace_section(options.page.read_text(encoding="utf-8"), "measured", "\n".join([head, "", *lines]))
        options.page.write_text(page, encoding="utf-8")


def draw(service: UNetService, scenes: Sequence[Sequence[Scene]], way: Way) -> tuple[list[Tensor], float]:
    """The pictures of each kind, and rows for a picture."""
    events: list[WorkEvent] = []
    pictures = []
    runner = DeepFeatureRunner(way.whole) if way.whole else EAGER
    for kind in scenes:
        fields = {"steps": STEPS, "schedule": "karras", "guidance_scale": 4.0, **way.fields}
        requests = [
            GenerationRequest.from_json({"prompt": scene.caption, "seed": seed, **fields})
            for seed, scene in enumerate(kind)
        ]
        engine = Engine(service.model, service.refiner, service.adapters, watchers=[events.append], runner=runner)
        handles = []
        for request in requests:
            handles.append(engine.submit(request, options=OPTIONS))
            if way.whole:  # one picture at a time
                engine.run()
        engine.run()
        drawn = [np.array(handle.result().images[0]) for handle in handles]
        pictures.append(torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2))
    rows = sum(event.rows for event in events if event.kind == "denoise") / sum(map(len, scenes))
    return pictures, rows * (runner.share if isinstance(runner, DeepFeatureRunner) else 1.0)


def compare(
    pictures: Sequence[Tensor], whole: Sequence[Tensor], rows: float, scenes: Sequence[Sequence[Scene]], glyphs: Glyphs
) -> Found:
    apart = torch.cat(list(pictures)).float() - torch.cat(list(whole)).float()
    right = [recognize(drawn, kind, glyphs).right.float().mean() for drawn, kind in zip(pictures, scenes, strict=True)]
    return Found(rows=rows, right=tuple(map(float, right)), apart=float(apart.square().mean().sqrt()))


if __name__ == "__main__":
    main()
