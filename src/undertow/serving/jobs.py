"""A job: a request that was accepted, from the moment it is durable until its pictures expire. No torch, no SQL.

queued -> running -> succeeded | failed | canceled | expired
   ^         |
   +---------+  the worker was lost, stopped, or gave the job back
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le, MaxLen

from undertow.known_names import BackendName, PrecisionName
from undertow.quantization import Quantized
from undertow.records import Finite, Record
from undertow.serving.failures import Failure
from undertow.serving.inspection import InspectionKind, InspectOptions

Mode = Literal["fast", "reproducible"]
"""fast: in any batch, equal within rounding. reproducible: in forwards of a fixed number of rows, equal to the byte
whatever else runs."""

Format = Literal["png", "jpeg", "webp"]

Kind = Literal["pictures", "predictions", "diagnosis"]
"""predictions: what the network says of given latents, in one forward; no sampling, no decoding. diagnosis: what the
doctor finds out about a request."""


class JobState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"
    EXPIRED = "expired"
    """Its deadline passed before it was done."""

    @property
    def is_final(self) -> bool:
        """Whether it never changes again."""
        return self not in (JobState.QUEUED, JobState.RUNNING)


@dataclass(frozen=True, kw_only=True)
class JobSpec(Record):
    """What is to be drawn, with everything decided that was left open, so that a second run gives the same bytes.

    request: a `GenerationRequest` as JSON, in which adapters are names of the catalog and pictures are
    `{"artifact": sha256, "size": [width, height]}`. files: the hash of the model (under "") and of every adapter and
    embedding, by name, as they were when the job was accepted.
    """

    model: str
    request: dict[str, Any]
    mode: Mode = "reproducible"
    rows: Annotated[int, Ge(1)] | None = None
    """Of every forward, for all of its life, in the mode "reproducible"."""
    format: Format = "png"
    files: dict[str, str] = field(default_factory=dict)
    kind: Kind = "pictures"
    """Of predictions, `request` is {"artifact": sha256} of the contexts (worker/predictions.py); of a diagnosis it is
    {"request": what is diagnosed, "only": [names of rules], "subject": id of its job or null}."""
    inspect: InspectOptions | None = None
    """What is looked at meanwhile."""
    precision: PrecisionName | None = None
    """Of the model, as in `ModelEntry`: in another one pictures are other pictures. So with the next two."""
    backend: BackendName | None = None
    quantize: Quantized | None = None


@dataclass(frozen=True, kw_only=True)
class JobWork(Record):
    """What a schedule must know of a job without reading its request. cells: of a picture's latents. rows: of the
    forward of one step of all its pictures, branches of guidance included; adapted_rows: those in which adapters act.
    steps: of every picture, in all passes. longer: times that a step of its own rows takes, because of what is looked
    at. after_s: seconds after the last picture, for what was seen."""

    cells: Annotated[int, Ge(0)] = 0
    rows: Annotated[int, Ge(1)] = 1
    adapted_rows: Annotated[int, Ge(0)] = 0
    steps: Annotated[int, Ge(0)] = 1
    pictures: Annotated[int, Ge(1)] = 1
    longer: Annotated[Finite, Ge(1)] = 1.0
    after_s: Annotated[Finite, Ge(0)] = 0.0


@dataclass(frozen=True, kw_only=True)
class StoredFile(Record):
    """A file among the artifacts, such as a picture that a request is given."""

    sha256: str
    media_type: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class NewJob(Record):
    """What the store is given. key: the id of the API key, whose jobs nobody else sees. client_id: the name that a
    client chose (PUT). idempotency_key: of the header of that name. cost: forecast row-steps, by which keys are treated
    fairly. label: of the client's own (1 KiB), never read. finish_at, deadline_at: seconds since 1970. reuse: whether
    pictures that the same key drew of the same spec before are its result."""

    key: str
    spec: JobSpec
    work: JobWork = JobWork()
    inputs: tuple[StoredFile, ...] = ()
    """Artifacts that the request names; they are kept as long as the job."""
    cost: Annotated[float, Ge(0)] = 1.0
    priority: Annotated[int, Ge(-10), Le(10)] = 0
    client_id: str | None = None
    idempotency_key: str | None = None
    body_hash: str = ""
    """Of the client's body; the same idempotency key with another body is refused."""
    label: Annotated[str, MaxLen(1024)] = ""
    deadline_at: float | None = None
    finish_at: float | None = None
    webhook: str | None = None
    batch: str | None = None
    """Of jobs that were submitted together."""
    traceparent: str | None = None
    alone: bool = False
    """Shares no forward with other jobs."""
    reuse: bool = True


@dataclass(frozen=True, kw_only=True)
class JobProgress(Record):
    """step: of the picture that is furthest, of `steps`. stage: waiting, encoding, denoising, decoding, done."""

    stage: str = "waiting"
    step: int = 0
    steps: int = 0
    pictures: int = 0
    """Pictures that are done."""


@dataclass(frozen=True, kw_only=True)
class StoredPicture(Record):
    """A picture of a result: an artifact, and what a client wants to know without opening it."""

    sha256: str
    media_type: str
    bytes: int
    width: int
    height: int
    seed: int

    @property
    def file(self) -> StoredFile:
        return StoredFile(sha256=self.sha256, media_type=self.media_type, bytes=self.bytes)


@dataclass(frozen=True, kw_only=True)
class InspectedFile(StoredFile):
    """A file of what was seen inside. name: as the library calls it. picture: which it belongs to; `None` for all."""

    kind: InspectionKind
    name: str
    picture: int | None = None

    @property
    def file(self) -> StoredFile:
        return StoredFile(sha256=self.sha256, media_type=self.media_type, bytes=self.bytes)


@dataclass(frozen=True, kw_only=True)
class JobResult(Record):
    """pictures: in order. report: what was decided, and how long it took. reused: served from pictures that were there
    already. replayed_steps: taken from the log of an earlier attempt. inspection: what was seen inside."""

    pictures: tuple[StoredPicture, ...]
    report: dict[str, Any] = field(default_factory=dict)
    reused: bool = False
    replayed_steps: int = 0
    files: tuple[StoredFile, ...] = ()
    """Of predictions the tensors, of a diagnosis its findings."""
    inspection: tuple[InspectedFile, ...] = ()

    @property
    def stored(self) -> list[StoredFile]:
        """Every artifact of it."""
        return [*(one.file for one in self.pictures), *self.files, *(one.file for one in self.inspection)]


@dataclass(frozen=True, kw_only=True)
class Job(Record):
    """A job as it is now. attempt: counts workers that were lost and had brought it no further. alone: the next
    attempt shares no forward with other jobs, because one of a group that was lost together may be the cause. fence: of
    the newest claim; a worker with an older one cannot write. promised_at: when the client was told that it would be
    done; finish_at: when it will be, as far as can be said now."""

    id: str
    key: str
    spec: JobSpec
    spec_hash: str
    state: JobState
    submitted_at: float
    work: JobWork = JobWork()
    cost: float = 1.0
    priority: int = 0
    client_id: str | None = None
    batch: str | None = None
    label: str = ""
    started_at: float | None = None
    finished_at: float | None = None
    deadline_at: float | None = None
    promised_at: float | None = None
    expires_at: float | None = None
    """When its pictures are removed."""
    finish_at: float | None = None
    attempt: int = 0
    alone: bool = False
    worker: str | None = None
    fence: int = 0
    cancel_requested: bool = False
    preview_until: float = 0.0
    """Somebody watches until then: the worker makes previews."""
    webhook: str | None = None
    traceparent: str | None = None
    progress: JobProgress = JobProgress()
    result: JobResult | None = None
    failure: Failure | None = None


@dataclass(frozen=True, kw_only=True)
class JobEvent(Record):
    """Something that happened to a job. seq: counts from 1 without gaps, for each job. kind: accepted, started,
    progress, requeued, and the final states."""

    job: str
    seq: int
    kind: str
    at: float
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Claim(Record):
    """A job that a worker may work on until `lease_until`. Every write carries the fence."""

    job: Job
    worker: str
    fence: int
    lease_until: float


def expected_at(finish_at: float, now: float) -> float:
    """When a job that is not done will be, by what was said last: one that is late, because its worker says nothing,
    is expected to be as late again."""
    return max(finish_at, 2 * now - finish_at)
