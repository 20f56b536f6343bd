"""Diagnoses: what is wrong with a request, or with that of a job, with its model and with the worker's machine."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Header
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from undertow.doors import shown
from undertow.errors import InvalidInput
from undertow.serving.amount import cost_of
from undertow.serving.api.answers import file_of, gives_file
from undertow.serving.api.auth import Inspector
from undertow.serving.api.bodies import JSON, read_json
from undertow.serving.api.finding import find_job
from undertow.serving.api.openapi import reference, takes
from undertow.serving.api.parts import Parts, Service
from undertow.serving.api.submitting import accepted, read_wanted, store_jobs
from undertow.serving.jobs import Job, JobSpec, JobWork, NewJob, StoredFile
from undertow.serving.request_json import with_pictures
from undertow.serving.store.records import ApiKey
from undertow.serving.tracing import TRACEPARENT

router = APIRouter()

FORWARDS = 10
"""Evaluations of the network that a diagnosis takes, about."""
LARGEST_CELLS = 64 * 64
"""Of a diagnosis' latents, however large the picture is."""
MOST_RULES = 100

ANSWER = gives_file(JSON, reference("DiagnosisView"), "What was found, the most serious first.")


@router.post("/v1/diagnose", responses=ANSWER, response_class=Response, openapi_extra=takes("DiagnosisRequest"))
async def diagnose(
    request: Request,
    key: Inspector,
    service: Service,
    prefer: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> Response:
    """Ask the doctor's rules what is wrong with a request, its model and the machine: symptom, evidence, cause, fix and
    prevention. A worker evaluates its network about ten times for it, and draws nothing meanwhile."""
    given, _ = await read_json(request, service.settings.max_body_bytes)
    job = await run_in_threadpool(_of_request, service, given, key)
    return await file_of(service, job, prefer)


@router.post(
    "/v1/jobs/{job}/diagnosis",
    responses=ANSWER,
    response_class=Response,
    openapi_extra=takes("DiagnosisOptions", required=False),
)
async def diagnose_job(
    job: str,
    request: Request,
    key: Inspector,
    service: Service,
    prefer: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> Response:
    """The same for the request of a job, whatever became of it."""
    has_body = request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers
    given = (await read_json(request, service.settings.max_body_bytes))[0] if has_body else {}
    answer = await run_in_threadpool(_of_job, service, job, given, key)
    return await file_of(service, answer, prefer)


def _of_request(service: Parts, given: Mapping[str, Any], key: ApiKey) -> Job:
    """Errors: `Problem`, `InvalidInput`, `Refused`, `StoreError`."""
    only = _rules(given)
    wanted = read_wanted(service, {name: value for name, value in given.items() if name != "only"}, key)
    if wanted.new.spec.inspect is not None:
        raise InvalidInput("inspect", "given", "nothing: a diagnosis draws no picture", "submit a job with it")
    service.gate.spend(key)
    new = _diagnosis(service, wanted.new, only, None)
    return store_jobs(service, [accepted(service, replace(wanted, new=new))], key)[0].job


def _of_job(service: Parts, name: str, given: Mapping[str, Any], key: ApiKey) -> Job:
    """Errors: as `_of_request`; `JobNotFound`."""
    for field in given:
        if field != "only":
            raise InvalidInput(str(field)[:100], "given", "a field of a diagnosis of a job", "it has only")
    only, subject = _rules(given), find_job(service, name, key)
    if subject.spec.kind != "pictures":
        raise InvalidInput("job", f"a job of {subject.spec.kind}", "one that draws pictures")
    service.gate.spend(key)
    new = NewJob(
        key=key.id,
        spec=replace(subject.spec, inspect=None),
        work=subject.work,
        inputs=_inputs(service, subject),
        traceparent=TRACEPARENT.get(),
    )
    new = _diagnosis(service, new, only, subject.id)
    return store_jobs(service, [replace(new, finish_at=service.times.promise(new))], key)[0].job


def _diagnosis(service: Parts, new: NewJob, only: tuple[str, ...], subject: str | None) -> NewJob:
    """The job that diagnoses what another would draw."""
    work = JobWork(cells=min(new.work.cells, LARGEST_CELLS), rows=1, steps=FORWARDS)
    request = {"request": new.spec.request, "only": list(only), "subject": subject}
    spec: JobSpec = replace(new.spec, kind="diagnosis", request=request)
    cost = cost_of(work, service.catalog.model(spec.model))
    return replace(new, spec=spec, work=work, cost=cost, reuse=False)


def _rules(given: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of rules, or of families of rules; a worker knows which there are. Errors: `InvalidInput`."""
    only = given.get("only")
    listed = [only] if isinstance(only, str) else only if only is not None else []
    if not isinstance(listed, list) or not all(isinstance(one, str) for one in listed) or len(listed) > MOST_RULES:
        raise InvalidInput("only", shown(only), f"a list of at most {MOST_RULES} names of rules, or of their families")
    return tuple(listed)


def _inputs(service: Parts, subject: Job) -> tuple[StoredFile, ...]:
    """The pictures that a job draws from. Errors: `ArtifactNotFound`."""
    found: dict[str, StoredFile] = {}

    def note(place: str, given: Any) -> Any:
        del place
        found[given["artifact"]] = service.store.artifact(given["artifact"])
        return given

    with_pictures(subject.spec.request, note)
    return tuple(found.values())
