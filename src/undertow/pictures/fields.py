"""Pictures in JSON: a file or the bytes of one, with a hash of the pixels, so that a description alone is enough.

{"size": [48, 32], "sha256": "...", "file": "photo.png"}    a file; its pixels must still be the same
{"size": [48, 32], "sha256": "...", "png": "iVBORw0..."}    the bytes of a PNG file, in base64
{"size": [48, 32], "sha256": "...", "name": "photo.png"}    neither: the picture has to be given again
"""

import reprlib
from base64 import b64decode, b64encode
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from PIL import Image
from pydantic import PlainSerializer, PlainValidator, WithJsonSchema

from undertow.errors import InvalidInput
from undertow.pictures.files import (
    PICTURE_KINDS,
    Picture,
    describe_picture,
    file_of,
    open_picture,
    opened,
    picture_from_bytes,
    require_same,
)
from undertow.pictures.modes import deep_levels

Info = Any
"""pydantic's `ValidationInfo` or `SerializationInfo`, which are protocols that cannot be checked while tests run."""


def _to_json(picture: Picture, embed: bool, files: bool) -> dict[str, Any]:
    """A description from which the picture is found again. embed: bytes, for one that came from no file. files: whether
    a file may be named by its path."""
    image = opened("picture", picture)
    described = describe_picture(image)
    if files and not isinstance(picture, Image.Image):
        return described | {"file": str(picture)}
    file = file_of(image)
    if files and file is not None and _holds(file, described):
        return described | {"file": str(file)}
    if not embed:
        return described if file is None else described | {"name": file.name}
    stored = _storable(image)
    return describe_picture(stored) | {"png": _png(stored)}


def _holds(file: Path, described: Mapping[str, Any]) -> bool:
    """Whether a file still has the pixels of an image that was opened from it: they may have been painted over."""
    try:
        return describe_picture(open_picture("picture", file)) == described
    except InvalidInput:
        return False


def _storable(image: Image.Image) -> Image.Image:
    """The image in a mode that PNG has and gives back: the same to `undertow.pictures.modes`, which reads them all."""
    deep = deep_levels(image)
    if deep is not None:
        return Image.fromarray(deep)
    if image.mode in ("1", "L", "LA", "RGB", "RGBA"):
        return image
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def _png(image: Image.Image) -> str:
    """The bytes of a PNG file in base64."""
    buffer = BytesIO()
    image.save(buffer, format="PNG")
    return b64encode(buffer.getvalue()).decode()


def _from_json(name: str, given: Any, remedy: str = "give the adapter again") -> Picture:
    """A file of a description as its path, bytes as an image, both compared with the hash. remedy: without either.
    Errors: `InvalidInput`."""
    if isinstance(given, Image.Image | str | Path):
        return given
    if isinstance(given, bytes | np.ndarray):
        return opened(name, given)
    if not isinstance(given, Mapping):
        raise InvalidInput(name, type(given).__name__, PICTURE_KINDS)
    if unknown := sorted(given.keys() - {"size", "sha256", "file", "png", "name"}):
        raise InvalidInput(name, ", ".join(map(repr, unknown)), "a picture's file or png, with its size and sha256")
    if (file := given.get("file")) is not None:
        if not Path(file).is_file():
            raise InvalidInput(name, str(file), "the file that the picture came from", f"it is gone: {remedy}")
        require_same(name, open_picture(name, file), given)
        return str(file)
    if (png := given.get("png")) is None:
        raise InvalidInput(name, "a picture of which only size and hash are stored", "its file or its bytes", remedy)
    try:
        content = b64decode(png, validate=True)
    except (ValueError, TypeError) as err:
        raise InvalidInput(name, reprlib.repr(png), "a PNG file in base64", str(err)) from err
    picture = picture_from_bytes(name, content)
    require_same(name, picture, given)
    return picture


def _read_image(given: Any, info: Info) -> Image.Image | None:
    name = info.field_name or "picture"
    return None if given is None else opened(name, _from_json(name, given, f"give it again (--{name})"))


def _read_pictures(given: Any, info: Info) -> Picture | tuple[Picture, ...] | None:
    name = info.field_name or "picture"
    if isinstance(given, list | tuple):
        return tuple(_from_json(name, one) for one in given) or None
    return None if given is None else _from_json(name, given)


def _write(given: Picture | tuple[Picture, ...] | None, info: Info) -> Any:
    context = info.context or {}
    embed, files = context.get("embed", True), context.get("files", True)
    if isinstance(given, tuple):
        return [_to_json(one, embed, files) for one in given]
    return None if given is None else _to_json(given, embed, files)


_PROPERTIES = {
    "size": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2},
    "sha256": {"type": "string", "description": "Of the pixels as RGBA; compared when it is there."},
}
_SCHEMA = {
    "anyOf": [
        {"type": "string", "description": "The path of a picture file."},
        {
            "type": "object",
            "properties": {"file": {"type": "string"}, **_PROPERTIES},
            "required": ["file"],
            "additionalProperties": False,
        },
        {
            "type": "object",
            "properties": {
                "png": {"type": "string", "contentEncoding": "base64", "contentMediaType": "image/png"},
                **_PROPERTIES,
            },
            "required": ["png"],
            "additionalProperties": False,
        },
        {"type": "null"},
    ]
}
_SEVERAL = {"anyOf": [{"type": "array", "items": {"anyOf": _SCHEMA["anyOf"][:-1]}}, *_SCHEMA["anyOf"]]}

ImageField = Annotated[
    Image.Image | None, PlainValidator(_read_image), PlainSerializer(_write), WithJsonSchema(_SCHEMA)
]
"""The type of a field that holds an image; a file in JSON is opened."""

PicturesField = Annotated[
    Picture | tuple[Picture, ...] | None,
    PlainValidator(_read_pictures),
    PlainSerializer(_write),
    WithJsonSchema(_SEVERAL),
]
"""The type of a field that holds pictures or their files; a file in JSON stays one, and is opened when it is used."""
