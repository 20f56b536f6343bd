"""Jobs: submit, follow, list and cancel. What is answered with 201 or 202 is durable."""

import secrets
from typing import Annotated, Any

from fastapi import APIRouter, Header
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse

from undertow.errors import InvalidInput
from undertow.serving.api.auth import Reader, Submitter, owner
from undertow.serving.api.bodies import read_json
from undertow.serving.api.finding import find_job
from undertow.serving.api.openapi import gives, takes
from undertow.serving.api.parts import Service
from undertow.serving.api.problems import Problem
from undertow.serving.api.queries import Query, query_parameters
from undertow.serving.api.requests import JobChange, read_jobs, require_client_id, require_idempotency_key, wait_of
from undertow.serving.api.submitting import submit_one, submit_together
from undertow.serving.api.views import BatchView, JobList, JobView, job_path, job_view
from undertow.serving.jobs import Job, JobState
from undertow.serving.store.records import Submitted
from undertow.serving.store.rows import is_id

router = APIRouter()

AT_ONCE = 200
"""Jobs of one answer."""

SUBMITTED = gives(JobView, 201, 202, 200, about="Accepted. 202: it waits or runs; 201: it is done; 200: it was known.")
WAITING = {
    "name": "Prefer",
    "in": "header",
    "schema": {"type": "string"},
    "description": "wait=N: answer when the job is done, or after N seconds.",
}
ONCE = {
    "name": "Idempotency-Key",
    "in": "header",
    "schema": {"type": "string", "maxLength": 255},
    "description": "The same key with the same body is the same job, however often it is sent.",
}


@router.post(
    "/v1/jobs",
    status_code=202,
    responses=SUBMITTED,
    openapi_extra={**takes("JobRequest"), "parameters": [WAITING, ONCE]},
)
async def submit_job(
    request: Request,
    key: Submitter,
    service: Service,
    prefer: Annotated[str | None, Header(include_in_schema=False)] = None,
    idempotency_key: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> JSONResponse:
    """Submit a job. It is durable when this answers."""
    once, wait_s = require_idempotency_key(idempotency_key), wait_of(prefer)
    given, _ = await read_json(request, service.settings.max_body_bytes)
    submitted = await run_in_threadpool(submit_one, service, given, key, idempotency_key=once)
    return await _answer(service, submitted, wait_s)


@router.put(
    "/v1/jobs/{client_id}",
    status_code=202,
    responses=SUBMITTED,
    openapi_extra={**takes("JobRequest"), "parameters": [WAITING]},
)
async def put_job(
    client_id: str,
    request: Request,
    key: Submitter,
    service: Service,
    prefer: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> JSONResponse:
    """Submit a job under a name of your own. The same request again is the same job; another one is a conflict."""
    require_client_id(client_id)
    wait_s = wait_of(prefer)
    given, _ = await read_json(request, service.settings.max_body_bytes)
    submitted = await run_in_threadpool(submit_one, service, given, key, client_id=client_id)
    return await _answer(service, submitted, wait_s)


@router.get(
    "/v1/jobs",
    responses=gives(JobList),
    openapi_extra=query_parameters(
        state={"type": "array", "items": {"type": "string", "enum": [state.value for state in JobState]}},
        label={"type": "string"},
        batch={"type": "string"},
        before={"type": "string", "description": "The id of a job: those before it are listed."},
        limit={"type": "integer", "minimum": 1, "maximum": AT_ONCE, "default": 50},
    ),
)
async def list_jobs(request: Request, key: Reader, service: Service) -> JSONResponse:
    """List jobs, the newest first."""
    query = Query(request, "state", "label", "batch", "before", "limit")
    states = tuple(JobState(one) for one in query.choices("state", [state.value for state in JobState]))
    limit = query.number("limit", 50, least=1, most=AT_ONCE)
    label, batch, before = query.text("label"), query.text("batch"), _page(query.text("before"))

    def read() -> list[Job]:
        return service.store.jobs(
            key=owner(key), states=states, batch=batch, label=label, before=before, limit=limit + 1
        )

    found = await run_in_threadpool(read)
    shown, now = found[:limit], service.clock()
    more = query.path_with(before=shown[-1].id) if len(found) > limit else None
    return JSONResponse(JobList(jobs=tuple(job_view(job, now) for job in shown), next=more).to_json())


@router.get("/v1/jobs/{job}", responses=gives(JobView), openapi_extra={"parameters": [WAITING]})
async def show_job(
    job: str,
    key: Reader,
    service: Service,
    prefer: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> JSONResponse:
    """Show a job: how far it is, when it will be done, its pictures, or why it failed."""
    wait_s = wait_of(prefer)
    found = await run_in_threadpool(find_job, service, job, key)
    if wait_s:
        found = await service.watch.finished(found, wait_s)
    return JSONResponse(job_view(found, service.clock()).to_json(), headers={"Cache-Control": "no-store"})


@router.patch("/v1/jobs/{job}", responses=gives(JobView), openapi_extra=takes("JobChange"))
async def change_job(job: str, request: Request, key: Submitter, service: Service) -> JSONResponse:
    """Change the priority of a job that waits; it goes before or behind the key's other jobs."""
    given, _ = await read_json(request, service.settings.max_body_bytes)
    priority = JobChange.from_json(given).priority

    def change() -> Job:
        changed = service.store.prioritize(find_job(service, job, key).id, priority, owner(key))
        if changed.state is not JobState.QUEUED and changed.priority != priority:
            detail = f"job is {changed.state}, expected queued: only the place of a job that waits can change"
            raise Problem("job_not_waiting", detail)
        return changed

    return JSONResponse(job_view(await run_in_threadpool(change), service.clock()).to_json())


@router.post("/v1/jobs/{job}/cancel", responses=gives(JobView))
@router.delete("/v1/jobs/{job}", responses=gives(JobView), operation_id="delete_job")
async def cancel_job(job: str, key: Submitter, service: Service) -> JSONResponse:
    """Cancel a job: at once while it waits, at its next step while it runs. A job that is done stays as it is."""

    def cancel() -> Job:
        return service.store.cancel(find_job(service, job, key).id, owner(key))

    return JSONResponse(job_view(await run_in_threadpool(cancel), service.clock()).to_json())


@router.post(
    "/v1/batches",
    status_code=202,
    responses=gives(BatchView, 202, 200, about="All are accepted."),
    openapi_extra={**takes("BatchRequest"), "parameters": [ONCE]},
)
async def submit_batch(
    request: Request,
    key: Submitter,
    service: Service,
    idempotency_key: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> JSONResponse:
    """Submit jobs together: all of them are accepted, or none."""
    once = require_idempotency_key(idempotency_key)
    given, _ = await read_json(request, service.settings.max_body_bytes)
    several = read_jobs(given)
    batch = f"batch_{secrets.token_hex(13)}"
    submitted = await run_in_threadpool(
        submit_together,
        service,
        several,
        key,
        batch=batch,
        idempotency_key=once,
    )
    jobs = [one.job for one in submitted]
    status = 202 if any(one.created for one in submitted) else 200
    name = jobs[0].batch or batch
    return JSONResponse(
        _batch(name, jobs, service.clock()), status_code=status, headers={"Location": f"/v1/batches/{name}"}
    )


@router.get("/v1/batches/{batch}", responses=gives(BatchView))
async def show_batch(batch: str, key: Reader, service: Service) -> JSONResponse:
    """Show the jobs of a batch, in the order in which they were submitted."""
    most = service.settings.queue_limit
    found = await run_in_threadpool(lambda: service.store.jobs(key=owner(key), batch=batch, limit=most))
    if not found:
        raise Problem("batch_not_found", f"there is no batch {batch[:100]!r}; batches go when their jobs expire")
    return JSONResponse(_batch(batch, found[::-1], service.clock()))


def _page(before: str | None) -> str | None:
    """A job that has expired meanwhile still says where a page begins. Errors: `InvalidInput`."""
    if before is not None and not is_id(before, "job"):
        remedy = "leave it out for the newest jobs, and follow `next`"
        raise InvalidInput("before", repr(before[:100]), "the id of a job", remedy)
    return before


def _batch(name: str, jobs: list[Job], now: float) -> dict[str, Any]:
    views = tuple(job_view(job, now) for job in jobs)
    ends = [view.finish_at for view in views if view.finish_at is not None]
    return BatchView(id=name, jobs=views, finish_at=max(ends, default=None)).to_json()


async def _answer(service: Service, submitted: Submitted, wait_s: float) -> JSONResponse:
    job = submitted.job
    if wait_s and not job.state.is_final:
        job = await service.watch.finished(job, wait_s)
    view = job_view(job, service.clock())
    headers = {"Location": job_path(job.id), "Cache-Control": "no-store"}
    if wait_s:
        headers["Preference-Applied"] = f"wait={wait_s:g}"
    if not job.state.is_final:
        status = 202
        headers["Retry-After"] = str(max(1, min(60, round(view.finish_in_s or 1))))
    else:
        status = 201 if submitted.created else 200
    return JSONResponse(view.to_json(), status_code=status, headers=headers)
