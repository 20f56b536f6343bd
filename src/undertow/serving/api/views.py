"""What a client sees of a job, as records: the answers and their schema come from the same fields."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from undertow.records import Record
from undertow.serving.failures import Failure, FailureCode, Fault
from undertow.serving.inspection import InspectionKind, InspectOptions
from undertow.serving.jobs import (
    Format,
    InspectedFile,
    Job,
    JobProgress,
    JobState,
    Kind,
    Mode,
    StoredFile,
    StoredPicture,
    expected_at,
)

REMEDIES: Mapping[FailureCode, str] = {
    FailureCode.INVALID_REQUEST: "change the value that the sentence names",
    FailureCode.INVALID_PROMPT: "change the prompt at the place that the sentence names",
    FailureCode.ADAPTER_MISMATCH: "take an adapter that GET /v1/adapters lists for this model",
    FailureCode.FILE_CHANGED: "submit it again: it is drawn with the files as they are now",
    FailureCode.NON_FINITE: "leave out the adapter or the option that drives values to infinity",
    FailureCode.OUT_OF_MEMORY: "submit it again later, or ask for a smaller picture; POST /v1/plan says what fits",
    FailureCode.EXCEEDS_CAPACITY: "ask for a smaller picture; POST /v1/plan says what fits",
    FailureCode.DEADLINE_PASSED: "submit it again with a later deadline",
    FailureCode.POISON: "do not submit it again; report it with the log of the workers",
    FailureCode.STORAGE_FULL: "make room on the disk of the service, and submit it again",
    FailureCode.UNREADABLE_FILE: "let the operator look at the file that the sentence names",
    FailureCode.UNUSABLE_ADAPTER: "take another adapter, or have its file replaced by a whole one",
    FailureCode.INTERNAL: "report it with the log of the worker",
}


@dataclass(frozen=True, kw_only=True)
class PictureView(Record):
    """A picture that was drawn, or uploaded."""

    url: str
    """Where its bytes are, on this service; they never change."""
    sha256: str
    media_type: str
    bytes: int
    width: int
    height: int
    seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class FileView(Record):
    """A file that is no picture."""

    url: str
    sha256: str
    media_type: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class InspectionView(FileView):
    """A file of what was seen inside while the job was drawn."""

    kind: InspectionKind
    name: str
    """As the library calls such a file."""
    picture: int | None = None
    """Which of the pictures it belongs to, from 0; none for all of them."""


@dataclass(frozen=True, kw_only=True)
class FailureView(Record):
    """Why a job failed."""

    code: FailureCode
    detail: str
    """A sentence: the value, what was expected, and what helps."""
    fault: Fault
    may_retry: bool
    """Whether the same request can succeed later."""
    remedy: str
    origin: str = ""
    """Where in the job, such as "picture 0, step 3"."""


@dataclass(frozen=True, kw_only=True)
class JobView(Record):
    """A job as its client sees it. Times are seconds since 1970, by the service's clock."""

    id: str
    state: JobState
    model: str
    mode: Mode
    format: Format
    submitted_at: float
    kind: Kind = "pictures"
    """What was asked for: pictures, predictions of the network, or a diagnosis."""
    client_id: str | None = None
    batch: str | None = None
    label: str = ""
    priority: int = 0
    promised_at: float | None = None
    """When it was said to be done, when it was accepted."""
    finish_at: float | None = None
    """When it will be done, as far as can be said now; updated while it waits and runs. A job that is late is expected
    to be as late again."""
    finish_in_s: float | None = None
    """The same, from now."""
    started_at: float | None = None
    finished_at: float | None = None
    deadline_at: float | None = None
    expires_at: float | None = None
    """When its pictures are removed."""
    attempt: int = 0
    """Workers that were lost while they drew it and had brought it no further than the one before; a job that goes on
    where a lost worker stopped is not charged."""
    cancel_requested: bool = False
    progress: JobProgress = JobProgress()
    pictures: tuple[PictureView, ...] = ()
    files: tuple[FileView, ...] = ()
    """Of predictions the tensors, of a diagnosis its findings."""
    inspect: InspectOptions | None = None
    """What is looked at while it is drawn."""
    inspection: tuple[InspectionView, ...] = ()
    """What was seen."""
    reused: bool = False
    """The pictures were there already, and nothing was drawn."""
    replayed_steps: int = 0
    """Steps that were not computed again after a worker was lost: they came from the log of an earlier attempt."""
    failure: FailureView | None = None
    request: dict[str, Any] = field(default_factory=dict)
    """What is drawn, with everything decided that was left open, such as the seed."""
    report: dict[str, Any] = field(default_factory=dict)
    """What was decided while drawing, and how long it took."""
    links: dict[str, str] = field(default_factory=dict)
    """Paths of the job itself, its events, its preview, and for canceling it."""


@dataclass(frozen=True, kw_only=True)
class JobList(Record):
    """Jobs, the newest first."""

    jobs: tuple[JobView, ...]
    next: str | None = None
    """Path of the jobs before these, if there are more."""


@dataclass(frozen=True, kw_only=True)
class BatchView(Record):
    """Jobs that were submitted together."""

    id: str
    jobs: tuple[JobView, ...]
    finish_at: float | None = None
    """When the last of them will be done."""


def artifact_path(sha256: str) -> str:
    return f"/v1/artifacts/{sha256}"


def job_path(job: str) -> str:
    return f"/v1/jobs/{job}"


def picture_view(picture: StoredPicture) -> PictureView:
    """Of a picture of a result."""
    return PictureView(url=artifact_path(picture.sha256), **picture.to_json())


def _file_view(file: StoredFile) -> FileView:
    return FileView(url=artifact_path(file.sha256), **file.to_json())


def _inspection_view(file: InspectedFile) -> InspectionView:
    return InspectionView(url=artifact_path(file.sha256), **file.to_json())


def failure_view(failure: Failure) -> FailureView:
    """With whose fault it is and what helps."""
    return FailureView(
        code=failure.code,
        detail=failure.detail,
        fault=failure.fault,
        may_retry=failure.may_retry,
        remedy=REMEDIES[failure.code],
        origin=failure.origin,
    )


def _progress(job: Job) -> JobProgress:
    """Of a job that has succeeded all there is: its worker told its last steps with the pictures themselves."""
    if job.state is not JobState.SUCCEEDED or job.result is None:
        return job.progress
    steps = job.work.steps
    return JobProgress(stage="done", step=steps, steps=steps, pictures=len(job.result.pictures))


def job_view(job: Job, now: float) -> JobView:
    """now: of the store's clock."""
    result, waits = job.result, not job.state.is_final
    path = job_path(job.id)
    links = {"self": path, "events": f"{path}/events"}
    if job.spec.kind == "pictures":
        links["diagnosis"] = f"{path}/diagnosis"
    if waits:
        links |= {"cancel": f"{path}/cancel", "preview": f"{path}/preview"}
    finish_at = expected_at(job.finish_at, now) if waits and job.finish_at is not None else job.finish_at
    return JobView(
        id=job.id,
        state=job.state,
        model=job.spec.model,
        mode=job.spec.mode,
        format=job.spec.format,
        submitted_at=job.submitted_at,
        client_id=job.client_id,
        batch=job.batch,
        label=job.label,
        priority=job.priority,
        promised_at=job.promised_at,
        finish_at=finish_at,
        finish_in_s=finish_at - now if waits and finish_at is not None else None,
        started_at=job.started_at,
        finished_at=job.finished_at,
        deadline_at=job.deadline_at,
        expires_at=job.expires_at,
        attempt=job.attempt,
        cancel_requested=job.cancel_requested,
        progress=_progress(job),
        kind=job.spec.kind,
        files=() if result is None else tuple(map(_file_view, result.files)),
        pictures=() if result is None else tuple(map(picture_view, result.pictures)),
        inspect=job.spec.inspect,
        inspection=() if result is None else tuple(map(_inspection_view, result.inspection)),
        reused=result is not None and result.reused,
        replayed_steps=0 if result is None else result.replayed_steps,
        failure=None if job.failure is None else failure_view(job.failure),
        request=as_drawn(job.spec.request),
        report={} if result is None else result.report,
        links=links,
    )


def as_drawn(request: Mapping[str, Any]) -> dict[str, Any]:
    """A request with the steps that its sigmas have, where these take the place of its own; and one about another."""
    shown = {name: as_drawn(value) if name == "request" else value for name, value in request.items()}
    sigmas = request.get("sigmas")
    return {**shown, "steps": len(sigmas) - 1} if isinstance(sigmas, Sequence) else shown
