"""Pictures written to files, and what there is to say about them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

if TYPE_CHECKING:
    from undertow.engine.result import GenerationResult


def write_pictures(result: "GenerationResult", indices: Sequence[int], out: Path, console: Console) -> list[Path]:
    """Writes the pictures, prints what there is to say, and returns where they are."""
    from undertow.engine.saving import save_picture

    report = result.report
    for line in report.debug:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    for line in report.decisions:
        console.print("note:", line, markup=False, highlight=False, soft_wrap=True)
    paths: list[Path] = []
    for index in indices:
        single = out.suffix.lower() == ".png" and len(indices) == 1
        path = out if single else (out.with_suffix("") / f"{report.request.seeds[index]}.png")
        save_picture(result.images[index], path, report, index)
        typer.echo(path)
        paths.append(path)
    stages = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in report.seconds.items())
    height, width = report.size
    console.print(f"{len(indices)} of {width}x{height} by {report.request.sampler}: {stages}", highlight=False)
    return paths


def suggest(picture: Path, console: Console) -> None:
    """What to try next with the embedded model."""
    for command, meaning in (
        ('"red apple left of dog face on blue background"', "two emoji, and where they stand"),
        ('"(penguin:1.3) on pink background" --count 4', "a weight on words, four pictures"),
        (f"--from {picture} --out again.png", "the same picture again"),
    ):
        console.print(f"try: undertow generate {command}  # {meaning}", markup=False, highlight=False, soft_wrap=True)
