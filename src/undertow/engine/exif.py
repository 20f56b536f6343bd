"""Texts in the EXIF block of JPEG and WebP files, which have no text chunks as PNG has.

A1111's text stands where A1111 writes it, as the user comment (modules/images.py, `save_image_with_geninfo`). Texts of
other names stand together as JSON in a private field, which other programs pass over.
"""

import json
from collections.abc import Mapping

from PIL import Image
from PIL.ExifTags import IFD, Base

COMMENT_KEY = "parameters"
"""The text that becomes the user comment."""

PRIVATE, MARK = 0xFE55, b"undertow\0"
"""Of the private fields (TIFF 6.0, page 8: from 32768 on), and what ours begins with."""

UNICODE, ENCODING = b"UNICODE\0", "utf-16-be"
"""How a user comment says its encoding (Exif 2.32, table 9), and which one A1111 means by it."""

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
    """The texts that `to_exif` stored, and A1111's; a block that is damaged has none."""
    try:
        exif = image.getexif()
        private, comment = exif.get(PRIVATE), exif.get_ifd(IFD.Exif).get(Base.UserComment)
        found = json.loads(private[len(MARK) :]) if isinstance(private, bytes) and private.startswith(MARK) else {}
        if isinstance(comment, bytes) and comment.startswith(UNICODE):
            found[COMMENT_KEY] = comment[len(UNICODE) :].decode(ENCODING)
    except (ValueError, TypeError, KeyError, SyntaxError, OSError):  # what Pillow and json raise for damaged blocks
        return {}
    return {name: text for name, text in found.items() if isinstance(text, str)}
