"""The store: what is promised to clients is written here, and every process asks it."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, and_, or_, select, update

from undertow.serving.artifacts import ArtifactFolder
from undertow.serving.failures import Failure, FailureCode
from undertow.serving.jobs import Claim, Job, JobEvent, JobProgress, JobResult, JobSpec, JobState, NewJob, StoredFile
from undertow.serving.store import claims, endings, files
from undertow.serving.store.database import SUBMISSION, Database, T, Work, unobserved, wait_turn
from undertow.serving.store.deliveries import Deliveries
from undertow.serving.store.keys import KeyOptions, Keys
from undertow.serving.store.opening import opened, written
from undertow.serving.store.records import (
    Clock,
    Garbage,
    JobNotFound,
    Observer,
    Pick,
    QueueEntry,
    QueueLimits,
    Submitted,
    Verdict,
)
from undertow.serving.store.rows import LIVE, Ids, entries_where, entry_of, event_of, find_jobs, job_of, jobs_where
from undertow.serving.store.submit import known_job, prepared, submit
from undertow.serving.store.tables import events, jobs
from undertow.serving.store.watch import Watch
from undertow.serving.store.workers import StoredCosts, Workers

LIMITS = QueueLimits()


class Store:
    """Jobs, keys and workers in one database. From any thread; in any number of processes.

    Everything that a method writes is on the disk when it returns, or not there at all. Errors of every method:
    `StoreError` where the database cannot be used, and those that it names.
    """

    def __init__(
        self,
        database: Database,
        *,
        clock: Clock,
        attempts: int,
        keep_s: float,
        has_file: Callable[[str], bool],
        logged: Callable[[str, int], int],
        observe: Observer,
    ):
        self._database = database
        self._attempts = attempts
        self._keep_s = keep_s
        self._has_file = has_file
        self._logged = logged
        self.observers = [observe]
        """Told of leases that were over and of writes that came too late; more may join."""
        self._ids = Ids()
        self._watch = Watch(database.poll)
        self.clock = clock
        self.keys = Keys(database, clock)
        self.key_options = KeyOptions(database)
        self.workers = Workers(database, clock)
        self.costs = StoredCosts(database, clock)
        self.deliveries = Deliveries(database, clock)

    @classmethod
    def open(
        cls,
        url: str,
        *,
        clock: Clock = time.time,
        attempts: int = 3,
        keep_s: float = 7 * 24 * 3600.0,
        patience_s: float = 10.0,
        has_file: Callable[[str], bool] = lambda sha256: True,
        logged: Callable[[str, int], int] = lambda job, fence: 0,
        observe: Observer = unobserved,
    ) -> "Store":
        """A store at a URL, such as sqlite:///folder/undertow.db or postgresql+psycopg://user:password@host/database;
        its tables are made, or brought to this version.

        attempts: workers that a job may cost that bring it no further. keep_s: how long jobs that are done are kept.
        patience_s: how long a locked or unreachable database is waited for. has_file: whether an artifact's file is
        there, before a result is taken from it (`ArtifactFolder.touch`). logged: bytes of the log of a job's claim, by
        its fence (`ArtifactFolder.logged`). Errors: `StoreError`, also for a database of a newer version.
        """
        database = opened(url, patience_s=patience_s, observe=observe)
        return cls(
            database,
            clock=clock,
            attempts=attempts,
            keep_s=keep_s,
            has_file=has_file,
            logged=logged,
            observe=observe,
        )

    def close(self) -> None:
        self._watch.close()
        self._database.close()

    def submit(self, new: NewJob, limits: QueueLimits = LIMITS) -> Submitted:
        """Accepts a job; it is durable when this returns. One that was accepted before, by its idempotency key or its
        client's name, comes back as it is now; one that the same key drew before is done at once.

        Errors: `IdempotencyConflict`, `ClientIdConflict`, `QueueFull`, `InvalidInput`.
        """
        return self._submit([new], limits)[0]

    def known(self, new: NewJob) -> Job | None:
        """The job that this one was accepted as before, by its idempotency key or its client's name, if it was. Errors:
        `IdempotencyConflict`, `ClientIdConflict`, `InvalidInput`."""
        if new.idempotency_key is None and new.client_id is None:
            return None
        wanted = prepared(new, self._ids.new("job", self.clock()), self.clock())
        return self._database.read(lambda connection: known_job(connection, wanted))

    def submit_batch(self, new: Sequence[NewJob], limits: QueueLimits = LIMITS) -> list[Submitted]:
        """Accepts all of them or none, under one `batch`. Errors: those of `submit`."""
        batch = self._ids.new("batch", self.clock())
        return self._submit([one if one.batch is not None else replace(one, batch=batch) for one in new], limits)

    def job(self, id: str, key: str | None = None) -> Job:
        """A job by its id, or by the name that its client gave it. key: whose jobs are seen; everybody's by their ids
        when `None`. Errors: `JobNotFound`."""
        mine = jobs.c.id == id
        if key is not None:
            mine = and_(jobs.c.key == key, or_(mine, jobs.c.client_id == id))
        # An id goes before a name that looks like it.
        found = jobs_where(mine).order_by((jobs.c.id == id).desc()).limit(1)
        row = self._database.read(lambda connection: connection.execute(found).mappings().first())
        if row is None:
            raise JobNotFound(id)
        return job_of(row)

    def jobs(
        self,
        key: str | None = None,
        states: Sequence[JobState] = (),
        batch: str | None = None,
        label: str | None = None,
        before: str | None = None,
        limit: int = 50,
    ) -> list[Job]:
        """The newest first. before: the last id of the page before this one."""
        conditions = [
            *([jobs.c.key == key] if key is not None else []),
            *([jobs.c.state.in_(states)] if states else []),
            *([jobs.c.batch == batch] if batch is not None else []),
            *([jobs.c.label == label] if label is not None else []),
            *([jobs.c.id < before] if before is not None else []),
        ]
        page = jobs_where(*conditions).order_by(jobs.c.id.desc()).limit(limit)
        return [
            job_of(row) for row in self._database.read(lambda connection: connection.execute(page).mappings().all())
        ]

    def queue(self) -> list[QueueEntry]:
        """What waits and what runs, in the order of `claim` without a schedule: what was running before first, then by
        priority, then by age."""
        rows = self._database.read(lambda connection: connection.execute(entries_where(LIVE)).all())
        return [entry_of(row) for row in rows]

    def claim(self, worker: str, pick: Pick, lease_s: float) -> list[Claim]:
        """Leases to a worker what `pick` chooses among the jobs that wait. Leases and deadlines that are over are dealt
        with first."""
        if not self._database.read(lambda connection: claims.is_work(connection, self.clock())):
            return []

        def take(connection: Connection) -> tuple[list[Job], list[Claim]]:
            lost = self._take_back(connection, None)
            now = self.clock()
            claims.expire_waiting(connection, now=now, keep_s=self._keep_s)
            return lost, claims.claim(connection, worker, pick, now=now, lease_s=lease_s)

        lost, taken = self._write(take, "claim")
        self._count(lost)
        return taken

    def heartbeat(
        self,
        worker: str,
        beats: Sequence[tuple[Claim, JobProgress]],
        *,
        lease_s: float,
        finish_at: Mapping[str, float] | None = None,
    ) -> list[Verdict]:
        """Keeps a worker's leases and tells its progress, for all of its jobs at once. finish_at: when jobs will be
        done, by id, those that wait included. A verdict for each beat comes back, in their order."""
        del worker  # the claims name it
        times = dict(finish_at or {})

        def beat(connection: Connection) -> list[Verdict]:
            verdicts = claims.heartbeat(connection, beats, times, now=self.clock(), lease_s=lease_s)
            claims.say_when(connection, times)
            return verdicts

        verdicts = self._write(beat, "heartbeat")
        self._late(sum(not one.alive for one in verdicts), "heartbeat")
        return verdicts

    def verdicts(self, held: Sequence[Claim]) -> list[Verdict]:
        """What `heartbeat` would say now, by reading alone: what clients want is known before the next step."""
        return self._database.read(lambda connection: claims.verdicts(connection, held, now=self.clock()))

    def publish(self, claim: Claim, result: JobResult, drawn: JobSpec | None = None) -> bool:
        """The job succeeded: its pictures are visible from now on, whose files are there already. False where the fence
        was lost or the client canceled: then nothing is visible. drawn: the spec that the result is one of, where it is
        not the job's own: that one's pictures are not reused for other jobs."""
        return self._end(endings.publish, "publish", claim, result, drawn)

    def fail(self, claim: Claim, failure: Failure) -> bool:
        """False where the fence was lost."""
        return self._end(endings.fail, "fail", claim, failure)

    def cancelled(self, claim: Claim) -> bool:
        """The worker stopped drawing, as it was asked to. False where the fence was lost."""
        return self._end(endings.cancelled, "cancelled", claim)

    def expire_job(self, claim: Claim) -> bool:
        """The deadline passed while the worker was drawing. False where the fence was lost."""
        return self._end(endings.expire_job, "expire", claim)

    def release(self, claim: Claim) -> bool:
        """Gives a job back to the front of the queue without charging the attempt. False where the fence was lost."""
        return self._end(endings.release, "release", claim)

    def expire_leases(self, worker: str | None = None) -> list[Job]:
        """Takes jobs back from workers that were silent for too long; they go to the front of the queue and are tried
        again alone, until they have cost too many workers that brought them no further. worker: whose jobs are taken
        back at once, because it is known to be dead."""
        lost = self._write(lambda connection: self._take_back(connection, worker), "expire_leases")
        self._count(lost)
        return lost

    def expire_waiting(self) -> list[Job]:
        """Ends jobs that wait although their deadline has passed."""

        def end(connection: Connection) -> list[Job]:
            return find_jobs(connection, claims.expire_waiting(connection, now=self.clock(), keep_s=self._keep_s))

        return self._write(end, "expire_waiting")

    def cancel(self, id: str, key: str | None = None) -> Job:
        """Ends a job that waits; one that runs stops at its next step (`cancel_requested`), and never succeeds; one
        that is done stays as it is. Errors: `JobNotFound`."""
        one = self.job(id, key).id
        return self._write(
            lambda connection: endings.cancel(connection, one, now=self.clock(), keep_s=self._keep_s), "cancel"
        )

    def prioritize(self, id: str, priority: int, key: str | None = None) -> Job:
        """Gives a job that waits another priority; one that runs or is done stays as it is. Errors: `JobNotFound`."""
        one = self.job(id, key).id
        return self._write(
            lambda connection: endings.prioritize(connection, one, priority, now=self.clock()), "prioritize"
        )

    def events(self, id: str, after: int = 0, limit: int = 500) -> list[JobEvent]:
        """What happened to a job, in order. after: the last number that was seen."""
        later = select(events).where(events.c.job == id, events.c.seq > after).order_by(events.c.seq).limit(limit)
        return [
            event_of(row) for row in self._database.read(lambda connection: connection.execute(later).mappings().all())
        ]

    def want_preview(self, id: str, until: float) -> None:
        """Somebody watches the job until then."""
        later = update(jobs).where(jobs.c.id == id, jobs.c.preview_until < until).values(preview_until=until)
        self._write(lambda connection: connection.execute(later), "preview")

    def upload(self, key: str, file: StoredFile, keep_s: float) -> None:
        """Lets a key name an artifact in its requests for a while; its file is there already."""
        self._write(lambda connection: files.upload(connection, key, file, now=self.clock(), keep_s=keep_s), "upload")

    def artifact(self, sha256: str, key: str | None = None) -> StoredFile:
        """key: who asks; everybody's artifacts are seen when `None`. Errors: `ArtifactNotFound`, also where the key has
        neither uploaded it nor a job that draws from it or drew it."""
        return self._database.read(lambda connection: files.find(connection, sha256, key))

    def collect_garbage(self, artifacts: ArtifactFolder, older_than_s: float = 3600.0) -> Garbage:
        """Removes jobs whose time is over, artifacts that nobody needs, and what workers kept for jobs that are done.
        older_than_s: files that are younger stay, because a job that is about to be written may name them."""
        now = self.clock()
        gone = 0
        while some := self._write(lambda connection: files.remove_expired(connection, now), "garbage"):
            gone += some
        self._write(lambda connection: files.remove_unused(connection, now), "garbage")
        swept, freed = artifacts.sweep(self._database.read(files.kept), older_than_s)
        # Looked up after the files were listed: a job is there before its log.
        there = artifacts.jobs_with_files()
        done = self._database.read(lambda connection: files.done(connection, there))
        return Garbage(jobs=gone, files=swept, bytes=freed, logs=sum(map(artifacts.forget, done)))

    def changed(self, since: int, timeout_s: float) -> int:
        """Waits until the database changed since an earlier answer, at most so long. A hint: what changed, if anything,
        is for the caller to look. since: -1 for the first time."""
        return self._watch.wait(since, timeout_s)

    def check(self) -> float:
        """Writes a row, and returns the seconds that it took."""
        start = time.perf_counter()
        self._database.write(lambda connection: written(connection, self.clock()), "check")
        return time.perf_counter() - start

    def _submit(self, new: Sequence[NewJob], limits: QueueLimits) -> list[Submitted]:
        now = self.clock()
        wanted = [prepared(one, self._ids.new("job", now), now) for one in new]

        def accept(connection: Connection) -> list[Submitted]:
            wait_turn(connection, SUBMISSION)
            return [
                submit(connection, one, limits=limits, keep_s=self._keep_s, has_file=self._has_file) for one in wanted
            ]

        return self._write(accept, "submit")

    def _take_back(self, connection: Connection, worker: str | None) -> list[Job]:
        ids = claims.expire_leases(
            connection,
            now=self.clock(),
            attempts=self._attempts,
            keep_s=self._keep_s,
            worker=worker,
            logged=self._logged,
        )
        return find_jobs(connection, ids)

    def _count(self, lost: Sequence[Job]) -> None:
        for job in lost:
            self._observe("lost", "lease", 1)
            if job.failure is not None and job.failure.code == FailureCode.POISON:
                self._observe("poison", "lease", 1)

    def _end(self, ending: Callable[..., bool], operation: str, *given: Any) -> bool:
        now, keep_s = self.clock(), self._keep_s
        written = self._write(lambda connection: ending(connection, *given, now=now, keep_s=keep_s), operation)
        self._late(not written, operation)
        return written

    def _late(self, count: int, operation: str) -> None:
        if count:
            self._observe("fence", operation, count)

    def _observe(self, kind: str, operation: str, value: float) -> None:
        for observer in self.observers:
            observer(kind, operation, value)

    def _write(self, work: Work[T], operation: str) -> T:
        value = self._database.write(work, operation)
        self._watch.tell()
        return value
