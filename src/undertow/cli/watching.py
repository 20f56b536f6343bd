"""What a terminal shows while pictures are drawn: a bar, and a picture file that follows if asked for."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from undertow.checkpoints.files.atomic import atomic_write

if TYPE_CHECKING:
    from undertow.engine.events import Observer, StepEvent


@contextmanager
def watching(console: Console, pictures: int, preview: Path | None = None) -> "Generator[Observer]":
    """An observer of one request with so many pictures. preview: where the newest estimate of the first is kept."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    done = [0] * pictures
    refused: list[OSError] = []
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("drawing")

        def observe(event: "StepEvent") -> None:
            done[event.picture] = event.step
            progress.update(
                task, total=event.steps * pictures, completed=sum(done), description=f"sigma {event.sigma:7.3f}"
            )
            if preview is not None and not refused and event.picture == 0:
                refused.extend(_show(event, preview))

        yield observe
    for error in refused:
        console.print(f"note: {preview} was not kept up: {error}", markup=False, highlight=False, soft_wrap=True)


def _show(event: "StepEvent", preview: Path) -> list[OSError]:
    """Writes the newest estimate, and returns why that failed: the drawing goes on without."""
    try:
        if (shown := event.preview()) is not None:
            preview.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(preview) as draft:
                shown.save(draft)
    except OSError as error:
        return [error]
    return []
