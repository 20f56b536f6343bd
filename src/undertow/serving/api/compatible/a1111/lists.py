"""What A1111's clients ask before they draw: settings, which belong to the API key, and lists of what there is."""

from collections.abc import Callable, Collection
from typing import Any

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse

from undertow.lookup import did_you_mean
from undertow.serving.api.auth import Reader, Submitter
from undertow.serving.api.bodies import read_json
from undertow.serving.api.compatible.a1111.answers import model_json, refusal
from undertow.serving.api.compatible.a1111.options import changed, options_json, title_of
from undertow.serving.api.compatible.a1111.samplers import samplers_json, schedulers_json
from undertow.serving.api.compatible.a1111.words import UPSCALERS
from undertow.serving.api.compatible.described import ANSWERS, takes_object
from undertow.serving.api.compatible.waiting import refusing_with
from undertow.serving.api.parts import Parts, Service
from undertow.serving.api.problems import Problem
from undertow.serving.catalog.entries import EMBEDDING, AdapterEntry

router = APIRouter(route_class=refusing_with(refusal), tags=["A1111"])


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


REFRESHING = ("refresh-checkpoints", "refresh-loras")


@router.post("/sdapi/v1/refresh-checkpoints", responses=ANSWERS)
@router.post("/sdapi/v1/refresh-loras", responses=ANSWERS, operation_id="refresh_loras")
async def refresh(key: Submitter, service: Service) -> JSONResponse:  # noqa: ARG001  # any key may
    """Look at the folders of models and adapters now."""
    await run_in_threadpool(service.catalog.refresh)
    return JSONResponse(None)


def _adapters(service: Parts) -> list[AdapterEntry]:
    """Each name once: models may come with adapters of the same names, and a request means those of its own."""
    return list({one.name: one for one in reversed(service.catalog.adapters())}.values())[::-1]


def _models(service: Parts) -> list[dict[str, Any]]:
    return [model_json(one, title_of(one)) for one in service.catalog.models.values()]


def _loras(service: Parts) -> list[dict[str, Any]]:
    loras = [one for one in _adapters(service) if one.kind == "LoRA"]
    return [{"name": one.name, "alias": one.title or one.name, "path": one.name, "metadata": {}} for one in loras]


def _embeddings(service: Parts) -> dict[str, Any]:
    found = [one for one in service.catalog.adapters() if one.kind == EMBEDDING]
    about = {"step": None, "sd_checkpoint": None, "sd_checkpoint_name": None}
    loaded = {word: {**about, "shape": one.text_width} for one in found for word in one.words}
    return {"loaded": loaded, "skipped": {}}


def _upscalers(_: Parts) -> list[dict[str, Any]]:
    pixels = [name for name, how in UPSCALERS.items() if how == "pixels"]
    return [{"name": one, "model_name": None, "model_path": None, "model_url": None, "scale": 4} for one in pixels]


def _controls(service: Parts) -> list[str]:
    return [one.name for one in _adapters(service) if one.reads_pictures and one.kind != "IP-Adapter"]


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
    raise _missing(name, ("txt2img", "img2img", "interrupt", "skip", "png-info", "options", *REFRESHING))


def _missing(name: str, known: Collection[str]) -> Problem:
    near = did_you_mean(name[:100], known)
    return Problem(
        "not_found", f"path is /sdapi/v1/{name[:100]}, expected one of {', '.join(known)}; {near}".rstrip("; ")
    )


@router.get("/controlnet/{name}", responses=ANSWERS)
async def show_controls(name: str, key: Reader, service: Service) -> JSONResponse:  # noqa: ARG001  # any key may
    """What sd-webui-controlnet lists: model_list, module_list, version."""
    known: dict[str, Any] = {"model_list": _controls, "module_list": lambda _: ["none"], "version": lambda _: 2}
    if name not in known:
        raise _missing(name, known)
    return JSONResponse({name: await run_in_threadpool(known[name], service)})
