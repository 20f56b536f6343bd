"""OpenAI's images API: POST /v1/images/generations and /v1/images/edits; GET /v1/models is `operations`'.

A stream sends partial pictures out of our previews. The connection is kept open by comments, because middle boxes cut
silent ones."""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

import anyio
from fastapi import APIRouter
from python_multipart.exceptions import MultipartParseError
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from undertow.doors import nearest
from undertow.errors import InvalidInput
from undertow.serving.api.auth import Reader, Submitter
from undertow.serving.api.bodies import read_body, read_json, require_media_type
from undertow.serving.api.compatible.described import ANSWERS, inlined, takes
from undertow.serving.api.compatible.openai_words import (
    FIXED,
    NAMES,
    ImageEdit,
    ImageGeneration,
    event_json,
    images_json,
    in_format,
    partial_due,
)
from undertow.serving.api.compatible.texts import without_texts
from undertow.serving.api.compatible.waiting import (
    comes_back,
    finished,
    pictures_of,
    preview_of,
    problem_of,
    refusing_with,
    submit,
)
from undertow.serving.api.events import KEEP_ALIVE_S
from undertow.serving.api.operations import models_json
from undertow.serving.api.parts import Parts, Service
from undertow.serving.api.problems import Problem
from undertow.serving.api.views import artifact_path
from undertow.serving.jobs import Job
from undertow.serving.store.records import ApiKey

FORM = "multipart/form-data"
FIELD_BYTES = 64 * 1024
"""Of a field of a form that is no file."""
FIELDS = 32

TYPES = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
"""OpenAI's kinds of errors by status."""


def error_json(problem: Problem) -> dict[str, Any]:
    """OpenAI's form of a refusal."""
    status = _status(problem)
    code = "invalid_api_key" if status == 401 else "model_not_found" if _is_model(problem) else problem.code
    kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": problem.detail, "type": kind, "param": problem.more.get("argument"), "code": code}}


def refusal(problem: Problem) -> Response:
    """The same with headers: OpenAI's clients try again by themselves unless they are told not to."""
    usual = problem.response("")
    headers = {name: value for name, value in usual.headers.items() if name in ("retry-after", "www-authenticate")}
    headers["x-should-retry"] = str(problem.kind.fault == "transient").lower()
    return JSONResponse(error_json(problem), status_code=_status(problem), headers=headers)


def _is_model(problem: Problem) -> bool:
    return problem.code == "invalid_request" and problem.more.get("argument") == "model"


def _status(problem: Problem) -> int:
    """OpenAI says 400 of values that cannot be used, and 404 of models that there are not."""
    if _is_model(problem):
        return 404
    return 400 if problem.kind.status == 422 else problem.kind.status


router = APIRouter(route_class=refusing_with(refusal), tags=["OpenAI"])

DRAWN: dict[int | str, dict[str, Any]] = {
    **ANSWERS,
    200: {
        "description": "The pictures, or with stream their events.",
        "content": {"application/json": {"schema": {}}, "text/event-stream": {"schema": {}}},
    },
}


def _form_schema() -> dict[str, Any]:
    schema, file = inlined(ImageEdit), {"type": "string", "format": "binary"}
    return {
        **schema,
        "properties": {"image": file, "mask": file, **schema["properties"]},
        "required": ["image", *schema["required"]],
    }


@router.post("/v1/images/generations", responses=DRAWN, openapi_extra=takes(ImageGeneration))
async def generate_images(request: Request, key: Submitter, service: Service) -> Response:
    """Draw pictures, as OpenAI's clients ask for them. seed, negative_prompt, steps, guidance_scale and loras are
    undertow's own fields."""
    given, _ = await read_json(request, service.settings.max_body_bytes)
    asked = ImageGeneration.read(given)
    return await _answer(request, service, key, asked, asked.wanted(), "image_generation")


@router.post(
    "/v1/images/edits",
    responses=DRAWN,
    openapi_extra={"requestBody": {"required": True, "content": {FORM: {"schema": _form_schema()}}}},
)
async def edit_images(request: Request, key: Submitter, service: Service) -> Response:
    """Draw a picture anew, as a whole or where a mask is transparent. strength, seed, negative_prompt, steps,
    guidance_scale and loras are undertow's own fields."""
    fields, files = await _read_form(request, service.settings.max_body_bytes)
    asked = ImageEdit.read(without_texts(ImageEdit, fields))
    assert isinstance(asked, ImageEdit)
    pictures = files.get("image", [])
    if len(pictures) != 1:
        raise InvalidInput("image", f"{len(pictures)} files", "one", "further pictures have no place in an edit here")
    masks = files.get("mask", [])
    wanted = await run_in_threadpool(
        asked.wanted_of, pictures[0], masks[0] if masks else None, service.settings.max_pixels
    )
    return await _answer(request, service, key, asked, wanted, "image_edit")


@router.get("/v1/models/{name}", responses=ANSWERS)
async def show_model(name: str, key: Reader, service: Service) -> JSONResponse:  # noqa: ARG001  # any key may
    """Show a model, as an entry of the list."""

    def read() -> dict[str, Any]:
        known = service.catalog.model(name)
        return next(one for one in models_json(service)["data"] if one["id"] == known.name)

    return JSONResponse(await run_in_threadpool(read))


async def _answer(
    request: Request, service: Parts, key: ApiKey, asked: ImageGeneration, wanted: dict[str, Any], kind: str
) -> Response:
    job = await submit(service, request, wanted, key, NAMES)
    if asked.stream:
        return EventSourceResponse(
            _stream(request, service, job, asked, kind),
            ping=KEEP_ALIVE_S,
            ping_message_factory=lambda: ServerSentEvent(comment="still here"),
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )
    job = await finished(service, request, job)
    pictures = await run_in_threadpool(pictures_of, service, job)
    urls = [f"{str(request.base_url).rstrip('/')}{artifact_path(one.sha256)}" for one, _ in pictures]
    answer = images_json(
        pictures,
        created=service.clock(),
        output_format=asked.output_format,
        urls=urls if asked.response_format == "url" else None,
    )
    return JSONResponse(answer)


async def _stream(
    request: Request, service: Parts, job: Job, asked: ImageGeneration, kind: str
) -> AsyncIterator[ServerSentEvent]:
    """Partial pictures, then the final ones. A client that hangs up cancels its job."""
    sent, last = 0, b""
    try:
        while not job.state.is_final:
            seen = service.watch.seen
            job = await run_in_threadpool(service.store.job, job.id)
            if sent < asked.partial_images and not job.state.is_final:
                preview, now = await run_in_threadpool(preview_of, service, job), job.progress
                due = partial_due(sent, asked.partial_images, now.step, now.steps)
                if due and preview is not None and preview != last:
                    yield _event(
                        f"{kind}.partial_image",
                        event_json(
                            f"{kind}.partial_image",
                            await run_in_threadpool(in_format, preview, asked.output_format),
                            at=service.clock(),
                            size=_size(job),
                            output_format=asked.output_format,
                            index=sent,
                        ),
                    )
                    sent, last = sent + 1, preview
            if not job.state.is_final:
                await service.watch.changed(seen, KEEP_ALIVE_S)
        for event in await run_in_threadpool(_completed, service, job, asked, kind):
            yield event
    except Exception as err:
        yield _event("error", error_json(problem_of(err, request)))
    finally:
        if not job.state.is_final and not comes_back(request):
            with anyio.CancelScope(shield=True):
                await run_in_threadpool(service.store.cancel, job.id)


def _completed(service: Parts, job: Job, asked: ImageGeneration, kind: str) -> Sequence[ServerSentEvent]:
    """An event for each picture. Errors: `Problem` for a job that has none."""
    return [
        _event(
            f"{kind}.completed",
            event_json(
                f"{kind}.completed",
                content,
                at=service.clock(),
                size=(one.width, one.height),
                output_format=asked.output_format,
            ),
        )
        for one, content in pictures_of(service, job)
    ]


def _event(name: str, data: dict[str, Any]) -> ServerSentEvent:
    return ServerSentEvent(event=name, data=json.dumps(data))


def _size(job: Job) -> tuple[int, int]:
    """Width and height of the pictures that a job will have: its own, or those of the picture that it starts from."""
    request = job.spec.request
    width, height = request["size"][::-1] if request["size"] is not None else request["image"]["size"]
    return width, height


async def _read_form(request: Request, most: int) -> tuple[dict[str, str], dict[str, list[bytes]]]:
    """The fields of a form, and its files, by name. Errors: `Problem`, `InvalidInput`."""
    require_media_type(request, FORM)
    body = await read_body(request, most)

    async def parts() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(request.headers, parts(), max_files=FIELDS, max_fields=FIELDS, max_part_size=FIELD_BYTES)
    try:
        form = await parser.parse()
    except (MultiPartException, MultipartParseError, KeyError, UnicodeError) as err:
        raise Problem("malformed", f"body is no form, expected {FORM} with a boundary; {err}") from err
    try:
        return await _parted(form)
    finally:
        await form.close()


async def _parted(form: FormData) -> tuple[dict[str, str], dict[str, list[bytes]]]:
    fields: dict[str, str] = {}
    files: dict[str, list[bytes]] = {}
    for name, value in form.multi_items():
        bare = name.removesuffix("[]")
        if isinstance(value, UploadFile):
            if bare not in ("image", "mask"):
                if bare in FIXED:
                    raise InvalidInput(bare, "a file", "nothing", FIXED[bare].remedy)
                raise InvalidInput(name[:100], "a file", "image or mask", nearest(name[:100], ("image", "mask")))
            files.setdefault(bare, []).append(await value.read())
        elif bare in fields:
            raise InvalidInput(name[:100], "given twice", "once")
        elif value:
            fields[bare] = value
    return fields, files
