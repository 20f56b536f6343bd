"""Pictures as a request names them, brought to a PIL image: a file, the bytes of one, an array, or the image itself.

Pictures come from strangers, so this is the only place that decodes files: formats from a short list, a size that is
known before any pixel is decoded, and one sentence for whatever else is wrong.
"""

import hashlib
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from undertow.errors import InvalidInput, in_plain_words
from undertow.limits import PIXELS
from undertow.pictures.modes import FORMATS, deep_levels, loaded, require_format

Picture = Image.Image | str | Path
"""A picture, or the file that holds it."""

PICTURE_KINDS = "a PIL image, a NumPy array, or a picture's file by its path or its bytes"
"""What is read as a picture, in Python."""

ENDINGS = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"))
"""Of files that are taken for pictures where nobody names them one by one."""

_FOREIGN = {
    b"%!PS": "EPS or PostScript",
    b"\xc5\xd0\xd3\xc6": "EPS",
    b"%PDF": "PDF",
    b"8BPS": "Photoshop's PSD",
    b"\x76\x2f\x31\x01": "OpenEXR",
    b"<svg": "SVG",
    b"<?xml": "XML, perhaps SVG",
    b"\xff\x0a": "JPEG XL",
    b"\x00\x00\x00\x0cJXL ": "JPEG XL",
    b"\x00\x00\x00\x0cjP  ": "JPEG 2000",
}
"""First bytes of files that people take for pictures."""

_QUIET = Lock()
"""Which warnings are shown is one setting of the process."""


def open_picture(name: str, path: str | Path) -> Image.Image:
    """The picture in a file, turned as its camera says.

    name: of the argument. Errors: `InvalidInput` for what is no file, is in no format of `FORMATS`, is damaged, or
    has more pixels than `limits.PIXELS`.
    """
    _require_file(name, path)
    picture = _decoded(name, str(path), path)
    vars(picture)["filename"] = str(path)  # as PIL itself keeps it, but not on copies
    return picture


def picture_from_bytes(name: str, content: bytes) -> Image.Image:
    """The picture in the bytes of a file, as `open_picture`."""
    return _decoded(name, f"{len(content)} bytes", BytesIO(content))


def header_of(name: str, path: str | Path) -> Image.Image:
    """A picture file whose pixels are not read yet: its size, format and texts. To be closed. Errors: as
    `open_picture`, but for pixels."""
    _require_file(name, path)
    return _opened(name, str(path), path)


def header_of_bytes(name: str, content: bytes, most_pixels: int | None = None) -> Image.Image:
    """The same of the bytes of a file. most_pixels: that the picture may have, beside `limits.PIXELS`."""
    return _opened(name, f"{len(content)} bytes", BytesIO(content), most_pixels)


def opened(name: str, picture: Picture | bytes | np.ndarray) -> Image.Image:
    """The picture itself; of an array, as `Image.fromarray` reads it, floats from 0 to 1. Errors: `InvalidInput` for
    what is none, and for too many pixels."""
    match picture:
        case Image.Image():
            require_readable(name, picture)
            return picture
        case bytes():
            return picture_from_bytes(name, picture)
        case np.ndarray():
            return _from_array(name, picture)
        case _:
            return open_picture(name, picture)


def require_readable(name: str, picture: Image.Image) -> None:
    """Before Pillow decodes an image that the caller opened. Errors: `InvalidInput` for a format that is not read, and
    for more pixels than `limits.PIXELS`."""
    require_format(picture, name)
    require_pixels(name, picture.size)


def require_pixels(name: str, size: tuple[int, int], most: int | None = None) -> None:
    """Errors: `InvalidInput` for more than `most` or `limits.PIXELS`, of which a file of a few kilobytes can claim
    billions."""
    width, height = size
    if most is not None and width * height > most:
        raise InvalidInput(name, f"a picture of {width}x{height} pixels", f"at most {most:,} pixels", "make it smaller")
    PIXELS.require(name, width * height, f"a picture of {width}x{height} pixels", instead="make it smaller")


def _require_file(name: str, path: str | Path) -> None:
    if not Path(path).is_file():
        problem = "it is not a regular file" if Path(path).exists() else "there is no such file"
        raise InvalidInput(name, str(path), "a picture file", problem)


def _decoded(name: str, source: str, file: str | Path | BytesIO) -> Image.Image:
    try:
        with _opened(name, source, file) as image:
            image.load()
            with quiet_pillow():
                return ImageOps.exif_transpose(image)
    except InvalidInput:
        raise
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as err:
        raise InvalidInput(name, source, "a whole picture", f"it is damaged: {in_plain_words(err)}") from err


def _opened(name: str, source: str, file: str | Path | BytesIO, most_pixels: int | None = None) -> Image.Image:
    try:
        with quiet_pillow():
            image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError as err:
        found = _foreign(file)
        problem = f"it is {found}" if found else "it is none of these, or damaged"
        raise InvalidInput(name, source, "a picture (PNG, JPEG, WebP, TIFF, GIF, BMP)", problem) from err
    except Image.DecompressionBombError as err:
        pillow = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        most = min(pillow, PIXELS.most, most_pixels or PIXELS.most)
        value = f"a picture of more than {pillow:,} pixels"
        raise InvalidInput(name, value, f"at most {most:,} pixels", "make it smaller") from err
    # Text that unpacks to more than a megabyte, a profile that does.
    except (OSError, ValueError, SyntaxError, EOFError) as err:
        raise InvalidInput(name, source, "a picture that can be read", in_plain_words(err)) from err
    try:
        require_pixels(name, image.size, most_pixels)
    except InvalidInput:
        image.close()
        raise
    return image


@contextmanager
def quiet_pillow() -> Generator[None]:
    """Stands around what reads a header or EXIF, of which Pillow warns where they are damaged or large: the camera's
    data are not what users asked for, and what is too large is refused in our words. Not around decoding, which takes
    long: one thread at a time is in here."""
    with _QUIET, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        warnings.simplefilter("ignore", UserWarning)
        yield


def _foreign(file: str | Path | BytesIO) -> str | None:
    """What a file is that is no picture of ours."""
    if isinstance(file, BytesIO):
        start = file.getvalue()[:16]
    else:
        with open(file, "rb") as stream:
            start = stream.read(16)
    if start[4:8] == b"ftyp":
        return {b"avif": "AVIF", b"avis": "AVIF"}.get(start[8:12], "HEIC, or a film")
    return next((title for magic, title in _FOREIGN.items() if start.startswith(magic)), None)


def _from_array(name: str, array: np.ndarray) -> Image.Image:
    if array.ndim in (2, 3):
        require_pixels(name, (array.shape[1], array.shape[0]))
    if array.dtype.kind == "f" and array.ndim == 3:
        array = (array.clip(0, 1) * 255).round().astype(np.uint8)
    try:
        return Image.fromarray(array.astype(np.float32) if array.dtype.kind == "f" else array)
    except (TypeError, ValueError) as err:
        raise InvalidInput(
            name, f"an array {array.shape} of {array.dtype}", "[height, width] or [height, width, 3]", str(err)
        ) from err


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
    """Size, and SHA-256 of the pixels: as RGBA of 8 bits, of deep gray as its levels of 16 bits."""
    deep = deep_levels(loaded(picture))
    pixels = picture.convert("RGBA").tobytes() if deep is None else deep.astype("<u2").tobytes()
    return {"size": list(picture.size), "sha256": hashlib.sha256(pixels).hexdigest()}


def require_same(name: str, picture: Image.Image, description: Mapping[str, Any]) -> None:
    """Errors: `InvalidInput` where the pixels are not those that were described; a description may have no hash."""
    found = describe_picture(picture)
    if any(description.get(key) not in (None, found[key]) for key in found):
        raise InvalidInput(name, "{}x{}".format(*picture.size), "the same picture as before", "its pixels differ")
