"""A1111's API under /sdapi/v1: draw, look at progress, interrupt. `lists` has the rest.

What is global there belongs to the API key here: its settings, its progress, and what it interrupts. HTTP Basic takes
the key as password.
"""

import secrets
import time
from io import BytesIO
from typing import Any

from fastapi import APIRouter
from PIL import Image
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse

from undertow.doors import shown
from undertow.errors import InvalidInput
from undertow.serving.api.auth import Reader, Submitter
from undertow.serving.api.bodies import read_json
from undertow.serving.api.compatible.a1111.answers import (
    Picture,
    drawing_json,
    progress_json,
    refusal,
    size_of,
    task_json,
)
from undertow.serving.api.compatible.a1111.control import with_controls
from undertow.serving.api.compatible.a1111.options import changed, options_of
from undertow.serving.api.compatible.a1111.pictures import OnlyMasked
from undertow.serving.api.compatible.a1111.pictures import pictures_of as prepared_pictures
from undertow.serving.api.compatible.a1111.png_info import png_info
from undertow.serving.api.compatible.a1111.words import (
    NAMES,
    Drawing,
    ImageToImage,
    TextToImage,
    echoed,
    task_label,
)
from undertow.serving.api.compatible.described import ANSWERS, takes, takes_object
from undertow.serving.api.compatible.waiting import finished, pictures_of, preview_of, refusing_with, submit
from undertow.serving.api.parts import Parts, Service
from undertow.serving.api.queries import Query
from undertow.serving.jobs import Job, JobState, StoredPicture
from undertow.serving.store.records import ApiKey

LIVE = (JobState.QUEUED, JobState.RUNNING)
MOST_LIVE = 100
"""Jobs of a key that progress and interrupt look at."""
SUBSEEDS = 2**32


router = APIRouter(route_class=refusing_with(refusal), tags=["A1111"])


@router.post("/sdapi/v1/txt2img", responses=ANSWERS, openapi_extra=takes(TextToImage))
async def text_to_image(request: Request, key: Submitter, service: Service) -> JSONResponse:
    """Draw pictures from a prompt, as A1111's clients ask for them."""
    given, _ = await read_json(request, service.settings.max_body_bytes)
    return await _draw(request, service, key, TextToImage.read(given), given)


@router.post("/sdapi/v1/img2img", responses=ANSWERS, openapi_extra=takes(ImageToImage))
async def image_to_image(request: Request, key: Submitter, service: Service) -> JSONResponse:
    """Draw over a picture, as A1111's clients ask for it."""
    given, _ = await read_json(request, service.settings.max_body_bytes)
    return await _draw(request, service, key, ImageToImage.read(given), given)


async def _draw(request: Request, service: Parts, key: ApiKey, read: Drawing, given: dict[str, Any]) -> JSONResponse:
    wanted, whole = await run_in_threadpool(_wanted, service, key, read)
    job = await finished(service, request, await submit(service, request, wanted, key, NAMES))

    def answer() -> dict[str, Any]:
        # Who interrupts gets what there is, as from A1111, which never refuses then.
        stopped = job.state is JobState.CANCELED
        pictures = _unfinished(service, job) if stopped else pictures_of(service, job)
        if whole is not None:
            pictures = [(one, whole.put_back(content)) for one, content in pictures]
        return drawing_json(
            pictures,
            job=job,
            read=read,
            parameters=echoed(given, read),
            model=service.catalog.model(job.spec.model),
            at=time.strftime("%Y%m%d%H%M%S", time.localtime(job.finished_at or service.clock())),
        )

    return JSONResponse(await run_in_threadpool(answer))


def _unfinished(service: Parts, job: Job) -> list[Picture]:
    """The newest preview of a job that was interrupted, in the size of its picture, if there is one."""
    try:
        content = service.artifacts.preview_path(job.id).read_bytes()
    except FileNotFoundError:
        return []
    height, width = size_of(job)
    enlarged = BytesIO()
    with Image.open(BytesIO(content)) as preview:
        preview.resize((width, height), Image.Resampling.LANCZOS).save(enlarged, format="PNG")
    content, seed = enlarged.getvalue(), job.spec.request["seed"]
    about = {"sha256": "", "media_type": "image/png", "bytes": len(content)}
    return [(StoredPicture(**about, width=width, height=height, seed=seed), content)]


def _wanted(service: Parts, key: ApiKey, read: Drawing) -> tuple[dict[str, Any], OnlyMasked | None]:
    """The job, and how its pictures become whole. Errors: `InvalidInput`."""
    catalog = service.catalog
    kept = changed(service.store.key_options.get(key.id), read.override_settings, catalog)
    if read.override_settings and not read.override_settings_restore_afterwards:
        service.store.key_options.put(key.id, kept)
    options = options_of(kept, catalog)
    wanted = read.wanted(options, catalog.adapters(options.model), secrets.randbelow(SUBSEEDS))
    max_pixels, whole = service.settings.max_pixels, None
    if isinstance(read, ImageToImage):
        trained_size = catalog.model(options.model).trained_size
        fields, whole = prepared_pictures(read, max_pixels, trained_size)
        wanted |= fields
    return with_controls(wanted, read.units, max_pixels, only_masked=whole is not None), whole


@router.get("/sdapi/v1/progress", responses=ANSWERS)
async def show_progress(request: Request, key: Reader, service: Service) -> JSONResponse:
    """How far the key's drawing is: all of it, or the task that force_task_id names."""
    query = Query(request, "skip_current_image", "force_task_id")
    skip = (query.text("skip_current_image") or "false").lower() in ("true", "1", "yes")
    task = query.text("force_task_id")

    def look() -> dict[str, Any]:
        jobs = _live(service, key, task)
        running = next((job for job in reversed(jobs) if job.state is JobState.RUNNING), None)
        preview = None if skip or running is None else preview_of(service, running)
        return progress_json(jobs, service.clock(), preview)

    return JSONResponse(await run_in_threadpool(look))


@router.post("/internal/progress", include_in_schema=False)
async def show_task(request: Request, key: Reader, service: Service) -> JSONResponse:
    """How far one task is, as A1111's own page asks."""
    given, _ = await read_json(request, service.settings.max_body_bytes)
    task, shown_one = given.get("id_task"), given.get("id_live_preview", -1)
    if not isinstance(task, str) or not isinstance(shown_one, int):
        raise InvalidInput("id_task", shown(task), "the force_task_id of a request")

    def look() -> dict[str, Any]:
        job = next(iter(service.store.jobs(key=key.id, label=task_label(task), limit=1)), None)
        wanted = job is not None and job.state is JobState.RUNNING and given.get("live_preview", True)
        preview = preview_of(service, job) if wanted and job is not None else None
        return task_json(job, service.clock(), preview, shown_one)

    return JSONResponse(await run_in_threadpool(look))


@router.post("/sdapi/v1/interrupt", responses=ANSWERS)
async def interrupt(request: Request, key: Submitter, service: Service) -> JSONResponse:
    """Cancel the key's drawing: all that was asked for by this API, or the task that force_task_id names."""
    task = Query(request, "force_task_id").text("force_task_id")

    def cancel() -> None:
        for job in _live(service, key, task):
            service.store.cancel(job.id, key.id)

    await run_in_threadpool(cancel)
    return JSONResponse({})


@router.post("/sdapi/v1/skip", responses=ANSWERS)
async def skip(key: Submitter, service: Service) -> JSONResponse:
    """Cancel what of the key's drawing runs now; what waits goes on."""

    def cancel() -> None:
        running = [job for job in _live(service, key, None) if job.state is JobState.RUNNING]
        for job in running[-1:]:
            service.store.cancel(job.id, key.id)

    await run_in_threadpool(cancel)
    return JSONResponse({})


@router.post("/sdapi/v1/png-info", responses=ANSWERS, openapi_extra=takes_object("image: a picture in base64."))
async def show_png_info(request: Request, key: Reader, service: Service) -> JSONResponse:  # noqa: ARG001  # any key may
    """What a picture's file says of how it was drawn."""
    given, _ = await read_json(request, service.settings.max_body_bytes)
    return JSONResponse(await run_in_threadpool(png_info, given, service.settings.max_pixels))


def _live(service: Parts, key: ApiKey, task: str | None) -> list[Job]:
    """Jobs of this API that wait or run, the newest first."""
    if task is not None:
        return service.store.jobs(key=key.id, states=LIVE, label=task_label(task), limit=MOST_LIVE)
    jobs = service.store.jobs(key=key.id, states=LIVE, limit=MOST_LIVE)
    return [job for job in jobs if job.label == task_label("") or job.label.startswith(f"{task_label('')} ")]
