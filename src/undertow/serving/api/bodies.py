"""Bodies of requests, read under limits: bytes before they are all here, depth before JSON is parsed."""

import json
import re
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request

from undertow.serving.api.problems import Problem

JSON = "application/json"
SAFETENSORS_BODY = ("application/x-safetensors", "application/octet-stream")
"""Of a safetensors file, which has no registered type."""
DEPTH = 32
"""Of nested JSON; requests have five levels."""
SMALL = 64 * 1024
"""Bodies below it are parsed at once; larger ones would make other clients wait."""

_BRACKETS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{}]', flags=re.DOTALL)
"""Whole strings, and brackets outside of them; linear in the body, whatever it holds."""
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def media_type(request: Request) -> str:
    """The content type of the body, without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def require_media_type(request: Request, *expected: str) -> None:
    """Errors: `Problem` 415."""
    given = media_type(request)
    if given not in expected:
        raise Problem(
            "unsupported_media_type",
            f"content type is {given[:100]!r}, expected {' or '.join(expected)}; send it in the header Content-Type",
        )


async def read_body(request: Request, most: int) -> bytes:
    """The whole body. Errors: `Problem` 413 as soon as it is too large, from the header or while it comes in; 415 for
    one that is compressed."""
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding != "identity":
        raise Problem(
            "unsupported_media_type", f"content encoding is {coding[:100]!r}, expected none; send the body as it is"
        )
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > most:
        raise _too_large(f"{int(announced):,} bytes", most)
    parts, count = [], 0
    try:
        async for part in request.stream():
            count += len(part)
            if count > most:
                raise _too_large(f"more than {most:,} bytes", most)
            parts.append(part)
    except ClientDisconnect as err:
        raise Problem("malformed", "the body ended before all of it was here; send it again") from err
    return b"".join(parts)


async def read_json(request: Request, most: int) -> tuple[dict[str, Any], bytes]:
    """The object that the body holds, and the body. Errors: `Problem` 413, 415, 400 for what is no JSON."""
    require_media_type(request, JSON)
    body = await read_body(request, most)
    if len(body) < SMALL:
        return parse_object(body), body
    return await run_in_threadpool(parse_object, body), body


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object in bytes. Errors: `Problem` for other JSON and for none, for depth, NaN, names given twice and
    half surrogates, which no text of ours may hold."""
    _require_depth(body)
    try:
        found = json.loads(body.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_object)
        if _SURROGATE.search(body):
            json.dumps(found, ensure_ascii=False).encode("utf-8")
    except UnicodeError as err:
        raise Problem("malformed", f"body is no Unicode text, expected JSON in UTF-8; {err}") from err
    except ValueError as err:
        said = "a number has too many digits" if "set_int_max_str_digits" in str(err) else err
        raise Problem("malformed", f"body is no JSON, expected an object; {said}") from err
    if not isinstance(found, dict):
        raise Problem("malformed", f"body is {_kind(found)}, expected a JSON object")
    return found


def _kind(found: Any) -> str:
    """What JSON is besides an object, in its own words."""
    match found:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case _:
            return "a list"


def _require_depth(body: bytes) -> None:
    depth = 0
    for match in _BRACKETS.finditer(body):
        found = match[0]
        depth += found in (b"[", b"{")
        depth -= found in (b"]", b"}")
        if depth > DEPTH:
            raise Problem("malformed", f"body nests deeper than {DEPTH} levels, expected at most {DEPTH}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name[:100]!r} is given twice")
        found[name] = value
    return found


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number that JSON has")


def _too_large(value: str, most: int) -> Problem:
    return Problem(
        "too_large",
        f"body is {value}, expected at most {most:,} bytes; upload pictures with POST /v1/artifacts and name them by "
        "hash, or raise max_body_bytes of the service",
    )
