"""The studio at /: files that `make page` built from page/, and that ship in the package. They are public, and say
nothing of the service: what the page shows it asks of the API, with a key where one is needed."""

import gzip
import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Annotated

from fastapi import APIRouter, Header
from starlette.responses import Response

from undertow.serving.api.problems import Problem

FOLDER = "page"
"""In `undertow.serving`."""

TYPES = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
}
"""By how a name ends; other files are not served."""

AGAIN = "no-cache"
"""Ask each time whether it is still so: a new version of the package has a new page."""
FOREVER = "public, max-age=31536000, immutable"
"""Of files whose names change with their bytes."""

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
"""What the page may load: nothing that does not come from this service."""

HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Vary": "Accept-Encoding",
}

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True, kw_only=True)
class StaticFile:
    """A file of the page, ready to be sent. etag: of its bytes, for both codings a different one."""

    content: bytes
    compressed: bytes
    media_type: str
    etag: str


@cache
def static_files() -> dict[str, StaticFile]:
    """By path below the page's folder: index.html, assets/..."""
    root = resources.files("undertow.serving").joinpath(FOLDER)
    found: dict[str, StaticFile] = {}
    for prefix, folder in (("", root), ("assets/", root.joinpath("assets"))):
        for entry in folder.iterdir():
            kind = TYPES.get(entry.name.rpartition(".")[2])
            if kind is None or not entry.is_file():
                continue
            content = entry.read_bytes()
            found[prefix + entry.name] = StaticFile(
                content=content,
                compressed=gzip.compress(content, mtime=0),
                media_type=kind,
                etag=hashlib.sha256(content).hexdigest()[:32],
            )
    return found


@router.head("/")
@router.get("/")
async def show_studio(
    accept_encoding: Annotated[str | None, Header()] = None, if_none_match: Annotated[str | None, Header()] = None
) -> Response:
    """The page itself."""
    return _answer("index.html", AGAIN, accept_encoding, if_none_match)


@router.head("/assets/{name}")
@router.get("/assets/{name}")
async def show_asset(
    name: str,
    accept_encoding: Annotated[str | None, Header()] = None,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """What the page loads."""
    return _answer(f"assets/{name}", FOREVER, accept_encoding, if_none_match)


def _answer(path: str, kept: str, accept_encoding: str | None, if_none_match: str | None) -> Response:
    file = static_files().get(path)
    if file is None:
        raise Problem("not_found", f"there is no {path[:100]!r} in the studio; load its page again")
    small = accept_encoding is not None and "gzip" in accept_encoding
    etag = f'"{file.etag}-gzip"' if small else f'"{file.etag}"'
    headers = {**HEADERS, "Cache-Control": kept, "ETag": etag}
    if if_none_match is not None and (if_none_match.strip() == "*" or etag in if_none_match):
        return Response(status_code=304, headers=headers)
    if small:
        headers["Content-Encoding"] = "gzip"
    return Response(file.compressed if small else file.content, media_type=file.media_type, headers=headers)
