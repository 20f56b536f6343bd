"""A job is accepted: once, within the bounds of the queue, or answered from pictures that are there."""

from collections.abc import Callable

from sqlalchemy import Connection, RowMapping, func, insert, select

from undertow.errors import InvalidInput
from undertow.serving.jobs import JobProgress, JobResult, JobState, NewJob
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


def submit(
    connection: Connection,
    new: NewJob,
    *,
    id: str,
    now: float,
    limits: QueueLimits,
    keep_s: float,
    has_file: Callable[[str], bool],
) -> Submitted:
    """Errors: `IdempotencyConflict`, `ClientIdConflict`, `QueueFull`."""
    hash_ = spec_hash(new.spec)
    if (known := _known(connection, new, id, hash_)) is not None:
        return Submitted(job=find_jobs(connection, [known])[0], created=False)
    source = _drawn_before(connection, new, hash_, has_file) if new.reuse else None
    if source is None:
        _require_room(connection, new.key, limits)
    _insert(connection, new, id, hash_, now)
    if source is not None:
        _answer(connection, id, source, now, keep_s)
    return Submitted(job=find_jobs(connection, [id])[0], created=True)


def _known(connection: Connection, new: NewJob, id: str, hash_: str) -> str | None:
    """The job that this one was accepted as before. The same id: by this very call, whose answer was lost."""
    found = connection.execute(select(jobs.c.id).where(jobs.c.id == id)).scalar()
    if found is None and new.idempotency_key is not None:
        same = select(jobs.c.id, jobs.c.body_hash).where(
            jobs.c.key == new.key, jobs.c.idempotency_key == new.idempotency_key
        )
        if (row := connection.execute(same).first()) is not None:
            if row.body_hash != new.body_hash:
                raise IdempotencyConflict(new.idempotency_key, row.id)
            found = row.id
    if found is None and new.client_id is not None:
        same = select(jobs.c.id, jobs.c.spec_hash).where(jobs.c.key == new.key, jobs.c.client_id == new.client_id)
        if (row := connection.execute(same).first()) is not None:
            if row.spec_hash != hash_:
                raise ClientIdConflict(new.client_id, row.id)
            found = row.id
    return found


def _require_room(connection: Connection, key: str, limits: QueueLimits) -> None:
    waiting = connection.execute(select(func.count()).select_from(jobs).where(WAITING)).scalar_one()
    if waiting >= limits.total:
        raise QueueFull(waiting, limits.total, of_key=False)
    of_key = connection.execute(select(func.count()).select_from(jobs).where(WAITING, jobs.c.key == key)).scalar_one()
    if of_key >= limits.per_key:
        raise QueueFull(of_key, limits.per_key, of_key=True)


def _drawn_before(
    connection: Connection, new: NewJob, hash_: str, has_file: Callable[[str], bool]
) -> RowMapping | None:
    """A job of the same key and spec that succeeded, and whose pictures are there: jobs keep theirs, but somebody may
    have removed a file by hand."""
    same = select(jobs.c.id, jobs.c.result).where(
        jobs.c.key == new.key, jobs.c.spec_hash == hash_, jobs.c.state == JobState.SUCCEEDED
    )
    row = connection.execute(same.order_by(jobs.c.id.desc()).limit(1)).mappings().first()
    if row is None or not all(has_file(one["sha256"]) for one in row["result"]["pictures"]):
        return None
    return row


def _insert(connection: Connection, new: NewJob, id: str, hash_: str, now: float) -> None:
    row = {
        "id": id,
        "key": new.key,
        "client_id": new.client_id,
        "idempotency_key": new.idempotency_key,
        "body_hash": new.body_hash,
        "spec_hash": hash_,
        "model": new.spec.model,
        "mode": new.spec.mode,
        "rows": new.spec.rows,
        "cells": new.work.cells,
        "work_rows": new.work.rows,
        "steps": new.work.steps,
        "pictures": new.work.pictures,
        "cost": new.cost,
        "priority": new.priority,
        "label": new.label,
        "batch": new.batch,
        "webhook": new.webhook,
        "traceparent": new.traceparent,
        "state": JobState.QUEUED,
        "submitted_at": now,
        "deadline_at": new.deadline_at,
        "finish_at": new.finish_at,
        "attempt": 0,
        "alone": False,
        "requeued": False,
        "fence": 0,
        "cancel_requested": False,
        "preview_until": 0.0,
        "progress": JobProgress().to_json(),
        "seq": 1,
    }
    connection.execute(insert(jobs).values(row))
    connection.execute(insert(specs).values(job=id, spec=new.spec.to_json()))
    connection.execute(insert(events).values(job=id, seq=1, kind="accepted", at=now, data={}))
    use(connection, id, new.inputs, now)


def _answer(connection: Connection, id: str, source: RowMapping, now: float, keep_s: float) -> None:
    """Gives a new job the pictures of another."""
    result = {**source["result"], "reused": True}
    use(connection, id, [one.file for one in JobResult.from_json(result).pictures], now)
    end(
        connection,
        [jobs.c.id == id],
        JobState.SUCCEEDED,
        now=now,
        keep_s=keep_s,
        values={"started_at": now, "result": result},
        data={"reused": True},
    )
