"""Pictures in a client's JSON: bytes in base64, or the hash of an earlier upload; never a path, never a URL.

{"artifact": "9f86d0..."}                     an earlier upload, or a picture of another job
{"png": "iVBORw0..."}, "iVBORw0..."           the bytes of a PNG, JPEG or WebP file, also as a data: URL
"""

import binascii
import hashlib
import re
from base64 import b64decode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from PIL import Image

from undertow.doors import shown
from undertow.errors import InvalidInput
from undertow.pictures.files import describe_picture, header_of_bytes, picture_from_bytes
from undertow.pictures.modes import MPO, loaded
from undertow.serving.jobs import StoredFile

MEDIA_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", MPO: "image/jpeg", "WEBP": "image/webp"}
ACCEPTED = "a PNG, JPEG or WebP file in base64, or {'artifact': its hash}"
REMEDY = "the service opens no paths and no URLs"

_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,")
_HASH = re.compile(r"[0-9a-f]{64}")


@runtime_checkable
class Artifacts(Protocol):
    """Where the bytes of pictures are kept; `ArtifactFolder` is one."""

    def put(self, content: bytes) -> str: ...
    def read(self, sha256: str) -> bytes: ...


@dataclass(kw_only=True)
class Uploads:
    """The pictures of one request. read: gives the bytes of an artifact that the client may use. max_pixels: of each.
    taken: by hash, what was uploaded with this request, to be kept once it is accepted."""

    read: Callable[[str], bytes]
    max_pixels: int
    taken: dict[str, bytes] = field(default_factory=dict)
    files: dict[str, StoredFile] = field(default_factory=dict)
    """By hash, all pictures of the request."""
    _hashes: dict[str, str] = field(default_factory=dict)

    def open(self, argument: str, given: Any) -> Image.Image:
        """The picture. Errors: `InvalidInput`."""
        content = self._content(argument, given)
        picture, media_type = decoded(argument, content, self.max_pixels)
        sha256 = hashlib.sha256(content).hexdigest()
        self.files[sha256] = StoredFile(sha256=sha256, media_type=media_type, bytes=len(content))
        self._hashes[describe_picture(picture)["sha256"]] = sha256
        return picture

    def named(self, described: Mapping[str, Any]) -> dict[str, Any]:
        """A picture's description in a spec. described: its size, and the hash of its pixels."""
        return {"artifact": self._hashes[described["sha256"]], "size": described["size"]}

    def _content(self, argument: str, given: Any) -> bytes:
        match given:
            case str():
                return self._take(argument, _DATA_URL.sub("", given, count=1))
            case {"artifact": str(sha256), **rest} if not rest.keys() - {"size"}:
                return self._artifact(argument, sha256)
            case {"png": str(text), **rest} if not rest.keys() - {"size", "sha256"}:
                return self._take(argument, text)
            case _:
                raise InvalidInput(argument, shown(given), ACCEPTED, REMEDY)

    def _artifact(self, argument: str, sha256: str) -> bytes:
        if sha256 in self.taken:
            return self.taken[sha256]
        try:
            if _HASH.fullmatch(sha256):
                return self.read(sha256)
        except (LookupError, OSError):
            pass
        raise InvalidInput(argument, repr(sha256[:70]), "the hash of a picture that is there", "upload it again")

    def _take(self, argument: str, text: str) -> bytes:
        try:
            content = b64decode(text, validate=True)
        except (binascii.Error, ValueError) as err:
            raise InvalidInput(argument, shown(text[:60]), ACCEPTED, REMEDY) from err
        self.taken[hashlib.sha256(content).hexdigest()] = content
        return content


def decoded(argument: str, content: bytes, max_pixels: int) -> tuple[Image.Image, str]:
    """The picture in the bytes of a file, with all its pixels, and its media type. Errors: `InvalidInput` for what is
    none, for another format, and for more pixels, before they are decoded."""
    with header_of_bytes(argument, content, max_pixels) as header:
        media_type = MEDIA_TYPES.get(header.format or "")
    if media_type is None:
        raise InvalidInput(argument, f"a {header.format} picture", "PNG, JPEG or WebP", "convert it")
    return loaded(picture_from_bytes(argument, content), argument), media_type
