"""A job is accepted: once, within the bounds of the queue, or answered from pictures that are there."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, bindparam, case, func, insert, or_, select

from undertow.errors import InvalidInput
from undertow.records import annotations
from undertow.serving.jobs import Job, JobResult, JobState, NewJob
from undertow.serving.store.changes import end
from undertow.serving.store.files import use
from undertow.serving.store.records import ClientIdConflict, IdempotencyConflict, QueueFull, QueueLimits, Submitted
from undertow.serving.store.rows import WAITING, find_jobs, spec_hash
from undertow.serving.store.tables import events, jobs, specs


def require_plain(new: NewJob) -> None:
    """Errors: `InvalidInput` for text that not every database can hold."""
    for name in ("key", "client_id", "idempotency_key", "label", "batch", "webhook", "traceparent"):
        value: str | None = getattr(new, name)
        if value is not None and ("\0" in value or any(0xD800 <= ord(one) < 0xE000 for one in value)):
            raise InvalidInput(name, repr(value), "Unicode text without NUL and without half of a surrogate pair")


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A job that may be accepted, with its rows, made before others are kept waiting."""

    new: NewJob
    job: Job
    row: dict[str, Any]
    spec: dict[str, Any]


def prepared(new: NewJob, id: str, now: float) -> Prepared:
    """Errors: `InvalidInput`."""
    require_plain(new)
    spec = new.spec.to_json()
    job = Job(
        id=id,
        key=new.key,
        spec=new.spec,
        spec_hash=spec_hash(spec),
        state=JobState.QUEUED,
        submitted_at=now,
        work=new.work,
        cost=new.cost,
        priority=new.priority,
        client_id=new.client_id,
        batch=new.batch,
        label=new.label,
        alone=new.alone,
        deadline_at=new.deadline_at,
        promised_at=new.finish_at,
        finish_at=new.finish_at,
        webhook=new.webhook,
        traceparent=new.traceparent,
    )
    row = {
        **{name: getattr(job, name) for name in _SAME},
        "idempotency_key": new.idempotency_key,
        "body_hash": new.body_hash,
        "model": new.spec.model,
        "mode": new.spec.mode,
        "rows": new.spec.rows,
        "cells": new.work.cells,
        "work_rows": new.work.rows,
        "adapted_rows": new.work.adapted_rows,
        "longer": new.work.longer,
        "after_s": new.work.after_s,
        "steps": new.work.steps,
        "pictures": new.work.pictures,
        "requeued": False,
        "progress": job.progress.to_json(),
        "seq": 1,
    }
    return Prepared(new=new, job=job, row=row, spec=spec)


def submit(
    connection: Connection, wanted: Prepared, *, limits: QueueLimits, keep_s: float, has_file: Callable[[str], bool]
) -> Submitted:
    """Errors: `IdempotencyConflict`, `ClientIdConflict`, `QueueFull`."""
    new, job = wanted.new, wanted.job
    if (known := known_job(connection, wanted)) is not None:
        return Submitted(job=known, created=False)
    source = _drawn_before(connection, wanted, has_file) if new.reuse else None
    if source is None:
        _require_room(connection, new.key, limits)
    connection.execute(_INSERT_JOB, wanted.row)
    connection.execute(_INSERT_SPEC, {"job": job.id, "spec": wanted.spec})
    promised = {} if job.finish_at is None else {"finish_at": job.finish_at}  # later times replace it in the job itself
    accepted = {"job": job.id, "seq": 1, "kind": "accepted", "at": job.submitted_at, "data": promised}
    connection.execute(_INSERT_EVENT, accepted)
    if new.inputs:
        use(connection, job.id, new.inputs, job.submitted_at)
    if source is not None:
        _answer(connection, job, source, keep_s)
        job = find_jobs(connection, [job.id])[0]
    return Submitted(job=job, created=True)


_SAME = [column.name for column in jobs.c if column.name in annotations(Job)]
"""Columns that have the name of the job's field."""

_INSERT_JOB, _INSERT_SPEC, _INSERT_EVENT = insert(jobs), insert(specs), insert(events)

_OF_KEY = jobs.c.key == bindparam("key")
_KNOWN = select(jobs.c.id, jobs.c.idempotency_key, jobs.c.body_hash, jobs.c.client_id, jobs.c.spec_hash).where(
    or_(
        jobs.c.id == bindparam("id"),
        and_(_OF_KEY, jobs.c.idempotency_key == bindparam("idempotency_key")),
        and_(_OF_KEY, jobs.c.client_id == bindparam("client_id")),
    )
)
_SUCCEEDED = (
    select(jobs.c.result)
    .where(_OF_KEY, jobs.c.spec_hash == bindparam("spec_hash"), jobs.c.state == JobState.SUCCEEDED)
    .order_by(jobs.c.id.desc())
    .limit(1)
)
_COUNTS = select(func.count(), func.sum(case((_OF_KEY, 1), else_=0))).where(WAITING)


def known_job(connection: Connection, wanted: Prepared) -> Job | None:
    """The job that this one was accepted as before. Errors: `IdempotencyConflict`, `ClientIdConflict`."""
    known = _known(connection, wanted)
    return None if known is None else find_jobs(connection, [known])[0]


def _known(connection: Connection, wanted: Prepared) -> str | None:
    """By its id. The same id: by this very call, whose answer was lost."""
    new, job = wanted.new, wanted.job
    names = {"id": job.id, "key": new.key, "idempotency_key": new.idempotency_key, "client_id": new.client_id}
    found = connection.execute(_KNOWN, names).all()
    for row in found:
        if row.id == job.id:
            return row.id
    for row in found:
        if new.idempotency_key is not None and row.idempotency_key == new.idempotency_key:
            if row.body_hash != new.body_hash:
                raise IdempotencyConflict(new.idempotency_key, row.id)
            return row.id
    for row in found:
        # What the client sent decides: the spec also names files and defaults, which may have changed since.
        same = row.body_hash == new.body_hash if new.body_hash else row.spec_hash == job.spec_hash
        if new.client_id is not None and not same:
            raise ClientIdConflict(new.client_id, row.id)
        return row.id
    return None


def _require_room(connection: Connection, key: str, limits: QueueLimits) -> None:
    waiting, of_key = connection.execute(_COUNTS, {"key": key}).one()
    if waiting >= limits.total:
        raise QueueFull(waiting, limits.total, of_key=False)
    if (of_key or 0) >= limits.per_key:
        raise QueueFull(of_key, limits.per_key, of_key=True)


def _drawn_before(connection: Connection, wanted: Prepared, has_file: Callable[[str], bool]) -> dict[str, Any] | None:
    """The result of a job of the same key and spec whose pictures are there: jobs keep theirs, but somebody may have
    removed a file by hand."""
    same = {"key": wanted.new.key, "spec_hash": wanted.job.spec_hash}
    result = connection.execute(_SUCCEEDED, same).scalar()
    if result is None:
        return None
    files = [*result["pictures"], *result.get("inspection", ())]
    return result if all(has_file(one["sha256"]) for one in files) else None


def _answer(connection: Connection, job: Job, source: dict[str, Any], keep_s: float) -> None:
    """Gives a new job the pictures of another."""
    result, now = {**source, "reused": True}, job.submitted_at
    use(connection, job.id, JobResult.from_json(result).stored, now)
    values = {"started_at": now, "result": result}
    end(
        connection,
        [jobs.c.id == job.id],
        JobState.SUCCEEDED,
        now=now,
        keep_s=keep_s,
        values=values,
        data={"reused": True},
    )
