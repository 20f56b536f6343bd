"""A change of one job and the event that tells it, in one transaction: events are numbered without gaps."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, insert, update

from undertow.serving.failures import Failure, FailureCode
from undertow.serving.jobs import Claim, JobState
from undertow.serving.store.tables import Fields, deliveries, events, jobs


def change(
    connection: Connection,
    conditions: Sequence[ColumnElement[bool]],
    values: Mapping[str, Any],
    *,
    kind: str,
    now: float,
    data: Mapping[str, Any] | None = None,
) -> Sequence[Fields]:
    """Changes the jobs that meet all conditions when it comes to it, and tells it in an event of each. Rows of those
    that were changed come back, with `id` and `webhook`."""
    changed = (
        connection.execute(
            update(jobs)
            .where(*conditions)
            .values(seq=jobs.c.seq + 1, **values)
            .returning(jobs.c.id, jobs.c.seq, jobs.c.webhook)
        )
        .mappings()
        .all()
    )
    if changed:
        said = {"kind": kind, "at": now, "data": dict(data or {})}
        told = [{"job": row["id"], "seq": row["seq"], **said} for row in changed]
        connection.execute(insert(events), told)
    return list(changed)


def end(
    connection: Connection,
    conditions: Sequence[ColumnElement[bool]],
    state: JobState,
    *,
    now: float,
    keep_s: float,
    values: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
) -> Sequence[Fields]:
    """Gives jobs their final state, once: only live ones are changed. Whoever is to be told by webhook will be."""
    live = jobs.c.state.in_((JobState.QUEUED, JobState.RUNNING))
    final = {
        "state": state,
        "finished_at": now,
        "expires_at": now + keep_s,
        "finish_at": now,
        "lease_until": None,
        **(values or {}),
    }
    ended = change(connection, [live, *conditions], final, kind=state.value, now=now, data=data)
    if told := [{"job": row["id"], "due_at": now, "attempt": 0} for row in ended if row["webhook"] is not None]:
        connection.execute(insert(deliveries), told)
    return ended


def held(claim: Claim) -> list[ColumnElement[bool]]:
    """Conditions under which a worker may still write: it runs the job, and nobody claimed it since."""
    return [jobs.c.id == claim.job.id, jobs.c.state == JobState.RUNNING, jobs.c.fence == claim.fence]


REQUEUED = {"state": JobState.QUEUED, "requeued": True, "worker": None, "lease_until": None}
"""Values of a job that goes back to the front of the queue."""

LATE = Failure(
    code=FailureCode.DEADLINE_PASSED,
    detail="the deadline passed before the job was done; submit it again with a later one, or without",
)
