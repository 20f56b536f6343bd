"""A1111's API under /sdapi/v1: draw, look at progress, interrupt, and lists of what there is.

What is global there belongs to the API key here: its settings, its progress, and what it interrupts. HTTP Basic takes
the key as password.
"""

import secrets
import time
from collections.abc import Callable, Collection
from typing import Any

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from undertow.doors import shown
from undertow.errors import InvalidInput
from undertow.lookup import did_you_mean
from undertow.serving.api.auth import Reader, Submitter
from undertow.serving.api.bodies import read_json
from undertow.serving.api.compatible.a1111_answers import drawing_json, model_json, progress_json, task_json
from undertow.serving.api.compatible.a1111_options import changed, options_json, options_of, title_of
from undertow.serving.api.compatible.a1111_pictures import OnlyMasked
from undertow.serving.api.compatible.a1111_pictures import pictures_of as prepared_pictures
from undertow.serving.api.compatible.a1111_samplers import samplers_json, schedulers_json
from undertow.serving.api.compatible.a1111_words import (
    NAMES,
    UPSCALERS,
    Drawing,
    ImageToImage,
    TextToImage,
    echoed,
    task_label,
)
from undertow.serving.api.compatible.described import ANSWERS, takes, takes_object
from undertow.serving.api.compatible.waiting import finished, pictures_of, preview_of, refusing_with, submit
from undertow.serving.api.parts import Parts, Service
from undertow.serving.api.problems import Problem
from undertow.serving.api.queries import Query
from undertow.serving.catalog.entries import EMBEDDING
from undertow.serving.jobs import Job, JobState
from undertow.serving.store.records import ApiKey

BASIC = {"WWW-Authenticate": 'Basic realm="undertow"'}
LIVE = (JobState.QUEUED, JobState.RUNNING)
MOST_LIVE = 100
"""Jobs of a key that progress and interrupt look at."""
SUBSEEDS = 2**32


def refusal(problem: Problem) -> Response:
    """A1111's form (modules/api/api.py, `handle_exception`), with the sentence where its clients look."""
    usual = problem.response("")
    headers = {name: value for name, value in usual.headers.items() if name == "retry-after"}
    content = {"error": problem.code, "detail": problem.detail, "body": "", "errors": problem.detail}
    challenge = BASIC if problem.kind.status == 401 else {}
    return JSONResponse(content, status_code=problem.kind.status, headers={**headers, **challenge})


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
        pictures = pictures_of(service, job)
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


def _wanted(service: Parts, key: ApiKey, read: Drawing) -> tuple[dict[str, Any], OnlyMasked | None]:
    """The job, and how its pictures become whole. Errors: `InvalidInput`."""
    catalog = service.catalog
    kept = changed(service.store.key_options.get(key.id), read.override_settings, catalog)
    if read.override_settings and not read.override_settings_restore_afterwards:
        service.store.key_options.put(key.id, kept)
    options = options_of(kept, catalog)
    wanted = read.wanted(options, catalog.adapters(options.model), secrets.randbelow(SUBSEEDS))
    if not isinstance(read, ImageToImage):
        return wanted, None
    trained_size = catalog.model(options.model).trained_size
    fields, whole = prepared_pictures(read, service.settings.max_pixels, trained_size)
    return {**wanted, **fields}, whole


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


def _live(service: Parts, key: ApiKey, task: str | None) -> list[Job]:
    """Jobs of this API that wait or run, the newest first."""
    if task is not None:
        return service.store.jobs(key=key.id, states=LIVE, label=task_label(task), limit=MOST_LIVE)
    jobs = service.store.jobs(key=key.id, states=LIVE, limit=MOST_LIVE)
    return [job for job in jobs if job.label == task_label("") or job.label.startswith(f"{task_label('')} ")]


@router.get("/sdapi/v1/options", responses=ANSWERS)
async def show_options(key: Reader, service: Service) -> JSONResponse:
    """The key's own settings."""

    def read() -> dict[str, Any]:
        return options_json(service.store.key_options.get(key.id), service.catalog)

    return JSONResponse(await run_in_threadpool(read))


@router.post("/sdapi/v1/options", responses=ANSWERS, openapi_extra=takes_object("Settings, as GET has them."))
async def change_options(request: Request, key: Submitter, service: Service) -> JSONResponse:
    """Change settings, for this key alone."""
    given, _ = await read_json(request, service.settings.max_body_bytes)

    def write() -> None:
        options = service.store.key_options
        options.put(key.id, changed(options.get(key.id), given, service.catalog))

    await run_in_threadpool(write)
    return JSONResponse(None)


@router.post("/sdapi/v1/refresh-checkpoints", responses=ANSWERS)
@router.post("/sdapi/v1/refresh-loras", responses=ANSWERS, operation_id="refresh_loras")
async def refresh(key: Submitter, service: Service) -> JSONResponse:  # noqa: ARG001  # any key may
    """Look at the folders of models and adapters now."""
    await run_in_threadpool(service.catalog.refresh)
    return JSONResponse(None)


def _models(service: Parts) -> list[dict[str, Any]]:
    return [model_json(one, title_of(one)) for one in service.catalog.models.values()]


def _loras(service: Parts) -> list[dict[str, Any]]:
    loras = [one for one in service.catalog.adapters() if one.kind == "LoRA"]
    return [{"name": one.name, "alias": one.title or one.name, "path": one.name, "metadata": {}} for one in loras]


def _embeddings(service: Parts) -> dict[str, Any]:
    found = [one for one in service.catalog.adapters() if one.kind == EMBEDDING]
    about = {"step": None, "sd_checkpoint": None, "sd_checkpoint_name": None}
    loaded = {word: {**about, "shape": one.text_width} for one in found for word in one.words}
    return {"loaded": loaded, "skipped": {}}


def _upscalers(_: Parts) -> list[dict[str, Any]]:
    pixels = [name for name, how in UPSCALERS.items() if how == "pixels"]
    return [{"name": one, "model_name": None, "model_path": None, "model_url": None, "scale": 4} for one in pixels]


LISTS: dict[str, Callable[[Parts], Any]] = {
    "sd-models": _models,
    "loras": _loras,
    "embeddings": _embeddings,
    "samplers": lambda _: samplers_json(),
    "schedulers": lambda _: schedulers_json(),
    "upscalers": _upscalers,
    "latent-upscale-modes": lambda _: [{"name": name} for name, how in UPSCALERS.items() if how == "latent"],
    "scripts": lambda _: {"txt2img": [], "img2img": []},
    "script-info": lambda _: [],
    "cmd-flags": lambda _: {"api": True},
    **{
        name: lambda _: []
        for name in ("sd-vae", "hypernetworks", "face-restorers", "realesrgan-models", "prompt-styles", "extensions")
    },
}
"""What there is to choose from, by the last part of the path; much of what A1111 has, undertow has not."""


@router.get("/sdapi/v1/{name}", responses=ANSWERS)
async def show_list(name: str, key: Reader, service: Service) -> JSONResponse:  # noqa: ARG001  # any key may
    """What there is to choose from: sd-models, loras, samplers, schedulers, upscalers, embeddings and others."""
    if name not in LISTS:
        raise _missing(name, LISTS)
    return JSONResponse(await run_in_threadpool(LISTS[name], service))


@router.post("/sdapi/v1/{name}", include_in_schema=False)
async def refuse_others(name: str, key: Reader) -> JSONResponse:  # noqa: ARG001  # any key may
    """What A1111 does and undertow does not."""
    raise _missing(name, ("txt2img", "img2img", "interrupt", "options", "refresh-checkpoints", "refresh-loras"))


def _missing(name: str, known: Collection[str]) -> Problem:
    near = did_you_mean(name[:100], known)
    return Problem(
        "not_found", f"path is /sdapi/v1/{name[:100]}, expected one of {', '.join(known)}; {near}".rstrip("; ")
    )
