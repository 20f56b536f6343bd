"""Workers take jobs for a time, say that they live, and lose what they held when they do not."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import (
    Column,
    Connection,
    String,
    and_,
    column,
    func,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy import values as table_of

from undertow.serving.failures import Failure, FailureCode
from undertow.serving.jobs import Claim, JobProgress, JobState
from undertow.serving.store.changes import LATE, REQUEUED, change, end
from undertow.serving.store.records import Pick, Verdict
from undertow.serving.store.rows import LIVE, RUNNING, WAITING, entries_where, entry_of, find_jobs
from undertow.serving.store.tables import Fields, events, jobs

SAME_S = 0.1
"""Times that differ by less are not written again."""


def is_work(connection: Connection, now: float) -> bool:
    """Whether a worker that asks may be given something."""
    due = select(jobs.c.id).where(or_(WAITING, and_(RUNNING, jobs.c.lease_until <= now)))
    return connection.execute(due.limit(1)).first() is not None


def claim(connection: Connection, worker: str, pick: Pick, *, now: float, lease_s: float) -> list[Claim]:
    """Leases what `pick` chooses among the jobs that wait. What another worker took meanwhile is left to it."""
    waiting = [entry_of(row) for row in connection.execute(entries_where(WAITING)).all()]
    mine: set[str] = set()
    wanted: list[str] = []
    while waiting and not mine:
        if not (wanted := list(dict.fromkeys(pick(waiting)))):
            return []
        free = select(jobs.c.id).where(jobs.c.id.in_(wanted), WAITING).order_by(jobs.c.id)
        mine = set(connection.execute(free.with_for_update(skip_locked=True)).scalars())
        waiting = [one for one in waiting if one.id not in wanted]  # another worker takes those at this moment
    if not mine:
        return []
    leased = {
        "state": JobState.RUNNING,
        "worker": worker,
        "fence": jobs.c.fence + 1,
        "lease_until": now + lease_s,
        "beat_at": now,
        "started_at": func.coalesce(jobs.c.started_at, now),
    }
    change(connection, [jobs.c.id.in_(mine), WAITING], leased, kind="started", now=now, data={"worker": worker})
    taken = find_jobs(connection, [one for one in wanted if one in mine])
    return [Claim(job=job, worker=worker, fence=job.fence, lease_until=now + lease_s) for job in taken]


def expire_leases(
    connection: Connection,
    *,
    now: float,
    attempts: int,
    keep_s: float,
    worker: str | None,
    logged: Callable[[str, int], int],
) -> list[str]:
    """Takes jobs back from workers that are silent, or from `worker`, which is known to be dead. Ids of those jobs.

    An attempt is charged to a job that its worker brought no further, as the log of its claim tells: a job that ends
    its workers never gets past the place where it does so, and one that is merely unlucky goes on behind it."""
    over = jobs.c.lease_until <= now if worker is None else jobs.c.worker == worker
    columns = jobs.c["id", "fence", "logged"]
    lost = select(*columns).where(RUNNING, over).order_by(jobs.c.id).with_for_update(skip_locked=True)
    rows = connection.execute(lost).all()
    if not rows:
        return []
    ids = [row.id for row in rows]
    reached = {row.id: logged(row.id, row.fence) for row in rows}
    further = {row.id: (reached[row.id],) for row in rows if reached[row.id] > row.logged}
    mine = [jobs.c.id.in_(ids), RUNNING]
    gone = {"worker": None}
    end(connection, [*mine, jobs.c.cancel_requested], JobState.CANCELED, now=now, keep_s=keep_s, values=gone)
    late, why = [*mine, jobs.c.deadline_at <= now], {**gone, "failure": LATE.to_json()}
    end(connection, late, JobState.EXPIRED, now=now, keep_s=keep_s, values=why)
    again, told = {**REQUEUED, "alone": True}, {"lost": True}
    if further:
        _set(connection, further, jobs.c.logged)
        change(connection, [jobs.c.id.in_(further), RUNNING], again, kind="requeued", now=now, data=told)
    charged = {"attempt": jobs.c.attempt + 1}
    given_up = {**gone, **charged, "failure": poison(attempts).to_json()}
    at_end = [*mine, jobs.c.attempt + 1 >= attempts]
    end(connection, at_end, JobState.FAILED, now=now, keep_s=keep_s, values=given_up, data={"code": FailureCode.POISON})
    change(connection, mine, {**again, **charged}, kind="requeued", now=now, data=told)
    return ids


def poison(attempts: int) -> Failure:
    times = f"{attempts} workers were" if attempts > 1 else "a worker was"
    return Failure(
        code=FailureCode.POISON,
        detail=f"{times} lost while this job ran and brought it no further; it is not tried again: "
        "please report the request with the workers' logs",
    )


def expire_waiting(connection: Connection, *, now: float, keep_s: float) -> list[str]:
    """Ends jobs that wait although their deadline passed. Ids of those jobs."""
    late = select(jobs.c.id).where(WAITING, jobs.c.deadline_at <= now).order_by(jobs.c.id)
    ids = list(connection.execute(late.with_for_update(skip_locked=True)).scalars())
    if ids:
        mine, why = [jobs.c.id.in_(ids), WAITING], {"failure": LATE.to_json()}
        end(connection, mine, JobState.EXPIRED, now=now, keep_s=keep_s, values=why)
    return ids


def heartbeat(
    connection: Connection,
    beats: Sequence[tuple[Claim, JobProgress]],
    finish_at: Mapping[str, float],
    *,
    now: float,
    lease_s: float,
) -> list[Verdict]:
    """Extends leases and tells progress, of all jobs together."""
    said = {claim.job.id: (claim.fence, progress.to_json()) for claim, progress in beats}
    columns = jobs.c["id", "fence", "seq", "progress", "cancel_requested", "deadline_at", "preview_until"]
    held = select(*columns).where(jobs.c.id.in_(said), RUNNING).order_by(jobs.c.id).with_for_update()
    mine = [row for row in connection.execute(held).mappings() if row["fence"] == said[row["id"]][0]]
    moved = [row for row in mine if row["progress"] != said[row["id"]][1]]
    if mine:
        lease = {"lease_until": now + lease_s}
        connection.execute(update(jobs).where(jobs.c.id.in_([row["id"] for row in mine])).values(lease))
    if moved:
        new = {row["id"]: (said[row["id"]][1], row["seq"] + 1, now) for row in moved}
        _set(connection, new, jobs.c.progress, jobs.c.seq, jobs.c.beat_at)
        told = [
            {"job": job, "seq": seq, "kind": "progress", "at": now, "data": {**progress, **_when(finish_at, job)}}
            for job, (progress, seq, _) in new.items()
        ]
        connection.execute(insert(events), told)
    verdicts = {row["id"]: _verdict(row, now) for row in mine}
    return [verdicts.get(one, Verdict(job=one, alive=False)) for one in said]


def verdicts(connection: Connection, held: Sequence[Claim], *, now: float) -> list[Verdict]:
    """What a heartbeat would say, without writing anything."""
    fences = {claim.job.id: claim.fence for claim in held}
    columns = jobs.c["id", "fence", "cancel_requested", "deadline_at", "preview_until"]
    found = connection.execute(select(*columns).where(jobs.c.id.in_(fences), RUNNING)).mappings()
    said = {row["id"]: _verdict(row, now) for row in found if row["fence"] == fences[row["id"]]}
    return [said.get(one, Verdict(job=one, alive=False)) for one in fences]


def say_when(connection: Connection, finish_at: Mapping[str, float]) -> None:
    """Writes when jobs will be done, where that is other than was said. A job that somebody else writes at this moment
    keeps what it has."""
    if not finish_at:
        return
    live = connection.execute(select(jobs.c.id, jobs.c.finish_at).where(LIVE))
    said = {row.id: row.finish_at for row in live}
    other = [job for job, at in finish_at.items() if job in said and abs((said[job] or 0.0) - at) > SAME_S]
    if not other:
        return
    free = select(jobs.c.id).where(jobs.c.id.in_(other), LIVE).order_by(jobs.c.id).with_for_update(skip_locked=True)
    if ids := connection.execute(free).scalars().all():
        _set(connection, {one: (finish_at[one],) for one in ids}, jobs.c.finish_at)


def _set(connection: Connection, rows: Mapping[str, tuple[Any, ...]], *columns: Column[Any]) -> None:
    """Gives each job values of its own, in one statement."""
    names = [column("job", String), *(column(one.name, one.type) for one in columns)]
    given = table_of(*names, name="given").data([(job, *values) for job, values in rows.items()]).cte("given")
    new = {one.name: given.c[one.name] for one in columns}
    connection.execute(update(jobs).where(jobs.c.id == given.c.job).values(new))


def _verdict(row: Fields, now: float) -> Verdict:
    return Verdict(
        job=row["id"],
        alive=True,
        cancel_requested=row["cancel_requested"],
        deadline_passed=row["deadline_at"] is not None and row["deadline_at"] <= now,
        preview_wanted=row["preview_until"] > now,
    )


def _when(finish_at: Mapping[str, float], job: str) -> dict[str, float]:
    return {"finish_at": finish_at[job]} if job in finish_at else {}
