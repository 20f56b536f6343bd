"""The application: every router, one way to refuse, and what is around each request.

The APIs of others (`compatible`) are routers like ours. They take the same keys and submit with
`submitting.submit_one`; their route class turns `Problem` into their own form of refusal.
"""

import logging
import threading
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib import metadata
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from undertow.errors import UndertowError
from undertow.serving.admission import Admission
from undertow.serving.api import (
    adapter_files,
    artifacts,
    choices,
    diagnosis,
    events,
    jobs,
    operations,
    predict,
    studio,
)
from undertow.serving.api.around import Around
from undertow.serving.api.auth import Gate
from undertow.serving.api.compatible import agents, huggingface, openai
from undertow.serving.api.compatible.a1111 import lists as a1111_lists
from undertow.serving.api.compatible.a1111 import routes as a1111
from undertow.serving.api.openapi import complete
from undertow.serving.api.page import page
from undertow.serving.api.parts import Parts
from undertow.serving.api.problems import Problem, of_error, of_http, of_validation
from undertow.serving.api.watch import Watch
from undertow.serving.api.webhooks import Webhooks
from undertow.serving.artifacts import ArtifactFolder
from undertow.serving.catalog.catalog import Catalog
from undertow.serving.catalog.entries import ModelEntry
from undertow.serving.clock.timetable import Timetable
from undertow.serving.settings import ServerSettings
from undertow.serving.store.store import Store
from undertow.serving.tracing import Tracing, tracing_of

logger = logging.getLogger(__name__)

ROUTERS: tuple[APIRouter, ...] = (
    jobs.router,
    events.router,
    artifacts.router,
    predict.router,
    diagnosis.router,
    operations.router,
    choices.router,
    adapter_files.router,
)
COMPATIBLE: tuple[APIRouter, ...] = (
    openai.router,
    a1111.router,
    a1111_lists.router,
    huggingface.router,
    agents.router,
)
"""The APIs of others."""

ABOUT = """Draw pictures with Stable Diffusion's U-Nets. Submit a job, follow it, fetch its pictures; every accepted job
is durable and carries the time when it will be done. Every refusal is RFC 9457 problem details."""


def create_app(
    settings: ServerSettings,
    store: Store | None = None,
    *,
    artifact_folder: ArtifactFolder | None = None,
    catalog: Catalog | None = None,
    routers: Sequence[APIRouter] = (),
    tracing: Tracing | None = None,
) -> FastAPI:
    """The API of a service. store: opened as the settings say, and closed with the application, when `None`.
    artifact_folder, catalog: made of the settings when `None`. routers: further ones. tracing:
    as the settings say when `None`. Errors: `StoreError`; `MissingDependency` where there is nothing to trace with."""
    told = tracing_of(settings.telemetry) if tracing is None else tracing
    own = store is None
    folder = ArtifactFolder(settings.data / "artifacts") if artifact_folder is None else artifact_folder
    if store is None:
        store = Store.open(
            settings.database_url,
            attempts=settings.attempts,
            keep_s=settings.keep_s,
            has_file=folder.touch,
            logged=folder.logged,
        )
    listed = Catalog(settings, device=settings.devices[0]) if catalog is None else catalog

    def readable(sha256: str, key: str) -> bytes:
        store.artifact(sha256, key)
        return folder.read(sha256)

    times = Timetable(store, settings)
    parts = Parts(
        settings=settings,
        store=store,
        artifacts=folder,
        catalog=listed,
        admission=Admission(listed, folder, settings, times=times, readable=readable, clock=store.clock),
        times=times,
        gate=Gate(store, public=settings.is_public, cors=settings.cors),
        watch=Watch(store),
        clock=store.clock,
    )
    app = FastAPI(
        title="undertow",
        version=metadata.version("undertow"),
        description=ABOUT,
        docs_url=None,
        redoc_url=None,
        lifespan=_lifespan(parts, own, told),
    )
    app.state.parts = parts
    for router in (*ROUTERS, *COMPATIBLE, *routers, *((studio.router,) if settings.page else ())):
        app.include_router(router)
    app.openapi = _described(app, app.openapi)

    @app.get("/docs", include_in_schema=False)
    def show_page() -> HTMLResponse:  # pyright: ignore[reportUnusedFunction]  # a route
        return HTMLResponse(page(app.openapi()))

    for kind, answer in _HANDLERS.items():
        app.add_exception_handler(kind, answer)
    if settings.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors),
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["Location", "Retry-After", "ETag"],
        )
    app.add_middleware(Around, metrics=parts.metrics, tracing=told)
    return app


def _lifespan(parts: Parts, own: bool, tracing: Tracing) -> Callable[[FastAPI], Any]:
    """own: whether the store is closed with the application."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        threading.Thread(target=_hash, args=(parts.catalog,), name="undertow-hashes", daemon=True).start()
        webhooks = Webhooks(parts) if parts.settings.webhooks else None
        if webhooks is not None:
            webhooks.start()
        try:
            yield
        finally:
            if webhooks is not None:
                webhooks.close()
            tracing.close()
            if own:
                parts.store.close()

    return lifespan


def _hash(catalog: Catalog) -> None:
    """Reads every file once, so that the first job that names a large model need not wait for that."""
    for entry in (*catalog.models.values(), *catalog.adapters()):
        try:
            _ = entry.a1111_hash if isinstance(entry, ModelEntry) else entry.hash
            _ = entry.hash
        except OSError as err:  # which the job that names it is told
            logger.warning("%s cannot be read: %s", entry.name, err)


def _described(app: FastAPI, usual: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    """The description, made once."""

    def description() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = complete(usual())
        return app.openapi_schema

    return description


async def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return error.response(request.url.path)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return of_http(error, request).response(request.url.path)


async def _validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return of_validation(error.errors()).response(request.url.path)


async def _undertow(request: Request, error: Exception) -> Response:
    assert isinstance(error, UndertowError)
    return of_error(error, request.url.path).response(request.url.path)


_HANDLERS: Mapping[type[Exception], Any] = {
    Problem: _problem,
    HTTPException: _http,
    RequestValidationError: _validation,
    UndertowError: _undertow,
}
