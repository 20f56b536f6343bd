"""How a job ends or is given back, written by the worker that holds it or asked for by its client."""

from sqlalchemy import Connection, select

from undertow.serving.failures import Failure
from undertow.serving.jobs import Claim, Job, JobResult, JobSpec, JobState
from undertow.serving.store.changes import LATE, REQUEUED, change, end, held
from undertow.serving.store.files import use
from undertow.serving.store.rows import RUNNING, WAITING, find_jobs, spec_hash
from undertow.serving.store.tables import jobs


def publish(
    connection: Connection, claim: Claim, result: JobResult, drawn: JobSpec | None, *, now: float, keep_s: float
) -> bool:
    """The pictures' files are there already. drawn: as in `Store.publish`. A job whose client was told that it is
    canceled stays so."""
    if end(connection, [*held(claim), jobs.c.cancel_requested], JobState.CANCELED, now=now, keep_s=keep_s):
        return False
    done = {"result": result.to_json(), **({} if drawn is None else {"spec_hash": spec_hash(drawn.to_json())})}
    if not end(
        connection, held(claim), JobState.SUCCEEDED, now=now, keep_s=keep_s, values=done, data={"reused": result.reused}
    ):
        return is_written(connection, claim, JobState.SUCCEEDED)
    use(connection, claim.job.id, result.stored, now)
    return True


def fail(connection: Connection, claim: Claim, failure: Failure, *, now: float, keep_s: float) -> bool:
    values, data = {"failure": failure.to_json()}, {"code": failure.code}
    ended = end(connection, held(claim), JobState.FAILED, now=now, keep_s=keep_s, values=values, data=data)
    return bool(ended) or is_written(connection, claim, JobState.FAILED)


def cancelled(connection: Connection, claim: Claim, *, now: float, keep_s: float) -> bool:
    ended = end(connection, held(claim), JobState.CANCELED, now=now, keep_s=keep_s)
    return bool(ended) or is_written(connection, claim, JobState.CANCELED)


def expire_job(connection: Connection, claim: Claim, *, now: float, keep_s: float) -> bool:
    values = {"failure": LATE.to_json()}
    ended = end(connection, held(claim), JobState.EXPIRED, now=now, keep_s=keep_s, values=values)
    return bool(ended) or is_written(connection, claim, JobState.EXPIRED)


def is_written(connection: Connection, claim: Claim, state: JobState) -> bool:
    """Whether this claim has written this final state before: a commit whose answer was lost is not a lost fence."""
    mine = [jobs.c.id == claim.job.id, jobs.c.fence == claim.fence, jobs.c.worker == claim.worker]
    return connection.execute(select(jobs.c.id).where(*mine, jobs.c.state == state)).first() is not None


def release(connection: Connection, claim: Claim, *, now: float, keep_s: float) -> bool:
    """Gives a job back to the front of the queue; the attempt is not charged."""
    if end(connection, [*held(claim), jobs.c.cancel_requested], JobState.CANCELED, now=now, keep_s=keep_s):
        return True
    return bool(change(connection, held(claim), REQUEUED, kind="requeued", now=now, data={"lost": False}))


def cancel(connection: Connection, id: str, *, now: float, keep_s: float) -> Job:
    """A job that waits ends at once, one that runs at its next step; one that is done stays as it is."""
    one = jobs.c.id == id
    connection.execute(select(jobs.c.id).where(one).with_for_update())
    if not end(connection, [one, WAITING], JobState.CANCELED, now=now, keep_s=keep_s):
        asked = [one, RUNNING, jobs.c.cancel_requested.is_(False)]
        change(connection, asked, {"cancel_requested": True}, kind="progress", now=now, data={"cancel_requested": True})
    return find_jobs(connection, [id])[0]


def prioritize(connection: Connection, id: str, priority: int, *, now: float) -> Job:
    """Only a job that waits has a place in the queue that could change."""
    waits = [jobs.c.id == id, WAITING, jobs.c.priority != priority]
    change(connection, waits, {"priority": priority}, kind="progress", now=now, data={"priority": priority})
    return find_jobs(connection, [id])[0]
