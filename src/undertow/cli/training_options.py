"""What the verbs have in common that train something beside a text-to-image model: options, and how a run is shown."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from undertow.cli.train_pixels import training_progress
from undertow.errors import InvalidInput

if TYPE_CHECKING:
    from undertow.checkpoints.read.model import LoadedModel
    from undertow.training.captioned import CaptionedPictures
    from undertow.training.fit import FitSettings
    from undertow.training.log import StepRecord

Images = Annotated[
    Path,
    typer.Option(help="Folder of pictures, their captions in metadata.jsonl, in NAME.txt, or in the files' names."),
]
Out = Annotated[Path, typer.Option(help="Folder of the run; a run found there goes on.")]
Steps = Annotated[int, typer.Option(help="Optimizer steps.")]
BatchSize = Annotated[int, typer.Option(help="Pictures per step.")]
LearningRate = Annotated[float, typer.Option(help="Of AdamW, at its peak.")]
Timesteps = Annotated[str, typer.Option(help="Levels of noise: uniform, or logit_normal.")]
Gamma = Annotated[
    float | None, typer.Option(help="Weights of levels: min-SNR's gamma, usually 5.", show_default="constant")
]
Size = Annotated[int | None, typer.Option(help="Side of a picture, in pixels.", show_default="the model's")]
Title = Annotated[str | None, typer.Option(help="Name of what is written.", show_default="that of --out")]
Seed = Annotated[int, typer.Option(help="All that is random follows from it.")]
Precision = Annotated[str, typer.Option(help="Of activations: float32 or bf16, where the processor has it.")]
GradientCheckpointing = Annotated[
    bool, typer.Option("--gradient-checkpointing", help="Less memory, slower: recompute activations backward.")
]
Device = Annotated[str | None, typer.Option(help="For example cuda.", show_default="cpu")]
Threads = Annotated[int | None, typer.Option(help="Processor threads.", show_default="all cores")]
CheckpointEvery = Annotated[int, typer.Option(help="Steps between checkpoints.")]


def fit_settings(
    *, steps: int, batch_size: int, learning_rate: float, precision: str, seed: int, checkpoint_every: int
) -> "FitSettings":
    """Errors: `InvalidInput` for the precision."""
    from undertow.training.fit import FitSettings

    if precision not in ("float32", "bf16"):
        raise InvalidInput("--precision", repr(precision), "float32 or bf16")
    return FitSettings(
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        warmup_steps=min(100, steps // 10),
        ema_decay=0.99,
        precision=precision,
        seed=seed,
        checkpoint_every=checkpoint_every,
    )


def load_base(
    console: Console,
    model: str,
    images: Path,
    size: int | None,
    precision: str,
    device: str | None,
    threads: int | None,
) -> "tuple[LoadedModel, CaptionedPictures]":
    """The model that stays as it is, and the pictures; says what the device makes of `precision`. Errors:
    `InvalidInput` for models that cannot be trained on, `DataError`, `CheckpointError`."""
    import torch

    from undertow.service import load
    from undertow.training.captioned import load_captioned
    from undertow.training.lora_base import native_size, require_trainable
    from undertow.training.precision import precision_notes

    if threads is not None:
        torch.set_num_threads(threads)
    for note in precision_notes(precision, "cpu" if device is None else device):
        console.print("note:", note, soft_wrap=True)
    with console.status(f"loading {model}"):
        base = load(model, dtype=torch.float32, device=device).model
        require_trainable(base)
        return base, load_captioned(images, size=native_size(base) if size is None else size)


@contextmanager
def shown_training(console: Console, steps: int) -> "Generator[Callable[[StepRecord], None]]":
    """A progress bar; gives the function to call with each record."""
    with training_progress(console) as progress:
        task = progress.add_task("training", total=steps, figures="")

        def show(record: "StepRecord") -> None:
            figures = f"loss {record.loss:.4f}  {record.images_per_second:.1f} pictures/s"
            progress.update(task, completed=record.step, figures=figures)

        yield show
