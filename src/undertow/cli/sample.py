"""`undertow sample`: draw pictures of a class from a trained model."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from undertow.checkpoints.files.destination import require_elsewhere
from undertow.checkpoints.files.place import require_class_model
from undertow.cli.seeds import parse_seed
from undertow.cli.terminal import SafeConsole
from undertow.cli.written_pictures import OVERWRITE_HELP, not_in_place, written_somewhere
from undertow.embedded import embedded_models
from undertow.known_names import require_sampler, require_schedule
from undertow.limits import CELLS
from undertow.lookup import counted
from undertow.pictures.names import PicturePlace


def sample(
    run: Annotated[str, typer.Argument(help="Folder of a run, or an embedded model: digits-ddpm, digits-flow.")],
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", help="Number or name of a class; repeatable.", show_default="every class"),
    ] = None,
    count: Annotated[int, typer.Option(help="Pictures of each class.", min=1)] = 8,
    guidance: Annotated[
        float, typer.Option(help="1 is off; more follows the class more closely and varies less.")
    ] = 2.0,
    steps: Annotated[int | None, typer.Option(help="Steps of the sampler.", show_default="ddpm 50, flow 20")] = None,
    sampler: Annotated[
        str | None, typer.Option(help="Name of the algorithm.", show_default="ddim, for flow flow_heun")
    ] = None,
    schedule: Annotated[str | None, typer.Option(help="Grid of noise levels.", show_default="normal")] = None,
    seed: Annotated[str, typer.Option(help="Of the first picture, or random; each next one adds 1.")] = "0",
    batch_size: Annotated[int, typer.Option(help="Pictures drawn at once; does not change them.", min=1)] = 64,
    columns: Annotated[int | None, typer.Option(help="Of the grid.", show_default="count", min=1)] = None,
    out: Annotated[Path, typer.Option(help="Folder, or picture file, of the grid.")] = Path(),
    overwrite: Annotated[bool, typer.Option("--overwrite", help=OVERWRITE_HELP)] = False,
) -> None:
    """Draw pictures of one or more classes and write them as one grid, a class after the other."""
    CELLS.require("count", count)
    first, place = parse_seed(seed), PicturePlace.of(out, "grid", overwrite=overwrite)
    require_class_model(model_folder(run))
    require_elsewhere("--out", out, [model_folder(run)])
    if sampler is not None:
        require_sampler(sampler)
    if schedule is not None:
        require_schedule(schedule)
    from undertow.checkpoints.read.class_model import load_class_model
    from undertow.engine.class_pictures import sample_classes, sampling_settings
    from undertow.training.figures import save_grid  # loads torch
    from undertow.training.pictures import find_class

    model = load_class_model(model_folder(run))
    wanted = model.class_names if classes is None else classes
    labels = [find_class(name, model.class_names) for name in wanted for _ in range(count)]
    settings = sampling_settings(model.path, sampler=sampler, schedule=schedule, steps=steps, guidance=guidance)
    seeds = range(first, first + len(labels))
    console = SafeConsole()
    with drawing(console, len(labels), "drawing") as on_pictures:
        pixels = sample_classes(model, labels, seeds, settings, batch_size=batch_size, on_pictures=on_pictures)
    path, error = written_somewhere(
        place, {}, lambda path: save_grid(pixels, count if columns is None else columns, path)
    )
    console.print(
        f"{counted(len(labels), 'picture')} by {settings.sampler} in {counted(settings.steps, 'step')}: {path}",
        soft_wrap=True,
    )
    if error is not None:
        raise not_in_place(place, path, error)


def model_folder(name: str) -> Path:
    """A folder, or that of the embedded model of this name."""
    return embedded_models().get(name, Path(name))


@contextmanager
def drawing(console: Console, count: int, what: str) -> Generator[Callable[[int], None]]:
    """A progress bar while `count` pictures are drawn; gives the function to call with each number finished."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(what, total=count)
        yield lambda finished: progress.advance(task, finished)
