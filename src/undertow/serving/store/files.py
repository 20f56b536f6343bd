"""Which artifacts there are, who may see them, and what is removed when nobody needs it. Files are `artifacts.py`'s."""

from collections.abc import Collection, Sequence

from sqlalchemy import Connection, and_, delete, exists, or_, select

from undertow.serving.jobs import StoredFile
from undertow.serving.store.database import GARBAGE, put_rows, wait_turn
from undertow.serving.store.records import ArtifactNotFound
from undertow.serving.store.rows import LIVE
from undertow.serving.store.tables import artifacts, jobs, uploads, uses, workers

AT_ONCE = 200
"""Jobs that are removed in one transaction, so that others need not wait for long."""

FORGOTTEN_S = 24 * 3600.0
"""After which a worker that says nothing is no longer listed."""


def use(connection: Connection, job: str, files: Sequence[StoredFile], now: float) -> None:
    """Keeps artifacts, whose files are there, as long as a job."""
    wait_turn(connection, GARBAGE, shared=True)
    by_hash = {one.sha256: one for one in files}
    if by_hash:
        put_rows(connection, artifacts, [{**one.to_json(), "created_at": now} for one in by_hash.values()])
        put_rows(connection, uses, [{"job": job, "sha256": one} for one in by_hash])


def upload(connection: Connection, key: str, file: StoredFile, *, now: float, keep_s: float) -> None:
    """Keeps an artifact for a while, for a key that may name it."""
    wait_turn(connection, GARBAGE, shared=True)
    put_rows(connection, artifacts, [{**file.to_json(), "created_at": now}])
    row = {"key": key, "sha256": file.sha256, "expires_at": now + keep_s}
    put_rows(connection, uploads, [row], replace=["expires_at"])


def find(connection: Connection, sha256: str, key: str | None) -> StoredFile:
    """Errors: `ArtifactNotFound`, also where no job and no upload of the key has it."""
    of_job = exists().where(uses.c.sha256 == artifacts.c.sha256, uses.c.job == jobs.c.id, jobs.c.key == key)
    of_upload = exists().where(uploads.c.sha256 == artifacts.c.sha256, uploads.c.key == key)
    seen = [] if key is None else [or_(of_job, of_upload)]
    one = select(artifacts.c.sha256, artifacts.c.media_type, artifacts.c.bytes).where(
        artifacts.c.sha256 == sha256, *seen
    )
    row = connection.execute(one).mappings().first()
    if row is None:
        raise ArtifactNotFound(sha256)
    return StoredFile(**row)


def remove_expired(connection: Connection, now: float) -> int:
    """Removes some jobs whose time is over, with all that belongs to them. How many."""
    over = select(jobs.c.id).where(jobs.c.expires_at <= now).order_by(jobs.c.id).limit(AT_ONCE)
    ids = connection.execute(over.with_for_update(skip_locked=True)).scalars().all()
    if ids:
        connection.execute(delete(jobs).where(jobs.c.id.in_(ids)))
    return len(ids)


def remove_unused(connection: Connection, now: float) -> None:
    """Removes what is known of artifacts that nobody keeps; their files can go after that."""
    wait_turn(connection, GARBAGE)
    connection.execute(delete(uploads).where(uploads.c.expires_at <= now))
    used = exists().where(uses.c.sha256 == artifacts.c.sha256)
    uploaded = exists().where(uploads.c.sha256 == artifacts.c.sha256)
    connection.execute(delete(artifacts).where(and_(~used, ~uploaded)))
    connection.execute(delete(workers).where(workers.c.seen_at < now - FORGOTTEN_S))


def kept(connection: Connection) -> set[str]:
    """The artifacts whose files must stay."""
    return set(connection.execute(select(artifacts.c.sha256)).scalars())


def done(connection: Connection, ids: Collection[str]) -> set[str]:
    """Those of the jobs that are final, or removed."""
    live = select(jobs.c.id).where(LIVE)
    return set(ids) - set(connection.execute(live).scalars())
