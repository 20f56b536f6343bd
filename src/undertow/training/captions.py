"""Where the captions of a folder of pictures are. One rule holds for all of its pictures, the first that applies:

- `metadata.jsonl`, one object a line with `file_name` and `text` (Hugging Face's "imagefolder");
- NAME.txt or NAME.caption beside NAME.png (sd-scripts, which takes .caption unless it is told otherwise);
- the names of the files: "red_apple-03.png" shows "red apple".
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from undertow.errors import DataError, in_plain_words
from undertow.pictures.files import ENDINGS

SHOWN = 5
"""How many files an error lists."""

METADATA = "metadata.jsonl"
TEXT_ENDINGS = (".txt", ".caption")
OTHER_ENDINGS = (".cap", ".captions", ".csv", ".json", ".tags", ".text", ".tsv", ".xml", ".yaml", ".yml")
OTHER_FILES = ("metadata.csv", "metadata.json", "metadata.parquet", "meta_cap.json", "meta_lat.json", "captions.json")
"""Files in which other programs keep captions, beside each picture or for all, and which are not read here."""


@dataclass(frozen=True, kw_only=True)
class Captions:
    """The captions of a folder's pictures, in the order of file names. rule: where they were found, in words.
    without_picture: names of files with captions of pictures that are not there."""

    texts: Mapping[Path, str]
    rule: str
    without_picture: Sequence[str] = ()


def find_captions(folder: Path) -> Captions:
    """Finds the pictures of a folder and their captions, by the rule that the module describes.

    Errors: `DataError` names pictures without a caption, and files that look like captions and would not be read.
    """
    if not folder.is_dir():
        raise DataError(folder, "there is no such folder", "name a folder of pictures with captions")
    if (folder / METADATA).is_file():
        return Captions(texts=_from_metadata(folder), rule=f"from {METADATA}")
    pictures = sorted(path for path in folder.iterdir() if path.suffix.lower() in ENDINGS)
    if not pictures:
        below = any(path.is_dir() and not path.name.startswith(".") for path in folder.iterdir())
        remedy = "put them into the folder itself, or list them in metadata.jsonl" if below else "add some"
        raise DataError(folder, f"no pictures in it ({', '.join(sorted(ENDINGS))})", remedy)
    found = {ending: sum(path.with_suffix(ending).is_file() for path in pictures) for ending in TEXT_ENDINGS}
    used = [ending for ending, count in found.items() if count]
    if len(used) > 1:
        counted = " and ".join(f"{found[ending]} NAME{ending}" for ending in used)
        raise DataError(folder, f"captions in two places: {counted}", "keep one kind, for every picture")
    if used:
        return Captions(
            texts=_from_text_files(folder, pictures, used[0]),
            rule=f"from NAME{used[0]} beside them",
            without_picture=_without_picture(folder, pictures, used[0]),
        )
    _require_nothing_unread(folder, pictures)
    named = {path: caption_of_name(path.stem) for path in pictures}
    _require_captions(
        folder,
        named,
        "says nothing: there is no metadata.jsonl, no NAME.txt and no NAME.caption, so that captions are the files' "
        "names",
    )
    return Captions(texts=named, rule="from the files' names")


def caption_of_name(stem: str) -> str:
    """Returns the words of a file's name as a caption, without a number at the end; empty when there are no words."""
    words = re.sub(r"[_\-.\s]+", " ", stem).strip()
    return re.sub(r"(^|\s)\(?\d+\)?$", "", words).strip()


def some(names: Sequence[str]) -> str:
    """Returns the first few names, and how many more there are, as text."""
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + rest


def _from_text_files(folder: Path, pictures: Sequence[Path], ending: str) -> dict[Path, str]:
    beside = {path: path.with_suffix(ending) for path in pictures}
    texts = {path: " ".join(_read_text(text).split()) if text.is_file() else "" for path, text in beside.items()}
    found = sum(text.is_file() for text in beside.values())
    rule = f"has no caption: {found} of {len(beside)} pictures have a NAME{ending}, and all need one that is not empty"
    _require_captions(folder, texts, rule)
    return texts


def _without_picture(folder: Path, pictures: Sequence[Path], ending: str) -> list[str]:
    """Captions of pictures that are not there, or in a format that is not read."""
    beside = {path.with_suffix(ending) for path in pictures}
    return sorted(path.name for path in folder.iterdir() if path.suffix == ending and path not in beside)


def _require_nothing_unread(folder: Path, pictures: Sequence[Path]) -> None:
    """Refuses captions by name while there are files that look like captions."""
    stems, names = {path.stem for path in pictures}, {path.name for path in pictures}
    unread = sorted(
        path.name
        for path in folder.iterdir()
        if path.name in OTHER_FILES
        or (path.stem in stems and path.suffix.lower() in OTHER_ENDINGS)
        or (path.stem in names and path.suffix in TEXT_ENDINGS)  # "1.png.txt"
    )
    if unread:
        remedy = f"rename them to NAME.txt, or write {METADATA}; move them away if they hold no captions"
        raise DataError(folder, f"captions would be the files' names, and {some(unread)} would not be read", remedy)


def _from_metadata(folder: Path) -> dict[Path, str]:
    path, captions = folder / METADATA, dict[Path, str]()
    for number, line in enumerate(_read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as err:
            raise DataError(
                path, f"line {number} is not JSON ({in_plain_words(err)})", "write one object a line"
            ) from err
        name, text = (entry.get(key) if isinstance(entry, dict) else None for key in ("file_name", "text"))
        if not isinstance(name, str) or not isinstance(text, str):
            raise DataError(
                path, f"line {number} has no file_name and text", 'write {"file_name": "1.png", "text": "red apple"}'
            )
        if not (folder / name).is_file():
            raise DataError(path, f"line {number} names {name}, which is not there", "remove the line or add the file")
        captions[folder / name] = " ".join(text.split())
    if not captions:
        raise DataError(path, "it lists no picture", "write one object a line, or remove the file")
    unlisted = {file: "" for file in folder.iterdir() if file.suffix.lower() in ENDINGS and file not in captions}
    _require_captions(folder, captions | unlisted, "has no caption: its text in metadata.jsonl is missing or empty")
    return {file: captions[file] for file in sorted(captions)}


def _require_captions(folder: Path, captions: Mapping[Path, str], rule: str) -> None:
    empty = sorted(str(path.relative_to(folder)) for path, caption in captions.items() if not caption)
    if empty:
        raise DataError(folder, f"{some(empty)} {rule}", "write a caption for each picture")


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as err:
        raise DataError(path, f"it is not UTF-8 text ({err})", "save it again as UTF-8") from err
