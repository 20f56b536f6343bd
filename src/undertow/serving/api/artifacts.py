"""Pictures by the hash of their bytes: those of one's own jobs, and uploads for later requests."""

import hashlib
import logging
import re
from typing import Annotated

from fastapi import APIRouter, Header
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from undertow.serving.api.auth import Reader, Submitter, owner
from undertow.serving.api.bodies import media_type, read_body, require_media_type
from undertow.serving.api.finding import find_job
from undertow.serving.api.openapi import PROBLEMS, gives
from undertow.serving.api.parts import Parts, Service
from undertow.serving.api.previews import sniffed, want_previews
from undertow.serving.api.problems import Problem
from undertow.serving.api.views import PictureView, artifact_path
from undertow.serving.jobs import StoredFile
from undertow.serving.store.records import ApiKey, ArtifactNotFound
from undertow.serving.uploads import MEDIA_TYPES, decoded

logger = logging.getLogger(__name__)
router = APIRouter()

FOREVER = "private, max-age=31536000, immutable"
"""Bytes under a hash never change; they are for who has the key."""

UPLOAD_KEPT_S = 24 * 3600.0
"""Of uploads that no job uses."""

_HASH = re.compile(r"[0-9a-f]{64}")
_PICTURE = {
    200: {
        "description": "The bytes.",
        "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in MEDIA_TYPES.values()},
    },
    304: {"description": "The client has them already."},
    **PROBLEMS,
}
_UPLOAD = {
    "requestBody": {
        "required": True,
        "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in MEDIA_TYPES.values()},
    }
}


@router.head("/v1/artifacts/{sha256}", include_in_schema=False)
@router.get("/v1/artifacts/{sha256}", response_class=Response, responses=_PICTURE)
async def show_artifact(
    sha256: str,
    key: Reader,
    service: Service,
    if_none_match: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> Response:
    """The bytes of a picture that one of the key's jobs drew, or that it uploaded."""
    found = await run_in_threadpool(_find, service, sha256, key)
    headers = {"ETag": f'"{sha256}"', "Cache-Control": FOREVER, "X-Content-Type-Options": "nosniff"}
    if if_none_match is not None and (if_none_match.strip() == "*" or f'"{sha256}"' in if_none_match):
        return Response(status_code=304, headers=headers)
    path = service.artifacts.path(sha256)
    if not await run_in_threadpool(path.is_file):
        logger.error("the file of artifact %s is gone from %s", sha256, path)
        raise _missing(sha256)
    ending = found.media_type.partition("/")[2].removeprefix("x-")
    return FileResponse(
        path,
        media_type=found.media_type,
        headers=headers,
        filename=f"{sha256[:16]}.{ending}",
        content_disposition_type="inline",
    )


@router.post(
    "/v1/artifacts", status_code=201, responses=gives(PictureView, 201, about="It is there."), openapi_extra=_UPLOAD
)
async def upload_artifact(request: Request, key: Submitter, service: Service) -> JSONResponse:
    """Upload a picture, which requests then name as {"artifact": its hash}. It is kept for a day, and as long as a job
    uses it."""
    require_media_type(request, *dict.fromkeys(MEDIA_TYPES.values()))
    claimed = media_type(request)
    content = await read_body(request, service.settings.max_body_bytes)
    await run_in_threadpool(service.gate.spend, key)
    view = await run_in_threadpool(_keep, service, content, claimed, key)
    return JSONResponse(view.to_json(), status_code=201, headers={"Location": view.url})


@router.get("/v1/jobs/{job}/preview", response_class=Response, responses=_PICTURE)
async def show_preview(job: str, key: Reader, service: Service) -> Response:
    """How a running job looks now. The first time asks for previews; they come with the next steps."""

    def read() -> bytes:
        found = find_job(service, job, key)
        if found.state.is_final:
            detail = f"job is {found.state}, expected queued or running; its pictures are in GET /v1/jobs/{found.id}"
            raise Problem("preview_not_found", detail, may_retry=False)
        want_previews(service, found)
        try:
            return service.artifacts.preview_path(found.id).read_bytes()
        except FileNotFoundError:
            detail = f"job {found.id} has no preview yet; it is asked for now, come back after its next step"
            raise Problem("preview_not_found", detail, retry_after_s=1.0) from None

    content = await run_in_threadpool(read)
    return Response(content, media_type=sniffed(content), headers={"Cache-Control": "no-store"})


def _find(service: Parts, sha256: str, key: ApiKey) -> StoredFile:
    if not _HASH.fullmatch(sha256):
        raise _missing(sha256[:80])
    try:
        return service.store.artifact(sha256, owner(key))
    except ArtifactNotFound as err:
        raise _missing(sha256) from err


def _missing(sha256: str) -> Problem:
    return Problem(
        "artifact_not_found",
        f"there is no artifact {sha256!r}; pictures are removed when their job expires, and no retry brings them back: "
        "submit the job again",
    )


def _keep(service: Parts, content: bytes, claimed: str, key: ApiKey) -> PictureView:
    """Errors: `InvalidInput` for what is no picture, `Problem` for one of another type."""
    picture, found = decoded("picture", content, service.settings.max_pixels)
    if found != claimed:
        raise Problem("unsupported_media_type", f"content type is {claimed}, expected {found}, which the picture is")
    stored = StoredFile(sha256=hashlib.sha256(content).hexdigest(), media_type=found, bytes=len(content))
    service.artifacts.put(content)
    service.store.upload(key.id, stored, UPLOAD_KEPT_S)
    width, height = picture.size
    return PictureView(url=artifact_path(stored.sha256), **stored.to_json(), width=width, height=height)
