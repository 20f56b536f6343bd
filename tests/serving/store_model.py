"""What the store promises, in fifty lines of plain Python, for tests to compare with."""

from dataclasses import dataclass, field

FINAL = ("succeeded", "failed", "canceled", "expired")


@dataclass
class ModelJob:
    id: str
    key: str
    spec: str
    idempotency_key: str | None
    client_id: str | None
    priority: int
    deadline: float | None
    submitted_at: float
    state: str = "queued"
    fence: int = 0
    worker: str | None = None
    lease_until: float = 0.0
    attempt: int = 0
    log: int = 0  # bytes that the newest claim has written
    logged: int = 0  # when a worker was lost last
    alone: bool = False
    requeued: bool = False
    cancel: bool = False
    reused: bool = False
    progress: tuple[str, int] = ("waiting", 0)
    expires_at: float | None = None
    events: list[str] = field(default_factory=lambda: ["accepted"])

    @property
    def seen(self) -> tuple:
        """What `Job` has of it."""
        return self.state, self.fence, self.worker, self.attempt, self.alone, self.cancel, self.progress


class Model:
    """Jobs in the order of their ids."""

    def __init__(self, attempts: int, keep_s: float, total: int, per_key: int):
        self.attempts, self.keep_s, self.total, self.per_key = attempts, keep_s, total, per_key
        self.jobs: dict[str, ModelJob] = {}

    def accepts(self, key, spec, idempotency_key, client_id):
        """The job that this submission is answered with, what it is refused for, or `None` for a new job."""
        mine = [job for job in self.jobs.values() if job.key == key]
        for job in mine:
            if idempotency_key is not None and job.idempotency_key == idempotency_key:
                return job if job.spec == spec else "IdempotencyConflict"
        for job in mine:
            if client_id is not None and job.client_id == client_id:
                return job if job.spec == spec else "ClientIdConflict"
        if any(job.spec == spec and job.state == "succeeded" for job in mine):
            return None
        waiting = [job for job in self.jobs.values() if job.state == "queued"]
        full = len(waiting) >= self.total or len([job for job in waiting if job.key == key]) >= self.per_key
        return "QueueFull" if full else None

    def add(self, job: ModelJob, now: float) -> None:
        others = [
            one for one in self.jobs.values() if (one.key, one.spec, one.state) == (job.key, job.spec, "succeeded")
        ]
        self.jobs[job.id] = job
        if others:
            job.reused = True
            self.end(job, "succeeded", now)

    def waiting(self) -> list[ModelJob]:
        waiting = [job for job in self.jobs.values() if job.state == "queued"]
        return sorted(waiting, key=lambda job: (not job.requeued, -job.priority, job.submitted_at, job.id))

    def end(self, job: ModelJob, state: str, now: float) -> None:
        assert job.state not in FINAL
        job.state, job.expires_at = state, now + self.keep_s
        job.events.append(state)

    def expire_waiting(self, now: float) -> None:
        for job in self.waiting():
            if job.deadline is not None and job.deadline <= now:
                self.end(job, "expired", now)

    def expire_leases(self, now: float, worker: str | None = None) -> None:
        for job in self.jobs.values():
            over = job.lease_until <= now if worker is None else job.worker == worker
            if job.state != "running" or not over:
                continue
            job.worker = None
            if job.cancel:
                self.end(job, "canceled", now)
            elif job.deadline is not None and job.deadline <= now:
                self.end(job, "expired", now)
            elif job.log > job.logged:
                job.logged, job.alone = job.log, True
                self.requeue(job)
            elif job.attempt + 1 >= self.attempts:
                job.attempt += 1
                self.end(job, "failed", now)
            else:
                job.attempt, job.alone = job.attempt + 1, True
                self.requeue(job)

    def requeue(self, job: ModelJob) -> None:
        job.state, job.worker, job.requeued = "queued", None, True
        job.events.append("requeued")

    def claim(self, job: ModelJob, worker: str, now: float, lease_s: float) -> None:
        job.state, job.worker, job.fence, job.lease_until = "running", worker, job.fence + 1, now + lease_s
        job.log = 0
        job.events.append("started")

    def holds(self, job: ModelJob | None, fence: int) -> bool:
        return job is not None and job.state == "running" and job.fence == fence

    def collect(self, now: float) -> None:
        self.jobs = {id: job for id, job in self.jobs.items() if job.expires_at is None or job.expires_at > now}
