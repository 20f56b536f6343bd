"""What the store returns and raises. No SQL, so that everybody may import it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from undertow.errors import UndertowError
from undertow.serving.jobs import Job, JobProgress, JobState, JobWork, Mode


@dataclass(frozen=True, kw_only=True)
class QueueLimits:
    """How many jobs may wait: of everybody, and of one key."""

    total: int = 1000
    per_key: int = 1000


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """job: the new one, or one that was accepted before. created: whether it is new."""

    job: Job
    created: bool


@dataclass(frozen=True, kw_only=True)
class QueueEntry:
    """A job that waits or runs, without its request. promised_at: when its client was told that it would be done;
    finish_at: when it will be, as far as can be said now. requeued: it was running before, and goes first. beat_at:
    when its worker first said its progress. cancel_requested: it stops at its next step."""

    id: str
    key: str
    model: str
    mode: Mode
    rows: int | None
    """Of every forward, in the mode "reproducible"."""
    work: JobWork
    cost: float
    priority: int
    state: JobState
    submitted_at: float
    started_at: float | None
    deadline_at: float | None
    promised_at: float | None
    finish_at: float | None
    attempt: int
    alone: bool
    requeued: bool
    worker: str | None
    beat_at: float | None
    cancel_requested: bool
    progress: JobProgress


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a worker must know of a job of its own. alive: the fence is still its own; it drops the job otherwise."""

    job: str
    alive: bool
    cancel_requested: bool = False
    deadline_passed: bool = False
    preview_wanted: bool = False


class Scope(StrEnum):
    """What an API key may do. submit: make and cancel jobs. read: see them. inspect: look into its jobs while they are
    drawn, and ask for diagnoses, which slows others down. admin: everything, with everybody's jobs."""

    SUBMIT = "submit"
    READ = "read"
    INSPECT = "inspect"
    ADMIN = "admin"


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """A key without its secret. max_queued, requests_per_minute: as many as anybody may when `None`. last_used: within
    a minute."""

    id: str
    name: str
    scopes: tuple[Scope, ...]
    created_at: float
    max_queued: int | None = None
    requests_per_minute: int | None = None
    last_used: float | None = None
    revoked_at: float | None = None

    def allows(self, scope: Scope) -> bool:
        return scope in self.scopes or Scope.ADMIN in self.scopes


PATIENCE = "patience_s"
"""In a worker's `data`: how long the step may take that it computes."""


@dataclass(frozen=True, kw_only=True)
class WorkerInfo:
    """A worker process, as it said itself. state: starting, idle, busy, draining. last_step_at: when the engine did its
    last unit of work. seen_at: when it last wrote, by the store's clock. data: whatever else is worth showing."""

    name: str
    device: str
    pid: int
    host: str = ""
    state: Literal["starting", "idle", "busy", "draining"] = "starting"
    models: tuple[str, ...] = ()
    """That are loaded."""
    last_step_at: float | None = None
    started_at: float = 0.0
    seen_at: float = 0.0
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """A webhook that is to be called for a job that is done. attempt: how often it failed before."""

    job: str
    key: str
    url: str
    attempt: int


@dataclass(frozen=True, kw_only=True)
class Garbage:
    """What a collection removed. bytes: of files."""

    jobs: int = 0
    files: int = 0
    bytes: int = 0
    logs: int = 0


Clock = Callable[[], float]
"""Seconds since 1970."""

Pick = Callable[[Sequence[QueueEntry]], Sequence[str]]
"""Which of the waiting jobs a worker takes now, by their ids. It is called within a transaction: pure, and fast."""

Observer = Callable[[str, str, float], None]
"""Told what metrics count: (kind, operation, value). Kinds: "seconds" of a transaction, "busy" for a retry, "fence" for
a write that came too late, "lost" for leases that were over, "poison" for jobs that were given up."""


class StoreError(UndertowError):
    """The database cannot be used. problem: what is the matter, for those that branch on it."""

    def __init__(self, place: str, problem: "StoreProblem", sentence: str, remedy: str):
        super().__init__(f"{place}: {sentence}; {remedy}")
        self.place = place
        self.problem: StoreProblem = problem
        self.remedy = remedy

    @property
    def may_retry(self) -> bool:
        """Whether the same call can succeed later."""
        return self.problem in ("locked", "full", "unreachable")


StoreProblem = Literal["unwritable", "no_database", "foreign", "newer", "locked", "full", "unreachable", "unknown"]


class JobNotFound(UndertowError, LookupError):
    """There is no such job, or it belongs to another key, which nobody is told."""

    def __init__(self, job: str):
        super().__init__(
            f"there is no job {job!r}; finished jobs are removed at their `expires_at`: list the jobs to see them"
        )
        self.job = job


class ArtifactNotFound(UndertowError, LookupError):
    """There is no such picture, or it belongs to another key, which nobody is told."""

    def __init__(self, sha256: str):
        super().__init__(
            f"there is no artifact {sha256!r}; pictures are removed when their job expires, and no retry brings them "
            "back: submit the job again"
        )
        self.sha256 = sha256


class IdempotencyConflict(UndertowError):
    """An Idempotency-Key that was used with another request. job: the one that was accepted under it."""

    def __init__(self, idempotency_key: str, job: str):
        super().__init__(
            f"the Idempotency-Key {idempotency_key!r} was used for another request, accepted as {job}; "
            "repeat that request unchanged, or take a new key"
        )
        self.idempotency_key = idempotency_key
        self.job = job


class ClientIdConflict(UndertowError):
    """A name of a client's own that another request has. job: the one that has it."""

    def __init__(self, client_id: str, job: str):
        super().__init__(f"the name {client_id!r} belongs to another request, accepted as {job}; take another name")
        self.client_id = client_id
        self.job = job


class QueueFull(UndertowError):
    """More jobs wait than may. of_key: whether it is the limit of the key rather than everybody's."""

    def __init__(self, waiting: int, limit: int, of_key: bool):
        whose = "of this key " if of_key else ""
        super().__init__(f"{waiting} jobs {whose}wait, and at most {limit} may; come back when some are done")
        self.waiting = waiting
        self.limit = limit
        self.of_key = of_key
