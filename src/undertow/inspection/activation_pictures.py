"""Activations over the steps as pictures: strips of heat, and films of what is drawn."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont

from undertow.checkpoints.files.atomic import atomic_write, write_text
from undertow.doors import checked
from undertow.engine.decode import Decoder
from undertow.engine.engine import Engine
from undertow.engine.events import Observer, StepEvent, unobserved
from undertow.engine.options import RunOptions
from undertow.engine.probing import ForwardProbe
from undertow.engine.request import GenerationRequest
from undertow.engine.result import GenerationResult
from undertow.engine.watch import Watch
from undertow.inspection.activations import ActivationProbe
from undertow.inspection.contact_sheet import Cell, contact_sheet
from undertow.inspection.heat_pictures import heat_colors
from undertow.inspection.marks import drawn_with, marked, next_mark
from undertow.pictures.names import PicturePlace

FRAMES = 10
"""Of a film: so many steps, evenly spread, the first and the last among them."""

CELL, LINE, MARGIN = 14, 13, 8

FLOAT16_LARGEST = torch.finfo(torch.float16).max


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ActivationHistory:
    """What `UNetService.visualize_activations` returns. layers: names, in the order of the network. std, largest: by
    layer and step: standard deviation, and largest magnitude, of what the layer returns. joins: decoder layers, and the
    share of the energy of what they receive that comes over the skip connection, by step. frames: of the first picture,
    by step: what the network received (x, scaled to unit variance), and the estimate of the finished picture."""

    result: GenerationResult
    layers: tuple[str, ...]
    std: Float[np.ndarray, "layers steps"]
    largest: Float[np.ndarray, "layers steps"]
    joins: tuple[str, ...]
    skip_share: Float[np.ndarray, "joins steps"]
    frames: Mapping[int, tuple[Image.Image, Image.Image]] = field(default_factory=dict)

    @property
    def headroom(self) -> Float[np.ndarray, "layers steps"]:
        """How many times larger the largest number could be before float16 has no place for it."""
        return FLOAT16_LARGEST / np.maximum(self.largest, np.finfo(np.float32).tiny)

    def strips(self) -> Image.Image:
        """Three strips, a row for each layer and a column for each step: log10 of the standard deviation, log2 of the
        headroom to float16's largest number, and the share of skip connections."""
        with np.errstate(divide="ignore"):
            panels = [
                _strip("standard deviation, log10", self.layers, np.log10(self.std)),
                _strip("room below float16's largest number, log2", self.layers, np.log2(self.headroom)),
            ]
        if self.joins:
            panels.append(_strip("skip connection's share of energy", self.joins, self.skip_share))
        sheet = Image.new("RGB", (max(one.width for one in panels), sum(one.height for one in panels)), "white")
        top = 0
        for one in panels:
            sheet.paste(one, (0, top))
            top += one.height
        return sheet

    def film(self) -> Image.Image:
        """What the network receives, and the picture that it expects from that, over the steps."""
        steps = sorted(self.frames)
        cells = [[Cell(image=self.frames[step][row]) for step in steps] for row in (0, 1)]
        columns = [f"step {step}" for step in steps]
        return contact_sheet(cells, rows=["noisy, x", "denoised"], columns=columns)

    @checked
    def save(self, folder: str | Path, *, overwrite: bool = False) -> list[Path]:
        """Writes `activations.png` (the strips), `activations-film.png` and `activations.json` (every number). Errors:
        `InvalidInput` for places that cannot be written."""
        place = PicturePlace.of(folder, "activations", overwrite=overwrite, arguments=("folder", "name"))
        with place.taken({}) as strips, atomic_write(strips) as draft:
            self.strips().save(draft, format="PNG")
        film, numbers = strips.with_name(f"{strips.stem}-film.png"), strips.with_suffix(".json")
        with atomic_write(film) as draft:
            self.film().save(draft, format="PNG")
        write_text(json.dumps(self.to_json(), indent=1) + "\n", numbers)
        return [strips, film, numbers]

    def to_json(self) -> dict[str, Any]:
        """Every number, by layer; `null` where a layer did not run."""
        return {
            "layers": {
                name: {"std": _listed(self.std[row]), "largest": _listed(self.largest[row])}
                for row, name in enumerate(self.layers)
            },
            "skip_share": {name: _listed(self.skip_share[row]) for row, name in enumerate(self.joins)},
        }


class ActivationWatch:
    """What sees the activations of one request, while an engine draws it among others. mark: of the request's rows, in
    its `RunOptions`. probes: for the engine, until the request is done; `observe` is told of its steps."""

    def __init__(self, engine: Engine, request: GenerationRequest, *, mark: int):
        self._engine, self._request = engine, request
        refiner = None if engine.refiner is None else engine.refiner.require_unet()
        self._probe = ActivationProbe(unet=engine.model.require_unet(), refiner=refiner, rows=marked(mark))
        self._estimates: dict[int, torch.Tensor] = {}

    @property
    def probes(self) -> Sequence[ForwardProbe]:
        return [self._probe]

    def observe(self, event: StepEvent) -> None:
        """Keeps the estimate of the first picture."""
        if event.picture == 0 and event.denoised is not None:
            self._estimates[event.step - 1] = event.denoised

    def history(self, result: GenerationResult) -> ActivationHistory:
        """What the activations were while this was drawn."""
        probe = self._probe
        steps = 1 + max((step for _, step in probe.layers), default=-1)
        if steps:
            self._estimates[steps - 1] = result.latents[:1]
        layers = tuple(dict.fromkeys(name for name, _ in probe.layers))
        joins = tuple(dict.fromkeys(name for name, _ in probe.joins))
        return ActivationHistory(
            result=result,
            layers=layers,
            std=_table(layers, steps, {key: one.std for key, one in probe.layers.items()}),
            largest=_table(layers, steps, {key: one.largest for key, one in probe.layers.items()}),
            joins=joins,
            skip_share=_table(joins, steps, {key: one.skip_share for key, one in probe.joins.items()}),
            frames=_frames(self._engine, self._request, probe.latents(0), self._estimates),
        )


def activation_history(
    engine: Engine, request: GenerationRequest, *, run: RunOptions | None = None, observe: Observer = unobserved
) -> ActivationHistory:
    """Draws the request, and returns what its activations were on the way. Errors: those of drawing."""
    mark = next_mark()
    watch = ActivationWatch(engine, request, mark=mark)

    def both(event: StepEvent) -> None:
        watch.observe(event)
        observe(event)

    return watch.history(drawn_with(watch.probes, engine, request, mark, run, both)[0])


def _frames(
    engine: Engine, request: GenerationRequest, noisy: Mapping[int, torch.Tensor], estimates: Mapping[int, torch.Tensor]
) -> dict[int, tuple[Image.Image, Image.Image]]:
    both = sorted(noisy.keys() & estimates.keys())
    chosen = sorted({both[round(place)] for place in np.linspace(0, len(both) - 1, FRAMES)}) if both else []
    decoder = Decoder(model=engine.model, request=request, watch=Watch(), memory=engine.memory)
    with engine.paused(), torch.inference_mode():
        return {step: (decoder.preview(noisy[step]), decoder.preview(estimates[step])) for step in chosen}


def _table(
    names: Sequence[str], steps: int, values: Mapping[tuple[str, int], float]
) -> Float[np.ndarray, "rows steps"]:
    return np.array([[values.get((name, step), np.nan) for step in range(steps)] for name in names]).reshape(-1, steps)


def _listed(row: Float[np.ndarray, "steps"]) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in row]


def _strip(title: str, names: Sequence[str], values: Float[np.ndarray, "rows steps"]) -> Image.Image:
    """A row for each name, a column for each step; cold is the smallest value, hot the largest, which stand in the
    title."""
    font = ImageFont.load_default(11)
    there = values[np.isfinite(values)]
    low, high = (float(there.min()), float(there.max())) if there.size else (0.0, 0.0)
    heat = heat_colors(np.where(np.isfinite(values), values - low, 0.0), high - low)
    ruler = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    title = f"{title}: black {low:.2f}, yellow {high:.2f}"
    left = 2 * MARGIN + max(int(ruler.textlength(name, font=font)) for name in names)
    width = max(left + CELL * values.shape[1] + MARGIN, int(ruler.textlength(title, font=font)) + 2 * MARGIN)
    top = 2 * MARGIN + LINE
    sheet = Image.new("RGB", (width, top + LINE * (len(names) + 1) + MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, MARGIN // 2), title, fill="black", font=font)
    for row, name in enumerate(names):
        pen.text((MARGIN, top + row * LINE - 1), name, fill="black", font=font)
    strip = Image.fromarray(heat).resize((CELL * values.shape[1], LINE * len(names)), Image.Resampling.NEAREST)
    sheet.paste(strip, (left, top))
    for step in range(0, values.shape[1], 5):
        pen.text((left + CELL * step, top + LINE * len(names)), str(step), fill="black", font=font)
    return sheet
