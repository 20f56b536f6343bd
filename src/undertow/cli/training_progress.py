"""A run of training in the terminal: a progress bar with the figures of the newest record."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from undertow.training.log import StepRecord


def training_progress(console: Console) -> Progress:
    """A bar for each task; its field `figures` stands behind it, see `figures_of`."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
        console=console,
    )


def figures_of(record: "StepRecord") -> str:
    """The loss and the speed of a record; a speed below ten pictures a second has a decimal."""
    speed = record.images_per_second
    return f"loss {record.loss:.4f}  {speed:.{1 if speed < 10 else 0}f} pictures/s"


@contextmanager
def shown_training(console: Console, steps: int) -> "Generator[Callable[[StepRecord], None]]":
    """A bar of so many steps; gives the function to call with each record."""
    with training_progress(console) as progress:
        task = progress.add_task("training", total=steps, figures="")
        yield lambda record: progress.update(task, completed=record.step, figures=figures_of(record))
