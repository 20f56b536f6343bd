"""The service itself: what it has, how it stands, and whether it is well."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from undertow.serving.api.auth import Admin, Reader, Submitter, owner
from undertow.serving.api.bodies import read_json
from undertow.serving.api.openapi import PROBLEMS, gives, takes
from undertow.serving.api.parts import Parts, Service
from undertow.serving.api.queries import Query, query_parameters
from undertow.serving.api.submitting import planned
from undertow.serving.clock.timetable import FAIR
from undertow.serving.jobs import JobState, expected_at
from undertow.serving.metrics import TEXT, GaugeCollector, SnapshotCollector
from undertow.serving.store.records import PATIENCE, QueueEntry, StoreError, WorkerInfo

router = APIRouter()

SILENT_S = 5.0
"""A worker that wrote nothing for longer is taken for gone; it writes every second, whatever it does."""
STUCK_S = 120.0
"""A busy worker that ended no step for longer is not well, unless it says that its step may take longer."""


@router.get("/v1/models", responses=gives(None))
async def list_models(key: Reader, service: Service) -> JSONResponse:  # noqa: ARG001  # any key may
    """List the models that requests may name; the first is taken where they name none. suggested: fields that a request
    which leaves them out is drawn with; a model that was distilled to few steps has some. quicker: a
    model that draws the same in few steps."""
    return JSONResponse(await run_in_threadpool(models_json, service))


@router.get("/v1/adapters", responses=gives(None), openapi_extra=query_parameters(model={"type": "string"}))
async def list_adapters(request: Request, key: Reader, service: Service) -> JSONResponse:  # noqa: ARG001  # any key may
    """List adapters and embeddings by the names that requests use, and those that are not offered, with the reason."""
    model = Query(request, "model").text("model")
    return JSONResponse(await run_in_threadpool(_adapters, service, model))


@router.post("/v1/plan", responses=gives(None), openapi_extra=takes("JobRequest"))
async def plan_job(request: Request, key: Submitter, service: Service) -> JSONResponse:
    """Say what a job would need, and when it would be done if it were submitted now. Nothing is kept."""
    given, _ = await read_json(request, service.settings.max_body_bytes)
    return JSONResponse(await run_in_threadpool(planned, service, given, key))


@router.get("/v1/workers", responses=gives(None))
async def list_workers(key: Admin, service: Service) -> JSONResponse:  # noqa: ARG001  # an operator's
    """List the worker processes: device, loaded models, last step, state."""
    workers = await run_in_threadpool(service.store.workers.list)
    now = service.clock()
    return JSONResponse({"workers": [_worker(one, now) for one in workers]})


@router.get("/v1/state", responses=gives(None))
async def show_state(key: Reader, service: Service) -> JSONResponse:
    """Show the queue: everybody's in numbers, and the key's own jobs in it."""
    return JSONResponse(await run_in_threadpool(_state, service, owner(key)))


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}, **PROBLEMS})
async def show_metrics(key: Reader, service: Service) -> Response:  # noqa: ARG001  # any key may
    """Everything that is counted, for Prometheus."""
    return Response(await run_in_threadpool(_metrics, service), headers={"Content-Type": TEXT})


@router.get("/health/live", responses=gives(None))
async def is_alive() -> JSONResponse:
    """Whether this process answers."""
    return JSONResponse({"live": True})


@router.get("/health/ready", responses=gives(None, 200, 503, about="Ready, or why not."))
async def is_ready(service: Service) -> JSONResponse:
    """Whether jobs are drawn: the store can be written, and a worker has a model whose pictures are numbers, and did
    something lately. Jobs are accepted as long as the store can be written."""
    found = await run_in_threadpool(readiness, service)
    headers = {"Cache-Control": "no-store"} | ({} if found["ready"] else {"Retry-After": "5"})
    return JSONResponse(found, status_code=200 if found["ready"] else 503, headers=headers)


def models_json(service: Parts) -> dict[str, Any]:
    """As OpenAI's clients read a list of models, with what ours want to know beside it."""
    catalog = service.catalog
    models = [
        {
            "id": entry.name,
            "object": "model",
            "created": 0,
            "owned_by": "undertow",
            "family": entry.family,
            "dtype": entry.dtype,
            "size": entry.trained_size,
            "suggested": entry.suggested,
            "quicker": None if (quick := catalog.quicker(entry)) is None else quick.name,
            "default": entry.name == service.settings.default_model,
        }
        for entry in catalog.models.values()
    ]
    unusable = [name for name in service.settings.models if name not in catalog.models]
    skipped = [{"name": one.name, "reason": one.reason} for one in catalog.skipped if one.name in unusable]
    return {"object": "list", "data": models, "skipped": skipped}


def _adapters(service: Parts, model: str | None) -> dict[str, Any]:
    catalog = service.catalog
    found = [
        {"name": one.name, "kind": one.kind, "title": one.title, "model": one.model, "words": list(one.words)}
        for one in catalog.adapters(model)
    ]
    others = [one for one in catalog.skipped if one.name not in service.settings.models]
    return {"adapters": found, "skipped": [{"name": one.name, "reason": one.reason} for one in others]}


def _worker(info: WorkerInfo, now: float) -> dict[str, Any]:
    shown = {name: getattr(info, name) for name in ("name", "device", "pid", "host", "state", "started_at")}
    own = ("metrics", "problem", "place", "folder", FAIR, PATIENCE)
    data = {name: value for name, value in info.data.items() if name not in own}
    return {
        **shown,
        "models": list(info.models),
        "last_step_at": info.last_step_at,
        "seen_at": info.seen_at,
        "problem": _problem(info, now),
        **data,
    }


def _problem(info: WorkerInfo, now: float) -> str | None:
    """Why a worker draws nothing; `None` for one that is well."""
    if now - info.seen_at > SILENT_S:
        return f"it has said nothing for {now - info.seen_at:.0f} s"
    if info.state in ("starting", "draining"):
        return f"it is {info.state}"
    if "problem" in info.data:
        return f"it takes no jobs: {info.data['problem']}"
    if not info.models:
        return "it has no model loaded"
    faults = info.data.get("faults", {})
    if all(name in faults for name in info.models):
        return "; ".join(f"{name} draws no pictures: {faults[name]}" for name in info.models)
    allowed = max(STUCK_S, float(info.data.get(PATIENCE, 0.0)))
    if info.state == "busy" and now - (info.last_step_at or info.started_at) > allowed:
        return f"it has work and ended no step for {now - (info.last_step_at or info.started_at):.0f} s"
    return None


def readiness(service: Parts) -> dict[str, Any]:
    """Whether the service draws, and why not."""
    reasons: list[str] = []
    seconds = None
    try:
        seconds = service.store.check()
        now = service.clock()
        problems = {one.name: _problem(one, now) for one in service.store.workers.list()}
        if not any(problem is None for problem in problems.values()):
            reasons += [f"worker {name}: {problem}" for name, problem in problems.items()] or [
                "no worker has said hello"
            ]
    except StoreError as err:
        reasons.append(f"the store cannot be written: {err.problem}")
    return {"ready": not reasons, "reasons": reasons, "store_write_s": seconds}


def _state(service: Parts, key: str | None) -> dict[str, Any]:
    entries, now = service.store.queue(), service.clock()
    ends = [expected_at(entry.finish_at, now) for entry in entries if entry.finish_at is not None]
    own = [_entry(entry, place, now) for place, entry in enumerate(entries) if key is None or entry.key == key]
    return {
        "now": now,
        "queued": sum(entry.state is JobState.QUEUED for entry in entries),
        "running": sum(entry.state is JobState.RUNNING for entry in entries),
        "queue_limit": service.settings.queue_limit,
        "empty_at": max(ends, default=None),
        "jobs": own,
    }


def _entry(entry: QueueEntry, place: int, now: float) -> dict[str, Any]:
    return {
        "id": entry.id,
        "state": entry.state,
        "ahead": place,
        "model": entry.model,
        "progress": entry.progress.to_json(),
        "finish_at": None if entry.finish_at is None else expected_at(entry.finish_at, now),
        "attempt": entry.attempt,
    }


def _metrics(service: Parts) -> bytes:
    now = service.clock()

    def snapshots() -> Mapping[str, Mapping[str, Any]]:
        workers = service.store.workers.list(now - SILENT_S)
        return {f"{one.device}.{index}": one.data.get("metrics", {}) for index, one in enumerate(workers)}

    def gauges() -> list[tuple[str, str, str, Mapping[str, float]]]:
        entries = service.store.queue()
        states = Counter(entry.state.value for entry in entries)
        waiting = [entry for entry in entries if entry.state is JobState.QUEUED]
        oldest = max((now - entry.submitted_at for entry in waiting), default=0.0)
        return [
            ("jobs_now", "Jobs that are not final.", "state", {"queued": 0, "running": 0, **states}),
            ("queue_depth", "Jobs that wait.", "model", Counter(entry.model for entry in waiting)),
            ("queue_oldest_seconds", "Age of the job that waits longest.", "", {"": oldest}),
            ("queue_row_steps", "Forecast work that waits.", "", {"": sum(entry.cost for entry in waiting)}),
            ("ready", "Whether jobs are drawn.", "", {"": float(readiness(service)["ready"])}),
        ]

    return service.metrics.exposition(GaugeCollector(gauges), SnapshotCollector(snapshots))
