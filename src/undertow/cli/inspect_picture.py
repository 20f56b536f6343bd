"""The tables of `undertow inspect PICTURE`: how it was made, what of that is understood, and how to repeat it."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from undertow.cli.request_rows import request_rows
from undertow.infotext.reading import LORA
from undertow.pictures.files import ENDINGS

if TYPE_CHECKING:
    from undertow.infotext.reading import NamedFile, Reading

LONGEST = 300
"""Characters of a value that are shown."""

MOST_ROWS = 100
"""Of a table: a text in a picture can name a hundred thousand LoRAs."""


def is_picture(source: str) -> bool:
    """Whether the argument of `inspect` is a picture file, by its ending."""
    path = Path(source).expanduser()
    return path.suffix.lower() in ENDINGS and path.is_file()


def show_picture(console: Console, source: str) -> None:
    """Prints what a picture's file says about how it was made. Errors: `InvalidInput` for what is no picture."""
    from undertow.engine.foreign import within_limits
    from undertow.engine.metadata import JSON_KEY, read_texts
    from undertow.pictures.files import header_of

    path = Path(source).expanduser()
    texts = read_texts(path)
    with header_of("picture", path) as image:
        rows = {"picture": f"{image.format}, {image.width}x{image.height}"}
    if JSON_KEY in texts:
        _show_own(console, path, texts, rows)
        return
    if not texts:
        _print_rows(console, str(path), [*rows.items(), ("described by", "nobody")])
        return
    from undertow.infotext.picture import read_description_of_others, unread_program  # loads torch

    reading = read_description_of_others(texts)
    if reading is None:
        program = unread_program(texts)
        rows["described by"] = "nobody" if program is None else f"{program}, which is not read"
        _print_rows(console, str(path), [*rows.items()])
        return
    reading = within_limits(reading)
    rows["described by"] = f"{reading.program} {reading.version}".strip()
    _print_rows(console, str(path), [*rows.items(), *request_rows(reading.request)])
    _print_rows(console, "it names", [(file.kind, str(file).removeprefix(f"{file.kind} ")) for file in reading.files])
    left = [(one.name, f"{one.value} ({one.why})".strip()) for one in reading.not_understood]
    _print_rows(console, "not understood", left)
    for note in reading.notes:
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    _print_command(console, path, reading.files, reading)


def _show_own(console: Console, path: Path, texts: Mapping[str, str], rows: dict[str, str]) -> None:
    """What undertow wrote: fields that are not as they are by default."""
    from undertow.engine.metadata import read_stored
    from undertow.engine.request import GenerationRequest
    from undertow.infotext.reading import NamedFile
    from undertow.records import defaults, schema_of

    stored = read_stored(path, texts)
    plain = schema_of(GenerationRequest).dump_python(GenerationRequest(prompt=""), mode="json")
    known = defaults(GenerationRequest)
    changed = {name: value for name, value in stored.request.items() if name not in known or value != plain.get(name)}
    rows |= {"described by": "undertow", "model": _model(stored.model, stored.model_hash)}
    rows |= {} if stored.refiner is None else {"refiner": _model(stored.refiner, stored.refiner_hash)}
    shown = [*rows.items(), *request_rows(changed)]
    count = stored.request.get("count", 1)
    if count != 1:
        shown.append(("which", f"picture {stored.index + 1} of {count}"))
    if stored.computing is not None and (computed := str(stored.computing)):
        shown.append(("computed with", computed))
    _print_rows(console, str(path), shown)
    model = NamedFile(kind="model", name=stored.model, option="--model", hash=stored.model_hash or "")
    files = [model, *stored.refining, *stored.named_files({}, _bundled_with(stored.model))]
    _print_command(console, path, [file for file in files if file.name not in _embedded()], None)


def _print_rows(console: Console, title: str, rows: Sequence[tuple[str, str]]) -> None:
    """A table of names and values; nothing without rows. What strangers wrote is printed without control characters."""
    if not rows:
        return
    table = Table(title=escape(title), show_header=False, title_justify="left", box=None)
    for name, value in rows[:MOST_ROWS]:
        cut = value if len(value) <= LONGEST else f"{value[:LONGEST]}..."
        table.add_row(escape(name), escape(cut))
    console.print(table)
    if len(rows) > MOST_ROWS:
        console.print(f"  and {len(rows) - MOST_ROWS:,} more", highlight=False)


def _print_command(console: Console, path: Path, files: "Sequence[NamedFile]", reading: "Reading | None") -> None:
    """The command that draws it again, with a place for each file that the user has to name."""
    command = f"undertow generate --from {shlex.quote(str(path))}"
    if reading is not None and not any(file.kind == "model" for file in files):
        command += " --model FILE"
    if len(files) > MOST_ROWS:
        console.print("repeat: not with one command, because it names too many files", highlight=False)
        return
    for file in files:
        if file.option.startswith("--"):
            option = file.option.partition(" ")[0]
            scale = "" if reading is None or file.scale is None or file.kind != LORA else f"@{file.scale:g}"
            command += f" {option} FILE{scale}"
    console.print(f"repeat: {command}", markup=False, highlight=False, soft_wrap=True)


def _model(name: str, digits: str | None) -> str:
    return name if digits is None else f"{name} (hash {digits})"


def _embedded() -> Sequence[str]:
    from undertow.embedded import embedded_models

    return tuple(embedded_models())


def _bundled_with(model: str) -> Sequence[str]:
    from undertow.adapters.files.bundled import BundledAdapters
    from undertow.embedded import embedded_models

    return BundledAdapters(embedded_models().get(model)).names()
