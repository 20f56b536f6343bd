"""What the APIs of others have in common: a client that waits for its pictures, and refusals in another form."""

import asyncio
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from undertow.errors import InvalidInput, PromptError, UndertowError
from undertow.serving.api.parts import Parts
from undertow.serving.api.previews import want_previews
from undertow.serving.api.problems import Problem, incident, of_error, of_http, of_validation
from undertow.serving.api.requests import require_idempotency_key
from undertow.serving.api.submitting import submit_one
from undertow.serving.jobs import Job, JobState, StoredPicture
from undertow.serving.store.records import ApiKey

_FIELD = re.compile(r"\w+")
"""The field of a request that an argument begins with, as in adapters[0].name."""


def refusing_with(answer: Callable[[Problem], Response]) -> type[APIRoute]:
    """A class of routes that refuse in a form of their own, whatever was refused, or went wrong."""

    class Route(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Any]:
            usual = super().get_route_handler()

            async def handle(request: Request) -> Response:
                try:
                    return await usual(request)
                except Exception as err:
                    return answer(problem_of(err, request))

            return handle

    return Route


def problem_of(error: Exception, request: Request) -> Problem:
    """What an error means to a client; what nobody foresaw is an incident."""
    match error:
        case Problem():
            return error
        case UndertowError():
            return of_error(error, request.url.path)
        case RequestValidationError():
            return of_validation(error.errors())
        case HTTPException():
            return of_http(error, request)
        case _:
            return incident(error, request.url.path)


async def submit(
    service: Parts, request: Request, wanted: Mapping[str, Any], key: ApiKey, names: Mapping[str, str]
) -> Job:
    """A job that its client waits for. names: what the client calls our fields, so that it understands what is refused.
    Errors: those of `submit_one`."""
    once = require_idempotency_key(request.headers.get("idempotency-key"))
    try:
        return (await run_in_threadpool(submit_one, service, wanted, key, idempotency_key=once)).job
    except PromptError:
        raise
    except InvalidInput as err:
        raise renamed(err, names) from err


def renamed(error: InvalidInput, names: Mapping[str, str]) -> InvalidInput:
    """The refusal of an argument by the name that a client has for it."""
    ours = _FIELD.match(error.argument)
    if ours is None or ours[0] not in names:
        return error
    theirs = names[ours[0]] + error.argument[ours.end() :]
    return InvalidInput(theirs, error.value, error.expected, error.remedy)


def comes_back(request: Request) -> bool:
    """Whether the client can ask for the same job again, so that it goes on when the client hangs up."""
    return "idempotency-key" in request.headers


async def finished(service: Parts, request: Request, job: Job) -> Job:
    """The job when it is final. Where the client hangs up first, the job is canceled, unless the client can come back
    for it. Errors: `Problem` for a client that is gone, which nobody reads."""
    if job.state.is_final:
        return job
    done = asyncio.ensure_future(service.watch.finished(job, math.inf))
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((done, gone), return_when=asyncio.FIRST_COMPLETED)
        if done.done():
            return done.result()
    finally:
        done.cancel()
        gone.cancel()
    if not comes_back(request):
        await run_in_threadpool(service.store.cancel, job.id)
    raise Problem("job_canceled", f"the client of job {job.id} hung up")


async def _gone(request: Request) -> None:
    """Returns when the client has hung up. Its body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def require_success(job: Job) -> Job:
    """Errors: `Problem` for a job that has no pictures."""
    if job.state is JobState.SUCCEEDED and job.result is not None:
        return job
    if job.failure is not None:
        raise Problem(job.failure.code.value, job.failure.detail, job=job.id, origin=job.failure.origin)
    if job.state is JobState.EXPIRED:
        raise Problem("deadline_passed", f"job {job.id} was not done before its deadline; submit it again", job=job.id)
    if job.state is JobState.CANCELED:
        step, steps = job.progress.step, job.progress.steps
        raise Problem("job_canceled", f"job {job.id} was canceled at step {step} of {steps}", job=job.id)
    raise Problem("not_ready", f"job {job.id} is {job.state}, expected succeeded; come back", job=job.id)


def pictures_of(service: Parts, job: Job) -> list[tuple[StoredPicture, bytes]]:
    """The pictures of a job that succeeded, with the bytes of their files. Errors: `Problem`, `ArtifactDamaged`."""
    result = require_success(job).result
    assert result is not None
    try:
        return [(one, service.artifacts.read(one.sha256)) for one in result.pictures]
    except FileNotFoundError as err:
        detail = f"pictures of job {job.id} are gone from the disk of the service; submit the job again"
        raise Problem("artifact_not_found", detail) from err


def preview_of(service: Parts, job: Job) -> bytes | None:
    """How a running job looks now, as a PNG file, if there is a preview; more are made for a while."""
    want_previews(service, job)
    try:
        return service.artifacts.preview_path(job.id).read_bytes()
    except FileNotFoundError:
        return None
