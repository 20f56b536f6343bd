"""A folder of pictures with captions: what a text-to-image model learns from.

Where a folder's captions are is one rule for all of its pictures, the first that applies:

- `metadata.jsonl`, one object a line with `file_name` and `text` (Hugging Face's "imagefolder");
- NAME.txt beside NAME.png (sd-scripts);
- the names of the files: "red_apple-03.png" shows "red apple".
"""

import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from undertow.errors import DataError, InvalidInput
from undertow.training.image_folder import ENDINGS, SHOWN, read_picture, square

METADATA = "metadata.jsonl"


@dataclass(frozen=True, kw_only=True)
class Crop:
    """Where a picture was cut out: height and width of its file, and the cut's place in it once resized, in pixels."""

    height: int
    width: int
    top: int
    left: int


@dataclass(frozen=True, kw_only=True, eq=False)
class CaptionedPictures:
    """Square pictures as bytes, with a caption each."""

    pixels: UInt8[Tensor, "count 3 size size"]
    captions: tuple[str, ...]
    crops: tuple[Crop, ...]

    def __len__(self) -> int:
        return len(self.captions)

    @property
    def size(self) -> int:
        """Pixels to a side."""
        return self.pixels.shape[-1]


def load_captioned(folder: Path, *, size: int) -> CaptionedPictures:
    """The pictures of `folder`, each resized and cropped to its center square, with their captions; see the module.

    Any Pillow mode is converted, transparent parts become white. Errors: `InvalidInput` for the size; `DataError` names
    pictures that cannot be read or have no caption.
    """
    if size < 8:
        raise InvalidInput("size", size, "at least 8 pixels")
    captions = _captions(folder)
    with ThreadPoolExecutor() as pool:  # Pillow decodes without the GIL
        read = list(pool.map(lambda file: _read(file, size), captions))
    bad = [(file, found) for file, found in zip(captions, read, strict=True) if isinstance(found, str)]
    if bad:
        names = [f"{file.relative_to(folder)} ({why})" for file, why in bad]
        raise DataError(
            folder, f"{len(bad)} of {len(read)} pictures cannot be read: {_some(names)}", "repair or remove"
        )
    good = [found for found in read if not isinstance(found, str)]
    return CaptionedPictures(
        pixels=torch.from_numpy(np.stack([pixels for pixels, _ in good])),
        captions=tuple(captions.values()),
        crops=tuple(crop for _, crop in good),
    )


def captioned_files(folder: Path) -> tuple[Path, ...]:
    """The files of `load_captioned`'s pictures, in its order. Errors: `DataError`."""
    return tuple(_captions(folder))


def caption_of_name(stem: str) -> str:
    """What a file's name says: its words, without a number behind them; empty when there are none."""
    words = re.sub(r"[_\-.\s]+", " ", stem).strip()
    return re.sub(r"(^|\s)\(?\d+\)?$", "", words).strip()


def _captions(folder: Path) -> dict[Path, str]:
    """Every picture of the folder, in order of names, and its caption."""
    if not folder.is_dir():
        raise DataError(folder, "there is no such folder", "name a folder of pictures with captions")
    if (folder / METADATA).is_file():
        return _from_metadata(folder)
    pictures = sorted(path for path in folder.iterdir() if path.suffix.lower() in ENDINGS)
    if not pictures:
        below = any(path.is_dir() and not path.name.startswith(".") for path in folder.iterdir())
        remedy = "put them into the folder itself, or list them in metadata.jsonl" if below else "add some"
        raise DataError(folder, f"no pictures in it ({', '.join(sorted(ENDINGS))})", remedy)
    beside = {path: path.with_suffix(".txt") for path in pictures}
    found = sum(text.is_file() for text in beside.values())
    if found:
        return _from_text_files(folder, beside, found)
    named = {path: caption_of_name(path.stem) for path in pictures}
    _require_captions(
        folder, named, "says nothing: there is no metadata.jsonl and no NAME.txt, so that captions are the files' names"
    )
    return named


def _from_text_files(folder: Path, beside: dict[Path, Path], found: int) -> dict[Path, str]:
    texts = {path: _read_text(text) if text.is_file() else "" for path, text in beside.items()}
    rule = f"has no caption: {found} of {len(beside)} pictures have a NAME.txt, and all need one that is not empty"
    _require_captions(folder, texts, rule)
    return texts


def _from_metadata(folder: Path) -> dict[Path, str]:
    path, captions = folder / METADATA, dict[Path, str]()
    for number, line in enumerate(_read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError as err:
            raise DataError(path, f"line {number} is not JSON ({err})", "write one object a line") from err
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


def _require_captions(folder: Path, captions: dict[Path, str], rule: str) -> None:
    empty = sorted(str(path.relative_to(folder)) for path, caption in captions.items() if not caption)
    if empty:
        raise DataError(folder, f"{_some(empty)} {rule}", "write a caption for each picture")


def _read_text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as err:
        raise DataError(path, f"it is not UTF-8 text ({err})", "save it again as UTF-8") from err
    return text if path.name == METADATA else " ".join(text.split())


def _read(file: Path, size: int) -> tuple[np.ndarray, Crop] | str:
    picture = read_picture(file)
    return picture if isinstance(picture, str) else (square(picture, size, 3), _crop(picture, size))


def _crop(picture: Image.Image, size: int) -> Crop:
    scale = size / min(picture.size)
    top, left = (round((length * scale - size) / 2) for length in (picture.height, picture.width))
    return Crop(height=picture.height, width=picture.width, top=top, left=left)


def _some(names: Sequence[str]) -> str:
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + rest
