"""A bar for each stage of a training, as long as one is shown."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from undertow.cli.terminal import SafeConsole
from undertow.cli.training_progress import figures_of, training_progress

if TYPE_CHECKING:
    from recipes.emoji.recipe import Callbacks


@contextmanager
def stages_shown(console: SafeConsole) -> Generator["Callbacks"]:
    """What a recipe is to call."""
    from recipes.emoji.recipe import Callbacks
    from undertow.training.log import StepRecord

    with training_progress(console) as progress:
        tasks = []

        def on_stage(name: str, total: int) -> None:
            tasks.append(progress.add_task(name, total=total, figures=""))

        def on_record(record: StepRecord) -> None:
            progress.update(tasks[-1], completed=record.step, figures=figures_of(record))

        def on_count(count: int) -> None:
            progress.update(tasks[-1], completed=count)

        yield Callbacks(on_stage=on_stage, on_record=on_record, on_count=on_count)
