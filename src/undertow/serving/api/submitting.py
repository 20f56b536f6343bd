"""From a client's body to a job in the store, in the order in which a client learns most: what is wrong with the body,
whether it was accepted before (then nothing else matters: a retry is not counted, and not refused), how often the key
may ask, whether it can be drawn here in time, whether there is room. That comes last, in the transaction that takes it:
a client that is told to come again later has a request that can be drawn."""

import logging
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from undertow.errors import InvalidInput
from undertow.serving.admission import Wanted
from undertow.serving.api.auth import require_scope
from undertow.serving.api.parts import Parts
from undertow.serving.api.problems import Problem
from undertow.serving.api.requests import require_label
from undertow.serving.api.views import as_drawn
from undertow.serving.api.webhooks import require_webhook
from undertow.serving.failures import Refused
from undertow.serving.jobs import Job, NewJob
from undertow.serving.store.records import (
    ApiKey,
    ClientIdConflict,
    IdempotencyConflict,
    QueueFull,
    QueueLimits,
    Scope,
    Submitted,
)
from undertow.serving.tracing import TRACEPARENT

logger = logging.getLogger(__name__)


def submit_one(
    service: Parts,
    wanted: Mapping[str, Any],
    key: ApiKey,
    *,
    idempotency_key: str | None = None,
    client_id: str | None = None,
) -> Submitted:
    """Accepts a job, or finds the one that it was accepted as. wanted: the fields of a request and of a job's options.
    Errors: `Problem`, `InvalidInput`, `Refused`, `StoreError`."""
    # Under a name of the client's own it is the body that tells whether it is the same job.
    once = f"PUT {client_id}" if client_id is not None else f"POST {idempotency_key}" if idempotency_key else None
    read = read_wanted(service, wanted, key, idempotency_key=once, client_id=client_id)
    if (known := _known(service, read)) is not None:
        return Submitted(job=known, created=False)
    service.gate.spend(key)
    return store_jobs(service, [accepted(service, read)], key)[0]


def submit_together(
    service: Parts,
    several: Sequence[Mapping[str, Any]],
    key: ApiKey,
    *,
    batch: str,
    idempotency_key: str | None = None,
) -> list[Submitted]:
    """Accepts all jobs or none. Errors: as `submit_one`; `InvalidInput` names the job."""
    read: list[Wanted] = []
    for index, wanted in enumerate(several):
        once = None if idempotency_key is None else f"BATCH {index} {idempotency_key}"
        try:
            read.append(read_wanted(service, wanted, key, idempotency_key=once, batch=batch))
        except InvalidInput as err:
            raise InvalidInput(f"jobs.{index}.{err.argument}", err.value, err.expected, err.remedy) from err
    known = [_known(service, one) for one in read] if idempotency_key is not None else []
    if found := [job for job in known if job is not None]:
        if len(found) < len(read):
            raise _conflict(f"BATCH 0 {idempotency_key}", found[0].id)
        return [Submitted(job=job, created=False) for job in found]
    service.gate.spend(key)
    taken: list[NewJob] = []
    try:
        for one in read:
            taken.append(accepted(service, one))
    except Refused:
        for new in taken:
            service.times.withdraw(new)
        raise
    return store_jobs(service, taken, key)


def read_wanted(service: Parts, wanted: Mapping[str, Any], key: ApiKey, **names: str | None) -> Wanted:
    """What a client's body asks for. Errors: `InvalidInput`; `Problem` for a key that may not look into its jobs."""
    settings = service.settings
    with _counted(service):
        require_label(wanted)
        read = service.admission.read(wanted, key.id, traceparent=TRACEPARENT.get(), **names)
        if read.new.spec.inspect is not None:
            require_scope(key, Scope.INSPECT)
        if read.new.webhook is not None:
            require_webhook(read.new.webhook, enabled=settings.webhooks, private=settings.webhooks_private)
    return read


def _known(service: Parts, wanted: Wanted) -> Job | None:
    """The job that was accepted before under the same name. Errors: `Problem`, `StoreError`."""
    with _conflicts():
        return service.store.known(wanted.new)


def accepted(service: Parts, wanted: Wanted) -> NewJob:
    """The job, with the time when it will be done. Errors: `Refused`."""
    with _counted(service):
        return service.admission.accept(wanted)


@contextmanager
def _counted(service: Parts) -> Generator[None]:
    """Counts what is refused."""
    try:
        yield
    except InvalidInput:
        service.metrics.admission_rejected.labels("invalid_request").inc()
        raise
    except Refused as err:
        service.metrics.admission_rejected.labels(err.code.value).inc()
        raise


@contextmanager
def _conflicts() -> Generator[None]:
    """In a client's words. Errors: `Problem`."""
    try:
        yield
    except IdempotencyConflict as err:
        raise _conflict(err.idempotency_key, err.job) from err
    except ClientIdConflict as err:
        raise _conflict(f"PUT {err.client_id}", err.job) from err


def store_jobs(service: Parts, jobs: Sequence[NewJob], key: ApiKey) -> list[Submitted]:
    """Makes admitted jobs durable, all or none. Errors: `Problem`, `StoreError`."""
    settings = service.settings
    per_key = settings.queue_limit_per_key if key.max_queued is None else key.max_queued
    limits = QueueLimits(total=settings.queue_limit, per_key=per_key)
    submitted: list[Submitted] = []
    try:
        with _conflicts():
            if len(jobs) == 1 and jobs[0].batch is None:
                submitted = [service.store.submit(jobs[0], limits)]
            else:
                submitted = service.store.submit_batch(jobs, limits)
    except QueueFull as err:
        service.metrics.admission_rejected.labels("queue_full").inc()
        raise Problem(
            "queue_full", str(err), waiting=err.waiting, limit=err.limit, retry_after_s=service.times.retry_after_s()
        ) from err
    finally:  # what was promised and does not come makes nobody else wait
        for place, new in enumerate(jobs):
            if not (submitted and submitted[place].created and submitted[place].job.result is None):
                service.times.withdraw(new)
    for one in submitted:
        if one.created:
            said = f": {one.job.spec.request.get('prompt')!r}" if settings.log_prompts else ""
            logger.info("job %s of key %s is accepted%s", one.job.id, one.job.key, said)
            service.metrics.accepted.labels(str(one.job.result is not None).lower()).inc()
    return submitted


def _conflict(once: str, job: str) -> Problem:
    """once: as it is in the store."""
    method, _, name = once.partition(" ")
    if method == "PUT":
        detail = f"client_id is {name!r}, which another request has, accepted as {job}; choose another name"
        return Problem("client_id_conflict", detail, job=job)
    name = name.partition(" ")[2] if method == "BATCH" else name
    detail = f"Idempotency-Key is {name!r}, which another body was sent with, accepted as {job}; take a new key"
    return Problem("idempotency_conflict", detail, job=job)


def planned(service: Parts, wanted: Mapping[str, Any], key: ApiKey) -> dict[str, Any]:
    """What a job would take, and when it would be done if it were submitted now. Errors: `InvalidInput`, `Problem`."""
    read = read_wanted(service, wanted, key)
    service.gate.spend(key)
    found = service.admission.forecast(read)
    memory = None if found is None else {name: getattr(found, name) for name in _OF_MEMORY}
    if memory is not None and found is not None:
        memory["measures"] = [asdict(measure) for measure in found.measures]
    try:
        new = accepted(service, read)
    except Refused as err:
        refused = Problem.of_refused(err).json("/v1/jobs")
        return {"accepted": False, "refused": refused, "memory": memory}
    service.times.withdraw(new)
    now = service.clock()
    return {
        "accepted": True,
        "model": new.spec.model,
        "mode": new.spec.mode,
        "rows": new.spec.rows,
        "work": new.work.to_json(),
        "cost": new.cost,
        "finish_at": new.finish_at,
        "finish_in_s": None if new.finish_at is None else max(0.0, new.finish_at - now),
        "memory": memory,
        "request": as_drawn(new.spec.request),
    }


_OF_MEMORY = ("fits", "budget_bytes", "peak_bytes", "process_bytes", "asked_bytes", "smallest_bytes", "seconds")
