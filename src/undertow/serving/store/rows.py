"""Rows of the tables as records, and back."""

import hashlib
import json
import re
import secrets
import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, Text, select, type_coerce

from undertow.serving.failures import Failure
from undertow.serving.jobs import Job, JobEvent, JobProgress, JobResult, JobSpec, JobState, JobWork
from undertow.serving.store.records import QueueEntry
from undertow.serving.store.tables import Fields, jobs, specs

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
"""Crockford's, in which text sorts as the numbers do."""

WAITING = jobs.c.state == JobState.QUEUED
RUNNING = jobs.c.state == JobState.RUNNING
LIVE = jobs.c.state.in_((JobState.QUEUED, JobState.RUNNING))

_OF_JOBS = [
    column
    for column in jobs.c
    if column.name
    not in (
        "idempotency_key",
        "body_hash",
        "model",
        "mode",
        "rows",
        "requeued",
        "lease_until",
        "beat_at",
        "logged",
        "seq",
    )
]
WORK = ("cells", "work_rows", "adapted_rows", "steps", "pictures", "longer", "after_s")
"""The columns of a job's work."""
_OF_ENTRIES = [
    *jobs.c[
        "id", "key", "model", "mode", "rows", *WORK, "cost", "priority", "state", "submitted_at", "started_at",
        "deadline_at", "promised_at", "finish_at", "attempt", "alone", "requeued", "worker", "beat_at",
        "cancel_requested",
    ],
    type_coerce(jobs.c.progress, Text).label("progress"),
]  # fmt: skip


class Ids:
    """Makes ids: "job_" and 26 characters, of which 11 are the time in microseconds, later ones greater, and 15 cannot
    be guessed (75 bits)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = 0

    def new(self, prefix: str, now: float) -> str:
        with self._lock:
            self._last = max(self._last + 1, int(now * 1e6))
            number = (self._last << 75) | secrets.randbits(75)
        return f"{prefix}_" + "".join(_ALPHABET[(number >> shift) & 31] for shift in range(125, -1, -5))


def is_id(text: str, prefix: str) -> bool:
    """Whether `Ids` can have made it."""
    return re.fullmatch(rf"{prefix}_[{_ALPHABET}]{{26}}", text) is not None


LATER = ("inspect", "precision", "backend", "quantize")
"""Fields of a spec that the first ones did not have."""


def spec_hash(spec: dict[str, Any]) -> str:
    """Of a spec's JSON: equal for equal specs, whatever the order of their fields, and as it was before there were
    the fields `LATER` for those without."""
    said = {name: value for name, value in spec.items() if name not in LATER or value is not None}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def jobs_where(*conditions: ColumnElement[bool]) -> Select[Any]:
    return select(*_OF_JOBS, specs.c.spec).join(specs, specs.c.job == jobs.c.id).where(*conditions)


def job_of(row: Fields) -> Job:
    fields = dict(row)
    work = _work_of(fields)
    return Job(
        **{
            **fields,
            "spec": JobSpec.from_json(fields["spec"]),
            "state": JobState(fields["state"]),
            "work": work,
            "progress": JobProgress.from_json(fields["progress"]),
            "result": None if fields["result"] is None else JobResult.from_json(fields["result"]),
            "failure": None if fields["failure"] is None else Failure.from_json(fields["failure"]),
        }
    )


def _work_of(fields: dict[str, Any]) -> JobWork:
    """Takes its columns away."""
    return _work(*(fields.pop(name) for name in WORK))


@lru_cache(4096)
def _work(
    cells: int, rows: int, adapted_rows: int, steps: int, pictures: int, longer: float, after_s: float
) -> JobWork:
    """A record is checked when it is made, and in a long queue most are alike."""
    return JobWork(
        cells=cells,
        rows=rows,
        adapted_rows=adapted_rows,
        steps=steps,
        pictures=pictures,
        longer=longer,
        after_s=after_s,
    )


@lru_cache(4096)
def _progress(text: str) -> JobProgress:
    return JobProgress.from_json(json.loads(text))


def find_jobs(connection: Connection, ids: Sequence[str]) -> list[Job]:
    """In the order of the ids."""
    found = {row["id"]: job_of(row) for row in connection.execute(jobs_where(jobs.c.id.in_(ids))).mappings()}
    return [found[one] for one in ids]


def entries_where(*conditions: ColumnElement[bool]) -> Select[Any]:
    """Jobs that were running go first, then by priority, then by age."""
    order = (jobs.c.requeued.desc(), jobs.c.priority.desc(), jobs.c.submitted_at, jobs.c.id)
    return select(*_OF_ENTRIES).where(*conditions).order_by(*order)


def entry_of(row: Sequence[Any]) -> QueueEntry:
    """By position: a claim reads a thousand of them while others wait to write."""
    id, key, model, mode, rows, *more = row
    work, (cost, priority, state, *more) = more[: len(WORK)], more[len(WORK) :]
    submitted_at, started_at, deadline_at, promised_at, finish_at, attempt, alone, requeued, worker, *last = more
    beat_at, cancel_requested, progress = last
    return QueueEntry(
        id=id,
        key=key,
        model=model,
        mode=mode,
        rows=rows,
        work=_work(*work),
        cost=cost,
        priority=priority,
        state=JobState(state),
        submitted_at=submitted_at,
        started_at=started_at,
        deadline_at=deadline_at,
        promised_at=promised_at,
        finish_at=finish_at,
        attempt=attempt,
        alone=alone,
        requeued=requeued,
        worker=worker,
        beat_at=beat_at,
        cancel_requested=cancel_requested,
        progress=_progress(progress),
    )


def event_of(row: Fields) -> JobEvent:
    return JobEvent(**row)
