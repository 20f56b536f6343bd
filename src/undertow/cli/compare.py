"""`undertow compare`: what changes when one thing changes, on a contact sheet."""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import track

from undertow.checkpoints.files.atomic import atomic_write
from undertow.checkpoints.identify.few_steps import left_to_model
from undertow.cli.model_option import DEFAULT_MODEL, Model
from undertow.cli.named_files import require_files, require_own_place
from undertow.cli.notes import Notes
from undertow.cli.option_values import parse_loras
from undertow.cli.seeds import parse_seed
from undertow.cli.show import ShowHere, require_show, show
from undertow.cli.suggested import FIELDS, given_fields, note_suggested
from undertow.cli.terminal import SafeConsole
from undertow.cli.waiting import waiting
from undertow.cli.written_pictures import OVERWRITE_HELP, not_in_place, written_somewhere
from undertow.engine.request import GenerationRequest
from undertow.errors import InvalidInput
from undertow.limits import CELLS
from undertow.pictures.names import PicturePlace

if TYPE_CHECKING:
    from PIL import Image

    from undertow.inspection.contact_sheet import Cell
    from undertow.service import UNetService

AXES = ("prompt", "lora", "scale", "sampler", "schedule", "steps", "guidance", "seed")
"""What can differ between cells. Of two, the first is that of the rows."""

USUAL: Mapping[str, Sequence[Any]] = {
    "sampler": ("euler", "heun", "dpmpp_2m"),
    "schedule": ("karras",),
    "steps": (5, 10, 20),
}
"""What is compared when nothing else is asked for."""

USUAL_OF_DISTILLED: Mapping[str, Sequence[Any]] = {"steps": (1, 2, 4, 8)}
"""The same of a model that was distilled to few steps, by its own sampler."""

WITHOUT = "none"
"""In place of a LoRA: a cell without one."""

LABEL_CHARACTERS = 48

SHEET_COLUMNS = 120
"""Width of a sheet in the terminal, in characters: its labels are to be read."""


def compare(
    prompts: Annotated[list[str], typer.Argument(help="What to draw; each of several prompts has a row.")],
    model: Model = DEFAULT_MODEL,
    samplers: Annotated[
        str | None,
        typer.Option(
            help="Comma list; see `undertow samplers`.",
            show_default="euler,heun,dpmpp_2m; of distilled models their own",
        ),
    ] = None,
    schedules: Annotated[str | None, typer.Option(help="Comma list.", show_default="karras")] = None,
    steps: Annotated[
        str | None,
        typer.Option(help="Comma list of whole numbers.", show_default="5,10,20; of distilled models 1,2,4,8"),
    ] = None,
    guidance: Annotated[
        str | None, typer.Option(help="Comma list of numbers.", show_default="5; 1 with distilled models")
    ] = None,
    seeds: Annotated[str | None, typer.Option("--seeds", "--seed", help="Comma list.", show_default="0")] = None,
    loras: Annotated[
        list[str] | None, typer.Option("--lora", help="LORA[@SCALE], or none for a cell without; repeatable.")
    ] = None,
    scales: Annotated[str | None, typer.Option(help="Comma list: scales of the LoRA.", show_default="1")] = None,
    negative: Annotated[str, typer.Option(help="What not to draw.")] = "",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder, or picture file, of the sheet.")] = Path("out"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help=OVERWRITE_HELP)] = False,
    draw_here: ShowHere = None,
) -> None:
    """Draw in many ways, and put the pictures on one sheet: prompts, LoRAs, their scales, samplers, schedules, steps,
    guidance scales or seeds.

    Two of them may have more than one entry: they become rows and columns. Below each picture stands the time that its
    denoising took. Samplers and steps are compared where no prompts, LoRAs, scales or seeds are.
    """
    typed = {
        "prompt": prompts,
        "lora": loras,
        "scale": _numbers("--scales", scales, float),
        "sampler": _words("--samplers", samplers),
        "schedule": _words("--schedules", schedules),
        "steps": _numbers("--steps", steps, int),
        "guidance": _numbers("--guidance", guidance, float),
        "seed": None if seeds is None else [parse_seed(word, "--seeds") for word in _words("--seeds", seeds) or ()],
    }
    typed = {name: values for name, values in typed.items() if values}
    requests = _Sheet.of(typed).requests(negative)
    place = PicturePlace.of(out, "compare", overwrite=overwrite)
    for request in requests:
        require_own_place("--out", out, request, models=[model])
        require_files(request, model)
    if draw_here:
        require_show()

    from undertow.inspection.contact_sheet import contact_sheet
    from undertow.loading import load

    console = SafeConsole(stderr=True)
    with waiting(console, f"loading {model}"):
        service = load(model)
    sheet = _Sheet.of(typed, **service.model.suggested)
    requests = sheet.requests(negative)
    for request in requests:
        _check(service, request)
    notes = Notes()
    note_suggested(sheet.suggested(typed, service.model.suggested), service, notes)
    notes.tell(console)
    drawn = [_draw(service, request) for request in track(requests, "drawing", console=console, transient=True)]
    lists, rows, columns = sheet.lists, sheet.rows, sheet.columns
    width = len(lists[columns])
    picture = contact_sheet(
        [drawn[start : start + width] for start in range(0, len(drawn), width)],
        rows=[_label(rows, value) for value in lists[rows]],
        columns=[_label(columns, value) for value in lists[columns]],
        title=_title(sheet.common, (rows, columns)),
    )
    path, error = written_somewhere(place, {}, lambda path: _save(picture, path))
    typer.echo(path)
    if draw_here is not False:
        show([picture], columns=SHEET_COLUMNS)
    if error is not None:
        raise not_in_place(place, path, error)


@dataclass(frozen=True, kw_only=True)
class _Sheet:
    """What differs between cells. lists: by axis, its entries. rows, columns: the axes that have several."""

    lists: Mapping[str, Sequence[Any]]
    rows: str
    columns: str

    @classmethod
    def of(cls, typed: Mapping[str, Sequence[Any]], **suggested: float) -> "_Sheet":
        """suggested: fields that the model is best drawn with. Errors: `InvalidInput`."""
        lists = _filled(typed, suggested)
        rows, columns = _axes(lists)
        CELLS.require("cells", len(lists[rows]) * len(lists[columns]))
        return cls(lists=lists, rows=rows, columns=columns)

    @property
    def common(self) -> dict[str, Any]:
        """The first entry of each list."""
        return {name: values[0] for name, values in self.lists.items()}

    def suggested(self, typed: Collection[str], fields: Mapping[str, float]) -> dict[str, float]:
        """Of the fields that a model suggests, those that all cells have because nothing else was typed."""
        left = left_to_model(dict(fields), given_fields(typed))
        alone = {field: self.lists[option] for option, field in FIELDS.items() if option in self.lists}
        return {name: value for name, value in left.items() if alone.get(name) == (value,)}

    def requests(self, negative: str) -> list[GenerationRequest]:
        """Row by row. Errors: `InvalidInput`."""
        pairs = product(self.lists[self.rows], self.lists[self.columns])
        return [_request(self.common | {self.rows: row, self.columns: column}, negative) for row, column in pairs]


def _save(sheet: "Image.Image", path: Path) -> None:
    with atomic_write(path) as draft:
        sheet.save(draft)


def _filled(typed: Mapping[str, Sequence[Any]], suggested: Mapping[str, float]) -> dict[str, Sequence[Any]]:
    """All lists. suggested: fields in place of the defaults. Errors: `InvalidInput` for scales of nothing."""
    if "scale" in typed and not any(one != WITHOUT for one in typed.get("lora", ())):
        raise InvalidInput("--scales", ",".join(map(str, typed["scale"])), "a --lora that they belong to")
    others = any(len(typed.get(name, ())) > 1 for name in ("prompt", "lora", "scale", "seed"))
    defaults = GenerationRequest(prompt="")
    usual: dict[str, Sequence[Any]] = {
        "sampler": (defaults.sampler,),
        "schedule": (USUAL["schedule"][0] if "sampler" in typed else defaults.schedule,),
        "steps": (suggested.get("steps", defaults.steps),),
        "guidance": (suggested.get("guidance_scale", defaults.guidance_scale),),
        "seed": (defaults.seed,),
    }
    compared = USUAL_OF_DISTILLED if suggested else USUAL
    return {name: typed.get(name, (usual if others else {**usual, **compared}).get(name, (None,))) for name in AXES}


def _axes(lists: Mapping[str, Sequence[Any]]) -> tuple[str, str]:
    """The lists with several entries: rows and columns; for want of them the samplers and the steps."""
    several = [name for name in AXES if len(lists[name]) > 1]
    if len(several) > 2:
        raise InvalidInput("lists", ", ".join(several), "two with more than one entry", "a sheet has rows and columns")
    several += [name for name in ("sampler", "steps") if name not in several]
    first, second = sorted(several[:2], key=AXES.index)
    return first, second


def _request(cell: Mapping[str, Any], negative: str) -> GenerationRequest:
    """Errors: `InvalidInput`."""
    adapters = () if cell["lora"] in (None, WITHOUT) else parse_loras([cell["lora"]], {})
    if cell["scale"] is not None:
        adapters = tuple(replace(adapter, scale=cell["scale"]) for adapter in adapters)
    return GenerationRequest(
        prompt=cell["prompt"],
        negative_prompt=negative,
        sampler=cell["sampler"],
        schedule=cell["schedule"],
        steps=cell["steps"],
        guidance_scale=cell["guidance"],
        seed=cell["seed"],
        adapters=adapters,
    )


def _draw(service: "UNetService", request: GenerationRequest) -> "Cell":
    from undertow.inspection.contact_sheet import Cell

    started = time.perf_counter()
    result = service.run(request)
    elapsed = time.perf_counter() - started - result.report.seconds["decode"]
    return Cell(image=result.images[0], caption=f"{elapsed:.2f} s")


def _check(service: "UNetService", request: GenerationRequest) -> None:
    """Refuses what cannot be drawn before the first picture is."""
    from undertow.engine.chosen_sampler import choose_sampler

    choose_sampler(request, service.model.schedule, service.model.sampler).grid(request.steps)


def _label(axis: str, value: Any) -> str:
    match axis:
        case "prompt":
            text = " ".join(value.split())
            return text if len(text) <= LABEL_CHARACTERS else f"{text[: LABEL_CHARACTERS - 3]}..."
        case "lora":
            return "no LoRA" if value in (None, WITHOUT) else Path(value).name.replace(".safetensors", "")
        case "sampler":
            return str(value)
        case _:
            return f"{axis} {value}"


def _title(common: Mapping[str, Any], shown: tuple[str, str]) -> str:
    """What all cells have in common."""
    hidden = {name for name, value in common.items() if value is None}
    main = [_label(name, common[name]) for name in ("prompt", "lora", "seed") if name not in (*shown, *hidden)]
    rest = [
        f"{name} {common[name]}"
        for name in ("scale", "sampler", "schedule", "steps", "guidance")
        if name not in (*shown, *hidden)
    ]
    return " · ".join([*main, ", ".join(rest)])


def _words(option: str, text: str | None) -> list[str] | None:
    """Errors: `InvalidInput` for an empty list."""
    if text is None:
        return None
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise InvalidInput(option, repr(text), "at least one entry")
    return words


def _numbers(option: str, text: str | None, kind: type) -> list[Any] | None:
    try:
        return None if text is None else [kind(word) for word in _words(option, text) or ()]
    except ValueError as err:
        if isinstance(err, InvalidInput):
            raise
        raise InvalidInput(option, repr(text), "numbers with commas between them", "for example 5,10,20") from err
