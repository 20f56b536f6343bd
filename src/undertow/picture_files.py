"""Pictures as a request names them: a PIL image, or the file that holds it."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from undertow.errors import InvalidInput

Picture = Image.Image | str | Path
"""A picture, or the file that holds it."""


def open_picture(name: str, path: str | Path) -> Image.Image:
    """The picture in a file, turned as its camera says. name: of the argument. Errors: `InvalidInput` without
    one."""
    if not Path(path).is_file():
        raise InvalidInput(name, str(path), "a picture file", "there is no such file")
    try:
        with Image.open(path) as image:
            picture = ImageOps.exif_transpose(image).copy()
    except (OSError, UnidentifiedImageError) as err:
        raise InvalidInput(name, str(path), "a picture that can be read", str(err)) from err
    vars(picture)["filename"] = str(path)  # as PIL itself keeps it, but not on copies
    return picture


def opened(name: str, picture: Picture) -> Image.Image:
    """The picture itself. Errors: `InvalidInput` for a file that is none."""
    return picture if isinstance(picture, Image.Image) else open_picture(name, picture)


def file_of(image: Image.Image) -> Path | None:
    """The file that an image was opened from, if it was; by now the pixels of either may be others."""
    name = vars(image).get("filename")
    return Path(name) if isinstance(name, str) and name else None


def several(given: Picture | tuple[Picture, ...] | None) -> tuple[Picture, ...]:
    """None, one or many, as many."""
    if given is None:
        return ()
    return given if isinstance(given, tuple) else (given,)


def describe_picture(picture: Image.Image) -> dict[str, Any]:
    """Size, and SHA-256 of the pixels."""
    return {"size": list(picture.size), "sha256": hashlib.sha256(picture.convert("RGBA").tobytes()).hexdigest()}


def require_same(name: str, picture: Image.Image, description: Mapping[str, Any]) -> None:
    """Errors: `InvalidInput` where the pixels are not those that were described; a description may have no hash."""
    found = describe_picture(picture)
    if any(description.get(key) not in (None, found[key]) for key in found):
        raise InvalidInput(name, "{}x{}".format(*picture.size), "the same picture as before", "its pixels differ")
