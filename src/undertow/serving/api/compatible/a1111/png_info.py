"""What a picture's file says of how it was drawn, as A1111's `png-info` answers (modules/api/api.py)."""

import binascii
import re
from base64 import b64decode
from typing import Any

from undertow.doors import shown
from undertow.engine.exif import COMMENT_KEY, from_exif
from undertow.errors import InvalidInput
from undertow.infotext.settings import parse_infotext
from undertow.pictures.files import header_of_bytes

_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,")


def png_info(given: dict[str, Any], max_pixels: int) -> dict[str, Any]:
    """given: {"image": base64}. A picture that says nothing has an empty text. Errors: `InvalidInput`."""
    text = given.get("image")
    try:
        content = b64decode(_DATA_URL.sub("", text.strip(), count=1), validate=True) if isinstance(text, str) else b""
    except (binascii.Error, ValueError):
        content = b""
    if not content:
        raise InvalidInput("image", shown(text if not isinstance(text, str) else text[:60]), "a picture in base64")
    with header_of_bytes("image", content, max_pixels) as picture:
        said = {**picture.info, **from_exif(picture)}
    items = {str(name): value for name, value in said.items() if isinstance(value, str)}
    found = items.pop(COMMENT_KEY, "")
    return {"info": found, "items": {COMMENT_KEY: found, **items} if found else items, "parameters": _parameters(found)}


def _parameters(text: str) -> dict[str, str]:
    """As A1111 names them (`parse_generation_parameters`)."""
    if not text:
        return {}
    read = parse_infotext(text)
    size = re.fullmatch(r"(\d+)x(\d+)", read.settings.get("Size", ""))
    sides = {} if size is None else {"Size-1": size[1], "Size-2": size[2]}
    return {"Prompt": read.prompt, "Negative prompt": read.negative_prompt, **read.settings, **sides}
