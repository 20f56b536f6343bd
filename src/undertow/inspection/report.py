"""A request as one page: its pictures first, then what it took. The page needs nothing besides itself."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from importlib import metadata
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from undertow.checkpoints.files.atomic import atomic_write
from undertow.engine.report import Report
from undertow.engine.request import GenerationRequest
from undertow.engine.result import GenerationResult
from undertow.inspection.profile import Profile
from undertow.lookup import counted
from undertow.shortage import size_in_words

LAYERS = 12
"""Shown, of those that take most time."""

SMALLEST_SIDE = 256
"""Small pictures are shown at least so large, with sharp edges."""

STAGES: Mapping[str, str] = {"text": "encode", "unet": "denoise", "decode": "decode"}
"""Colors of the report's stages."""

WIDTH, HEIGHT, TOP, BAR = 1000, 140, 96, 34
"""Of the timeline, in the units of its picture."""

LONGEST_TITLE = 120


def save_report(path: str | Path, result: GenerationResult, profile: Profile | None = None) -> Path:
    """Writes the page of a result, and returns its file. profile: made while it was drawn. Errors: `OSError`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as draft:
        draft.write_text(report_page(result, profile), encoding="utf-8")
    return path


def report_page(result: GenerationResult, profile: Profile | None = None) -> str:
    """The page as HTML. Prompts and names of files are text in it and nothing else."""
    environment = Environment(
        loader=PackageLoader("undertow", "inspection"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.jinja").render(**_page(result, profile))


def _page(result: GenerationResult, profile: Profile | None) -> dict[str, Any]:
    report = result.report
    stages = _stages(report)
    title = report.request.prompt.strip() or "No prompt"
    return {
        "title": title if len(title) <= LONGEST_TITLE else f"{title[:LONGEST_TITLE]}…",
        "summary": _summary(report),
        "headline": _headline(report, profile),
        "pictures": [_picture(image, report, index) for index, image in enumerate(result.images)],
        "rendering": "pixelated" if min(report.size) < SMALLEST_SIDE else "auto",
        "stages": stages,
        "stages_alt": ", ".join(f"{stage['name']} {stage['text']}" for stage in stages),
        "timeline": None if profile is None else _timeline(profile),
        "layers": [] if profile is None else _layers(profile),
        "layers_text": "" if profile is None else _layers_text(profile),
        "levels": [] if profile is None else _levels(profile),
        "memory": _memory(report),
        "asked": _asked(report.request),
        "decisions": report.decisions,
        "footer": f"undertow {metadata.version('undertow')}, PyTorch {torch.__version__}",
    }


def _summary(report: Report) -> str:
    height, width = report.size
    pictures = counted(report.request.count, "picture")
    steps = counted(max(1, len(report.sigmas) - 1), "step")
    seeds = report.request.seeds
    seed = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"
    return f"{pictures} of {width}×{height} by {Path(report.model).name}, {report.sampler}, {steps}, {seed}"


def _headline(report: Report, profile: Profile | None) -> str:
    whole = sum(report.seconds.values())
    first = f"It took {_time(whole)}."
    if profile is None or not profile.forward_s:
        return first
    return (
        f"{first} The network was evaluated {counted(profile.forwards, 'time')}, {_time(profile.forward_s)} each for "
        f"{counted(profile.rows, 'row')}: {profile.flops / 1e9:.3g} billion operations, which is {profile.reached:.0%} "
        f"of what a large matrix product reaches here ({profile.peak_flops / 1e9:.3g} billion a second). "
        f"Attention takes {profile.attention_share:.0%} of it."
    )


def _picture(image: Image.Image, report: Report, index: int) -> dict[str, Any]:
    buffer = BytesIO()
    image.save(buffer, format="PNG")
    return {
        "uri": f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}",
        "alt": report.request.prompt,
        "caption": f"seed {report.request.seeds[index]}",
        "width": max(image.width, SMALLEST_SIDE) if len(report.request.seeds) > 1 else max(image.width, 320),
    }


def _stages(report: Report) -> list[dict[str, Any]]:
    whole = sum(report.seconds.values())
    return [
        {
            "name": name,
            "kind": STAGES.get(name, "other"),
            "share": f"{seconds / whole:.5f}",
            "text": f"{_time(seconds)} ({seconds / whole:.0%})",
        }
        for name, seconds in report.seconds.items()
        if whole and seconds
    ]


def _timeline(profile: Profile) -> dict[str, Any] | None:
    """Units of work as bars over the time, with the memory above them."""
    spans = profile.timeline
    if not spans:
        return None
    begin, end = min(span.begin for span in spans), max(span.end for span in spans)
    scale = WIDTH / max(end - begin, 1e-9)
    known = [(span.end, span.memory_bytes) for span in spans if span.memory_bytes is not None]
    most = max((size for _, size in known), default=0)
    forecast = profile.report.memory.forecast_bytes
    highest = max(most, forecast or 0, 1)

    def height(size: int) -> float:
        """From 0, so that the height of the line is the memory."""
        return round(TOP - 8 - (TOP - 20) * size / highest, 2)

    points = [f"{round((seconds - begin) * scale, 2)},{height(size)}" for seconds, size in known]
    expected = "" if forecast is None else f"; {size_in_words(forecast)} were forecast for the peak"
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "top": TOP,
        "bar": BAR,
        "spans": [
            {
                "x": round((span.begin - begin) * scale, 2),
                "width": max(0.75, round((span.end - span.begin) * scale - 1, 2)),
                "kind": span.kind,
                "title": f"{span.kind}, {_time(span.end - span.begin)}",
            }
            for span in spans
        ],
        "line": " ".join(points) if len(points) > 1 else "",
        "forecast_y": None if forecast is None or len(points) < 2 else height(forecast),
        "memory": f"Up to {size_in_words(most)} in use between two units of work{expected}.",
        "ticks": [_time((end - begin) * share) for share in (0, 0.25, 0.5, 0.75, 1)],
        "kinds": list(dict.fromkeys(span.kind for span in spans)),
        "alt": f"{counted(len(spans), 'unit')} of work in {_time(end - begin)}",
    }


def _layers(profile: Profile) -> list[dict[str, Any]]:
    slowest = profile.slowest(LAYERS)
    most = slowest[0].seconds if slowest else 1.0
    return [
        {
            "name": layer.name,
            "attention": round(100 * layer.attention_s / most, 2),
            "rest": round(100 * max(0.0, layer.seconds - layer.attention_s) / most, 2),
            "text": f"{_time(layer.seconds)}, {layer.seconds / profile.forward_s:.0%}",
        }
        for layer in slowest
        if most
    ]


def _layers_text(profile: Profile) -> str:
    heaviest = max(profile.layers, key=lambda layer: layer.memory_bytes, default=None)
    if heaviest is None:
        return ""
    return (
        f"One evaluation, {_time(profile.forward_s)}. The most memory: {heaviest.name}, "
        f"{size_in_words(heaviest.memory_bytes)} of tensors."
    )


def _levels(profile: Profile) -> list[dict[str, str]]:
    names = {-1: "embeddings", 0: "full resolution"}
    return [
        {
            "name": names.get(level, f"1/{2**level} of a side"),
            "text": f"{_time(seconds)}, {seconds / profile.forward_s:.0%}",
        }
        for level, seconds in profile.by_level().items()
    ]


def _memory(report: Report) -> list[dict[str, str]]:
    memory = report.memory
    found = {"forecast": memory.forecast_bytes, "budget": memory.budget_bytes}
    found |= {f"measured, {name}": size for name, size in memory.peaks.items()}
    return [{"name": name, "text": size_in_words(size)} for name, size in found.items() if size is not None]


def _asked(request: GenerationRequest) -> list[dict[str, str]]:
    """Fields that are not as they are by default."""
    request, usual = replace(request, steps=request.step_count), GenerationRequest(prompt="")
    always = ("prompt", "seed", "steps", "guidance_scale")
    return [
        {"name": one.name.replace("_", " "), "text": _said(getattr(request, one.name))}
        for one in fields(GenerationRequest)
        if one.name in always or getattr(request, one.name) != getattr(usual, one.name)
    ]


def _said(value: Any) -> str:
    if isinstance(value, Image.Image):
        return f"a picture of {value.width}×{value.height}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(str(getattr(one, "title", one)) for one in value)
    return str(value)


def _time(seconds: float) -> str:
    if seconds >= 120:
        return f"{seconds / 60:.1f} min"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.1f} ms" if seconds else "0 s"
