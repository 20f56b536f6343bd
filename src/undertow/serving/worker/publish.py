"""Finished pictures become files that survive, and only then the job is done."""

import errno
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any, TypeVar

from undertow.engine.result import GenerationResult
from undertow.engine.saving import encoded
from undertow.serving.artifacts import ArtifactFolder
from undertow.serving.catalog.entries import ModelEntry
from undertow.serving.jobs import Claim, Format, InspectedFile, JobResult, StoredPicture
from undertow.serving.store.store import Store
from undertow.serving.worker.looking import Seen

ENDINGS: Mapping[Format, str] = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
MEDIA_TYPES: Mapping[Format, str] = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
T = TypeVar("T")

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def stored_pictures(result: GenerationResult, format_: Format, artifacts: ArtifactFolder) -> tuple[StoredPicture, ...]:
    """Writes the pictures, each with what is needed to repeat it and nothing that changes from one run to the next, so
    that a job that is drawn twice has the same files. Errors: `OSError`."""
    found: list[StoredPicture] = []
    for index, (image, seed) in enumerate(zip(result.images, result.report.request.seeds, strict=True)):
        content = encoded(image, Path(f"picture{ENDINGS[format_]}"), result.report, index)
        found.append(
            StoredPicture(
                sha256=artifacts.put(content),
                media_type=MEDIA_TYPES[format_],
                bytes=len(content),
                width=image.width,
                height=image.height,
                seed=seed,
            )
        )
    return tuple(found)


def inspected_files(seen: Sequence[Seen], artifacts: ArtifactFolder) -> tuple[InspectedFile, ...]:
    """Writes what was seen inside. Errors: `OSError`."""
    return tuple(
        InspectedFile(
            sha256=artifacts.put(one.content),
            media_type=one.media_type,
            bytes=len(one.content),
            kind=one.kind,
            name=one.name,
            picture=one.picture,
        )
        for one in seen
    )


def publish(
    store: Store,
    artifacts: ArtifactFolder,
    claim: Claim,
    result: GenerationResult,
    seen: Sequence[Seen] = (),
    *,
    drawn_by: ModelEntry | None = None,
    **report: Any,
) -> bool:
    """Writes the files, then ends the job in one transaction, if the claim still holds; returns whether it did. seen:
    inside, while it was drawn. drawn_by: the worker's model, which may compute in another way than that of
    the job's service. report: what is said beside the engine's own; `replayed_steps` of the result. Errors: `OSError`,
    `StoreError`."""
    pictures = stored_pictures(result, claim.job.spec.format, artifacts)
    replayed = report.pop("replayed_steps", 0)
    outcome = JobResult(
        pictures=pictures,
        report={**described(result), **report},
        replayed_steps=replayed,
        inspection=inspected_files(seen, artifacts),
    )
    spec = claim.job.spec
    drawn = spec if drawn_by is None else drawn_by.computed(spec)
    return store.publish(claim, outcome, None if drawn == spec else drawn)


def described(result: GenerationResult) -> dict[str, Any]:
    """What clients are told of how the pictures were made."""
    report = result.report
    memory = report.memory
    return {
        "sampler": report.sampler,
        "schedule": report.schedule,
        "size": list(report.size),
        "rows": report.rows,
        "seconds": {stage: round(seconds, 4) for stage, seconds in report.seconds.items()},
        "decisions": list(report.decisions),
        "adapters": [{"title": used.title, "kind": used.kind} for used in report.files.adapters],
        "memory": {"peak_bytes": max(memory.peaks.values(), default=None), "forecast_bytes": memory.forecast_bytes},
    }


class Inline(Executor):
    """Does at once what it is given, in the thread that gives it."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> "Future[T]":
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future
