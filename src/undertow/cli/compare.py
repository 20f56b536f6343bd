"""`undertow compare`: one prompt drawn in many ways, on a contact sheet."""

import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import track

from undertow.cli.model_option import DEFAULT_MODEL, Model
from undertow.cli.seeds import parse_seed
from undertow.cli.written_pictures import OVERWRITE_HELP
from undertow.errors import InvalidInput
from undertow.picture_names import PicturePlace

if TYPE_CHECKING:
    from undertow.engine.request import GenerationRequest
    from undertow.service import UNetService

AXES = ("sampler", "schedule", "steps", "guidance")


def compare(
    prompt: Annotated[str, typer.Argument(help="What to draw in every cell.")],
    model: Model = DEFAULT_MODEL,
    samplers: Annotated[str, typer.Option(help="Comma list; see `undertow samplers`.")] = "euler,heun,dpmpp_2m",
    schedules: Annotated[str, typer.Option(help="Comma list.")] = "karras",
    steps: Annotated[str, typer.Option(help="Comma list of whole numbers.")] = "5,10,20",
    guidance: Annotated[str, typer.Option(help="Comma list of numbers.")] = "5",
    negative: Annotated[str, typer.Option(help="What not to draw.")] = "",
    seed: Annotated[str, typer.Option(help="Of every picture: a number, or random.")] = "0",
    out: Annotated[Path, typer.Option(help="Folder, or picture file, of the sheet.")] = Path("out"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help=OVERWRITE_HELP)] = False,
) -> None:
    """Draw one prompt with several samplers, schedules, steps or guidance scales, and put the pictures on one sheet.

    Two of the lists may have more than one entry: they become rows and columns. Below each picture stands the time that
    its denoising took.
    """
    from undertow.engine.request import GenerationRequest
    from undertow.inspection.contact_sheet import contact_sheet
    from undertow.service import load

    lists: dict[str, list[Any]] = {
        "sampler": _words(samplers),
        "schedule": _words(schedules),
        "steps": _numbers("--steps", steps, int),
        "guidance": _numbers("--guidance", guidance, float),
    }
    row_axis, column_axis = _axes(lists)
    place = PicturePlace.of(out, "compare", overwrite=overwrite)
    console = Console(stderr=True)
    with console.status(f"loading {model}"):
        service = load(model)
    base = GenerationRequest(prompt=prompt, negative_prompt=negative, seed=parse_seed(seed))
    for name, values in lists.items():
        base = _with(base, name, values[0])
    places = list(product(lists[row_axis], lists[column_axis]))
    requests = [_with(_with(base, row_axis, row), column_axis, column) for row, column in places]
    for request in requests:
        _check(service, request)
    cells = [_draw(service, request) for request in track(requests, "drawing", console=console, transient=True)]
    columns = len(lists[column_axis])
    sheet = contact_sheet(
        [cells[start : start + columns] for start in range(0, len(cells), columns)],
        rows=[f"{row_axis} {value}" if row_axis != "sampler" else str(value) for value in lists[row_axis]],
        columns=[f"{column_axis} {value}" if column_axis != "sampler" else str(value) for value in lists[column_axis]],
        title=f"{prompt} · seed {base.seed} · "
        + ", ".join(f"{name} {values[0]}" for name, values in lists.items() if name not in (row_axis, column_axis)),
    )
    with place.taken({}) as path:
        sheet.save(path)
    typer.echo(path)


def _draw(service: "UNetService", request: "GenerationRequest"):
    from undertow.inspection.contact_sheet import Cell

    started = time.perf_counter()
    result = service.run(request)
    elapsed = time.perf_counter() - started - result.report.seconds["decode"]
    return Cell(image=result.images[0], caption=f"{elapsed:.2f} s")


def _check(service: "UNetService", request: "GenerationRequest") -> None:
    """Refuses what cannot be drawn before the first picture is."""
    from undertow.engine.chosen_sampler import choose_sampler

    choose_sampler(request, service.model.schedule, service.model.sampler).grid(request.steps)


def _axes(lists: dict[str, list[Any]]) -> tuple[str, str]:
    """The lists with several entries: rows and columns; for want of them the samplers and the steps."""
    several = [name for name in AXES if len(lists[name]) > 1]
    if len(several) > 2:
        raise InvalidInput("lists", ", ".join(several), "two with more than one entry", "a sheet has rows and columns")
    several += [name for name in ("sampler", "steps") if name not in several]
    return several[0], several[1]


def _with(request: "GenerationRequest", axis: str, value: Any) -> "GenerationRequest":
    return replace(request, **{"guidance_scale" if axis == "guidance" else axis: value})


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(option: str, text: str, kind: type) -> list[Any]:
    try:
        numbers = [kind(word) for word in _words(text)]
    except ValueError as err:
        raise InvalidInput(option, repr(text), "numbers with commas between them", "for example 5,10,20") from err
    if not numbers:
        raise InvalidInput(option, repr(text), "at least one number")
    return numbers
