"""Jobs that are answered by a file, which whoever asked waits for."""

from typing import Any

from starlette.responses import FileResponse, JSONResponse, Response

from undertow.serving.api.openapi import PROBLEMS, reference
from undertow.serving.api.parts import Parts
from undertow.serving.api.problems import Problem
from undertow.serving.api.requests import wait_of
from undertow.serving.api.views import job_path, job_view
from undertow.serving.jobs import Job

WAIT_S = 60.0
"""Of clients that do not say how long they wait."""


def gives_file(media_type: str, schema: dict[str, Any], about: str) -> dict[int | str, dict[str, Any]]:
    """The answers of a route: the file, or the job that answers."""
    return {
        200: {"description": about, "content": {media_type: {"schema": schema}}},
        202: {
            "description": "Not yet: the job that answers.",
            "content": {"application/json": {"schema": reference("JobView")}},
        },
        **PROBLEMS,
    }


async def file_of(service: Parts, job: Job, prefer: str | None) -> Response:
    """The file that a job is answered by, or the job itself when it is not done yet. prefer: the header of that name.
    Errors: `Problem` for a job that failed."""
    job = await service.watch.finished(job, wait_of(prefer, WAIT_S))
    if not job.state.is_final:
        view = job_view(job, service.clock())
        return JSONResponse(view.to_json(), status_code=202, headers={"Location": job_path(job.id)})
    if job.result is None:
        raise _failed(job)
    (file,) = job.result.files
    headers = {"Location": job_path(job.id), "Cache-Control": "no-store"}
    return FileResponse(service.artifacts.path(file.sha256), media_type=file.media_type, headers=headers)


def _failed(job: Job) -> Problem:
    if job.failure is None:
        return Problem("not_ready", f"job {job.id} was {job.state} before it was answered", job=job.id)
    code = {"request": "invalid_request", "transient": "not_ready", "engine": "internal"}[job.failure.fault]
    return Problem(code, job.failure.detail, job=job.id, failure=job.failure.code)
