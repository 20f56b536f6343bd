"""Texts in the EXIF block of JPEG and WebP files, which have no text chunks as PNG has.

A1111's text stands where A1111 writes it, as the user comment (modules/images.py, `save_image_with_geninfo`). Texts of
other names stand together as JSON in a private field, which other programs pass over.
"""

import json
from collections.abc import Mapping

from PIL import Image
from PIL.ExifTags import IFD, Base

from undertow.pictures.files import quiet_pillow

COMMENT_KEY = "parameters"
"""The text that becomes the user comment."""

PRIVATE, MARK = 0xFE55, b"undertow\0"
"""Of the private fields (TIFF 6.0, page 8: from 32768 on), and what ours begins with."""

UNICODE, ENCODING = b"UNICODE\0", "utf-16-be"
"""How a user comment says its encoding (Exif 2.32, table 9), and which one A1111 means by it."""

ASCII = b"ASCII\0\0\0"

COMFY_KEYS = ("prompt", "workflow")

LONGEST_IN_JPEG = 65_533
"""Bytes of the whole block in a JPEG file, whose segments count them in 16 bits."""


def to_exif(texts: Mapping[str, str]) -> bytes:
    """An EXIF block with texts by name."""
    exif = Image.Exif()
    others = dict(texts)
    if (comment := others.pop(COMMENT_KEY, None)) is not None:
        exif.get_ifd(IFD.Exif)[Base.UserComment] = UNICODE + comment.encode(ENCODING, errors="replace")
    if others:
        exif[PRIVATE] = MARK + json.dumps(others).encode()
    return exif.tobytes()


def from_exif(image: Image.Image) -> dict[str, str]:
    """The texts that `to_exif` stored, A1111's, and ComfyUI's; a block that is damaged has none."""
    try:
        with quiet_pillow():
            exif = image.getexif()
            private, comment = exif.get(PRIVATE), exif.get_ifd(IFD.Exif).get(Base.UserComment)
        found = json.loads(private[len(MARK) :]) if isinstance(private, bytes) and private.startswith(MARK) else {}
        found |= _of_comfy(exif)
        if comment is not None:
            found[COMMENT_KEY] = _comment(comment)
    except (ValueError, TypeError, KeyError, SyntaxError, OSError, RecursionError):  # of Pillow and json
        return {}
    return {name: text for name, text in found.items() if isinstance(text, str)}


def _comment(comment: object) -> str | None:
    """A user comment's text. Some programs write UTF-16 with the low byte first, or say "ASCII" and write UTF-8."""
    if not isinstance(comment, bytes):
        return comment if isinstance(comment, str) else None
    if comment.startswith(UNICODE):
        text = comment[len(UNICODE) :]
        swapped = text[1::2].count(0) > text[::2].count(0)
        return text.decode("utf-16-le" if swapped else ENCODING)
    return comment[len(UNICODE) :].decode() if comment.startswith(ASCII) else None


def _of_comfy(exif: Image.Exif) -> dict[str, str]:
    """Texts of ComfyUI's WebP files: "name:JSON" in the fields for the camera (nodes_images.py, SaveAnimatedWEBP)."""
    texts = (exif.get(field) for field in (Base.Make, Base.Model, Base.ImageDescription))
    named = (text.partition(":") for text in texts if isinstance(text, str))
    return {name.lower(): text.rstrip("\0") for name, _, text in named if name.lower() in COMFY_KEYS}
