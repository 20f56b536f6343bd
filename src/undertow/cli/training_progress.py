"""A run of training in the terminal: a progress bar with the figures of the newest record, and Ctrl-C that saves."""

import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import current_thread, main_thread
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from undertow.training.log import StepRecord


@dataclass(frozen=True, kw_only=True)
class ShownTraining:
    """What a training is given so that it can be followed and stopped, see `undertow.training.fit.fit`."""

    on_resume: "Callable[[int], None]"
    on_record: "Callable[[StepRecord], None]"
    stop: Callable[[], bool]


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
def shown_training(console: Console, steps: int, checkpoints: Path, again: str) -> Generator[ShownTraining]:
    """Shows a bar of so many steps, says from where a run goes on, and lets the first Ctrl-C save what was trained.

    checkpoints: folder of the run's checkpoints. again: what continues an interrupted run, in words.
    """
    with training_progress(console) as progress, _first_interrupt(progress) as stop:
        task = progress.add_task("training", total=steps, figures="")

        def on_resume(step: int) -> None:
            progress.update(task, completed=step)
            progress.print(f"goes on from step {step}" if step < steps else f"all {steps} steps are done already")

        def on_record(record: "StepRecord") -> None:
            progress.update(task, completed=record.step, figures=figures_of(record))

        try:
            yield ShownTraining(on_resume=on_resume, on_record=on_record, stop=stop)
        except KeyboardInterrupt:
            from undertow.training.training_state import saved_steps

            saved = saved_steps(checkpoints)
            kept = f"saved at step {saved[-1]} of {steps}: {again} goes on from there" if saved else "nothing was saved"
            progress.print(kept, soft_wrap=True, highlight=False, markup=False)
            raise


@contextmanager
def _first_interrupt(progress: Progress) -> Generator[Callable[[], bool]]:
    """Yields a function that says whether Ctrl-C was pressed; pressed again, it interrupts as usual. Only the main
    thread hears signals."""
    pressed: list[int] = []

    def press(number: int, _frame: Any) -> None:
        signal.signal(signal.SIGINT, before)
        pressed.append(number)
        progress.print("finishing this step and saving; Ctrl-C again stops at once")

    if current_thread() is not main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)
