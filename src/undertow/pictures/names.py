"""Where pictures are written: names from a template, formats by ending, and nothing that exists is replaced.

Nothing here writes a picture: what can be wrong with a place is found before anything is loaded or drawn.
"""

import mimetypes
import os
import re
import unicodedata
from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches
from itertools import count as counting
from pathlib import Path
from string import Formatter
from tempfile import TemporaryFile
from typing import Any

from undertow.errors import InvalidInput

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""By ending, what Pillow calls the format."""

FIGURES = (*FORMATS, ".svg", ".pdf")
"""Endings of drawings by matplotlib."""

DEFAULT_NAME = "{seed}"

FIELDS: Mapping[str, Any] = {
    "seed": 0,
    "prompt": "text",
    "negative": "text",
    "model": "text",
    "sampler": "text",
    "schedule": "text",
    "steps": 1,
    "guidance": 1.0,
    "width": 1,
    "height": 1,
    "index": 1,
    "number": 1,
    "date": "text",
    "time": "text",
}
"""What a template may name, each with a value of its type. index: of the picture in its request, from 1. number: one
more than the largest in the folder."""

NUMBER = "number"

LONGEST_VALUE, LONGEST_PART = 60, 200
"""Characters of a value, and bytes of a part of a path: file systems allow 255, and an ending and a counter follow."""

LONGEST_NAME = 240
"""Bytes of a name that is typed: file systems allow 255, and a counter may follow."""

REFUSED_KINDS = ("image", "video", "audio", "text")
"""Of files that nobody means to be folders: `runs/v1.5` is one, `o.bmp` is not."""


@dataclass(frozen=True, kw_only=True)
class PicturePlace:
    """Where the pictures of a request go. Made by `PicturePlace.of`.

    folder: that they are written to. template: of their names, without the ending; `None` for a single file. file: its
    name without the ending, to which the index is added when there are several. suffix: the ending. overwrite: whether
    what is there may be replaced; otherwise names count up.
    """

    folder: Path
    suffix: str
    template: str | None = None
    file: str = ""
    several: bool = False
    overwrite: bool = False

    @classmethod
    def of(
        cls,
        out: str | Path,
        name: str = DEFAULT_NAME,
        *,
        count: int = 1,
        overwrite: bool = False,
        arguments: tuple[str, str] = ("--out", "--name"),
    ) -> "PicturePlace":
        """A folder, or a file that ends in one of `FORMATS`: with several pictures `apple.png` becomes `apple-1.png`,
        `apple-2.png`. name: template of names in a folder, such as "{seed}-{prompt}"; an ending chooses the format,
        PNG without one. arguments: what messages call the two. Errors: `InvalidInput` for a place that cannot be
        written, a file that exists, and a template that cannot be used."""
        path, (out_argument, name_argument) = Path(out), arguments
        _require_short(path, out_argument)
        _require_no_template(path, out_argument, name_argument)
        if not is_file_name(path, out_argument):
            template, suffix = _checked_template(name, name_argument)
            require_folder(path, out_argument)
            return cls(folder=path, template=template, suffix=suffix, overwrite=overwrite)
        require_folder(path.parent, out_argument)
        place = cls(folder=path.parent, file=path.stem, suffix=path.suffix, several=count > 1, overwrite=overwrite)
        for index in range(1, count + 1):
            require_replaceable(place._wanted({"index": index}), out_argument, overwrite=overwrite)
        return place

    @contextmanager
    def taken(self, fields: Mapping[str, Any]) -> Generator[Path]:
        """The path of one picture, which belongs to nobody else: a file is made there, and goes again when the block
        fails. A name that exists counts up: 7.png, 7-2.png, 7-3.png. fields: values of `FIELDS`."""
        wanted = self._wanted(fields)
        wanted.parent.mkdir(parents=True, exist_ok=True)
        if self.overwrite:
            yield wanted
            return
        path = next(path for path in _counted_up(wanted) if _made(path))
        try:
            yield path
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    def _wanted(self, fields: Mapping[str, Any]) -> Path:
        if self.template is None:
            name = f"{self.file}-{fields['index']}" if self.several else self.file
            return self.folder / f"{name}{self.suffix}"
        now = datetime.now()
        known = {**fields, "date": f"{now:%Y-%m-%d}", "time": f"{now:%H-%M-%S}"}
        parts = self.template.split("/")
        for place, part in enumerate(parts):
            if f"{{{NUMBER}" in part:
                ending = self.suffix if place == len(parts) - 1 else ""
                known[NUMBER] = _next_number(self.folder.joinpath(*parts[:place]), part, ending)
            parts[place] = _filled(part, known)
        return self.folder.joinpath(*parts[:-1], f"{parts[-1]}{self.suffix}")


def is_file_name(path: Path, argument: str = "--out") -> bool:
    """Whether a path names a picture file; else a folder, which may have dots in its name. Errors: `InvalidInput` for
    files of other kinds, such as o.bmp."""
    if path.is_dir():
        return False
    if path.suffix.lower() in FORMATS:
        return True
    _require_picture_kind(path, argument, "a folder, or a file")
    return False


def _require_picture_kind(path: Path, argument: str, expected: str) -> None:
    """Whether the ending of a name is none of a file that undertow does not write. Errors: `InvalidInput`."""
    # The table that comes with Python: a system's own also knows that .1 is a page of a manual.
    kind, _ = mimetypes.MimeTypes().guess_type(path.name)
    if path.suffix.lower() not in FORMATS and kind is not None and kind.partition("/")[0] in REFUSED_KINDS:
        raise InvalidInput(argument, repr(str(path)), f"{expected} that ends in {_joined(FORMATS)}")


def _require_no_template(path: Path, out_argument: str, name_argument: str) -> None:
    """A place is taken as it is typed, fields in braces too. Errors: `InvalidInput` for one with fields of a name."""
    fields = "|".join(FIELDS)
    if not path.exists() and re.search(rf"\{{({fields})(:[^{{}}]*)?\}}", str(path)):
        remedy = f"{name_argument} {path.name!r} makes names in a folder"
        raise InvalidInput(out_argument, repr(str(path)), "a place without fields in braces", remedy)


def require_picture_file(
    path: Path, argument: str = "--out", *, overwrite: bool = True, endings: Collection[str] = tuple(FORMATS)
) -> None:
    """Whether one picture can be written to this file. Errors: `InvalidInput`."""
    _require_short(path, argument)
    if path.is_dir():
        raise InvalidInput(argument, repr(str(path)), "a picture file", "it is a folder")
    if path.suffix.lower() not in endings:
        raise InvalidInput(argument, repr(str(path)), f"a file that ends in {_joined(endings)}")
    require_replaceable(path, argument, overwrite=overwrite)
    require_folder(path.parent, argument)


def require_file(path: Path, argument: str, *, overwrite: bool = True) -> None:
    """Whether a file of any kind can be written there; its folders are made where they are missing. Errors:
    `InvalidInput`."""
    _require_short(path, argument)
    require_replaceable(path, argument, overwrite=overwrite)
    require_folder(path.parent, argument)


def require_replaceable(path: Path, argument: str, *, overwrite: bool) -> None:
    """The rule of every writer: what is there is replaced only where that was allowed, and a pipe or a device never.
    Errors: `InvalidInput`."""
    if path.exists() and not path.is_file():
        problem = "a folder" if path.is_dir() else "a pipe or a device"
        raise InvalidInput(argument, repr(str(path)), "a regular file", f"it is {problem}")
    if path.exists() and not overwrite:
        # What has no dashes is an argument, of a verb or in Python.
        how = "--overwrite" if argument.startswith("--") else "--overwrite, in Python overwrite=True"
        remedy = f"allow it to be replaced ({how}), or choose another name"
        raise InvalidInput(argument, repr(str(path)), "a file that is not there yet", remedy)


def _joined(endings: Collection[str]) -> str:
    *first, last = endings
    return f"{', '.join(first)} or {last}"


def require_folder(folder: Path, argument: str) -> None:
    """Whether files can be written to a folder, which need not be there yet. Errors: `InvalidInput`."""
    _require_short(folder, argument)
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists() or path.is_symlink())
    if not there.is_dir():
        raise InvalidInput(argument, repr(str(folder)), "a folder that can be made", f"{there} is a file")
    try:
        # What permissions do not say: some file systems take no files at all.
        with TemporaryFile(dir=there):
            pass
    except OSError as err:
        refused = f"{there} takes no files ({err.strerror})"
        raise InvalidInput(argument, repr(str(folder)), "a folder that can be written", refused) from err


def _require_short(path: Path, argument: str) -> None:
    """Whether each part of a path can be a name, with room for a counter behind the last."""
    longest = max(path.parts, key=lambda part: len(os.fsencode(part)), default="")
    if "\0" in str(path):
        raise InvalidInput(argument, repr(str(path)), "a path without a zero byte in it")
    if len(os.fsencode(longest)) > LONGEST_NAME:
        shown = f"{longest[:20]}... of {len(longest)} characters"
        raise InvalidInput(argument, shown, f"names of at most {LONGEST_NAME} bytes", "choose a shorter one")


def _checked_template(name: str, argument: str) -> tuple[str, str]:
    """The template without its ending, and the ending. Errors: `InvalidInput`."""
    _require_picture_kind(Path(name), argument, "a name")
    suffix = next((ending for ending in FORMATS if name.lower().endswith(ending)), "")
    template = name[: len(name) - len(suffix)]
    try:
        fields = [(field, conversion) for _, field, _, conversion in Formatter().parse(template) if field is not None]
    except ValueError as err:
        raise InvalidInput(argument, repr(name), "a template such as {seed}-{prompt}", str(err)) from err
    for field, conversion in fields:
        if field not in FIELDS or conversion is not None:
            near = get_close_matches(field, FIELDS, n=1)
            remedy = f"did you mean {{{near[0]}}}?" if near and near[0] != field else ""
            raise InvalidInput(argument, repr(name), f"{', '.join(f'{{{one}}}' for one in FIELDS)} alone", remedy)
    parts = template.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise InvalidInput(argument, repr(name), "a name in the folder of --out", "for example {model}/{seed}")
    try:
        template.format(**FIELDS)
    except ValueError as err:
        raise InvalidInput(argument, repr(name), "number formats that fit, such as {seed:010}", str(err)) from err
    return template, suffix or ".png"


def _filled(part: str, fields: Mapping[str, Any]) -> str:
    """A part of a path; values cannot add another."""
    made = part.format(**{name: _plain(value) for name, value in fields.items()})
    made = "".join(mark for mark in made if mark.isprintable())
    return made.encode()[:LONGEST_PART].decode(errors="ignore").strip() or "picture"


def _plain(value: Any) -> Any:
    """Text as a part of a file's name on any system: letters of any script, digits, and - for what is neither."""
    if not isinstance(value, str):
        return value
    text = re.sub(r"[^\w.+-]+", "-", unicodedata.normalize("NFC", value))
    return text[:LONGEST_VALUE].strip("-.")


def _next_number(folder: Path, part: str, ending: str) -> int:
    """One more than the largest number of what is in the folder, whatever its other fields are."""
    pattern = "".join(
        re.escape(literal) + ("" if field is None else r"(\d+)" if field == NUMBER else ".*")
        for literal, field, _, _ in Formatter().parse(part)
    )
    shaped = re.compile(f"{pattern}(-\\d+)?{re.escape(ending)}", flags=re.IGNORECASE)
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    return max((int(found[1]) for name in names if (found := shaped.fullmatch(name))), default=0) + 1


def _counted_up(path: Path) -> Generator[Path]:
    yield path
    for number in counting(2):
        yield path.with_name(f"{path.stem}-{number}{path.suffix}")


def _made(path: Path) -> bool:
    """Whether the file was made now, and is nobody else's."""
    try:
        path.open("xb").close()
    except FileExistsError:
        return False
    return True
