"""Adapters that come over HTTP: a file is looked at when it is here, and is kept only if a model of the service can use
it. The sentence that refuses it is the one with which the engine would."""

import os
import re
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from undertow.errors import InvalidInput, UndertowError
from undertow.serving.api.auth import Admin
from undertow.serving.api.bodies import SAFETENSORS_BODY, require_media_type
from undertow.serving.api.openapi import PROBLEMS, gives
from undertow.serving.api.parts import Parts, Service
from undertow.serving.api.problems import Problem
from undertow.serving.api.queries import Query, query_parameters
from undertow.serving.catalog.catalog import SAFETENSORS, misfit, reason_of
from undertow.serving.catalog.entries import AdapterEntry
from undertow.serving.catalog.reading import read_adapter

router = APIRouter()

_FILE = {"schema": {"type": "string", "format": "binary"}}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+()-]{0,119}")


@router.put(
    "/v1/adapters/{name}",
    status_code=201,
    responses=gives(None, 201, about="It is offered."),
    openapi_extra={
        "requestBody": {"required": True, "content": dict.fromkeys(SAFETENSORS_BODY, _FILE)},
        **query_parameters(model={"type": "string"}),
    },
)
async def put_adapter(name: str, request: Request, key: Admin, service: Service) -> JSONResponse:  # noqa: ARG001
    """Add an adapter: a safetensors file under the name that requests then use. It is refused, with the reason, unless
    it fits the model, or one of the service's where none is named."""
    model = Query(request, "model").text("model")
    if model is not None:
        service.catalog.model(model)
    bare = _require_name(name)
    require_media_type(request, *SAFETENSORS_BODY)
    folder = service.settings.adapter_uploads
    incoming = folder / f".{secrets.token_hex(8)}{SAFETENSORS}"
    try:
        await run_in_threadpool(folder.mkdir, parents=True, exist_ok=True)
        await _write(request.stream(), incoming, service.settings.max_adapter_bytes)
        entry = await run_in_threadpool(_accept, service, incoming, bare, model)
    except OSError as err:
        raise Problem("storage_full", f"the file cannot be kept: {err.strerror}", retry_after_s=60.0) from err
    finally:
        await run_in_threadpool(incoming.unlink, missing_ok=True)
    return JSONResponse(_view(entry), status_code=201)


@router.delete("/v1/adapters/{name}", status_code=204, responses={204: {"description": "It is gone."}, **PROBLEMS})
async def delete_adapter(name: str, key: Admin, service: Service) -> Response:  # noqa: ARG001
    """Remove an adapter that was added by PUT. Jobs that wait with it fail, with its name."""
    await run_in_threadpool(_remove, service, name.removesuffix(SAFETENSORS))
    return Response(status_code=204)


def _remove(service: Parts, name: str) -> None:
    """Errors: `Problem` for one that is not there, and for one that did not come by PUT."""
    service.catalog.refresh()
    found = [one for one in service.catalog.adapters() if one.name == name]
    if not found:
        raise Problem("not_found", f"adapter is {name[:120]!r}, expected one that GET /v1/adapters lists")
    folder = service.settings.adapter_uploads
    for one in found:
        if one.path.parent == folder:
            one.path.unlink(missing_ok=True)
            service.catalog.refresh()
            return
    detail = f"adapter is {name!r}, expected one that was added by PUT; the operator may remove it from its folder"
    raise Problem("adapter_not_uploaded", detail)


def _require_name(name: str) -> str:
    """Without its ending. Errors: `InvalidInput`."""
    bare = name.removesuffix(SAFETENSORS)
    if not _NAME.fullmatch(bare):
        expected = "1 to 120 letters, digits, spaces and . _ + - ( ), the name of a .safetensors file"
        raise InvalidInput("name", repr(name[:140]), expected, "rename the file")
    return bare


async def _write(parts: AsyncIterator[bytes], place: Path, most: int) -> None:
    """Errors: `Problem` for more bytes than that, `OSError`."""
    count = 0
    with place.open("xb") as file:
        try:
            async for part in parts:
                count += len(part)
                if count > most:
                    detail = (
                        f"the file has more than {most:,} bytes, expected at most so many; the operator may put it "
                    )
                    raise Problem("too_large", detail + "into a folder of --adapters")
                await run_in_threadpool(file.write, part)
        except ClientDisconnect as err:
            raise Problem("malformed", "the file ended before all of it was here; send it again") from err


def _accept(service: Parts, incoming: Path, name: str, model: str | None) -> AdapterEntry:
    """The adapter, in its place. Errors: `Problem` with the reason why it cannot be used; `InvalidInput` for a name
    that is taken."""
    catalog = service.catalog
    try:
        entry = read_adapter(incoming, name)
    except UndertowError as err:
        raise Problem("unreadable_file", f"{name}{SAFETENSORS} cannot be used: {reason_of(err)}") from err
    models = [catalog.model(model)] if model is not None else list(catalog.models.values())
    reasons = {one.name: misfit(entry, one) for one in models}
    if reasons and None not in reasons.values():
        said = "; ".join(f"for {model}: {reason}" for model, reason in reasons.items())
        raise Problem("adapter_mismatch", f"{name} is a {entry.kind} that fits no model here ({said})")
    taken = {one.name: one for one in catalog.adapters()}.get(name)
    if taken is None:
        os.replace(incoming, service.settings.adapter_uploads / f"{name}{SAFETENSORS}")
        catalog.refresh()
    elif taken.hash != entry.hash:
        raise InvalidInput("name", repr(name), "a name that no other adapter has", "rename the file")
    return catalog.adapter(name, model)


def _view(entry: AdapterEntry) -> dict[str, Any]:
    """As GET /v1/adapters lists it."""
    return {name: getattr(entry, name) for name in ("name", "kind", "title", "model")} | {"words": list(entry.words)}
