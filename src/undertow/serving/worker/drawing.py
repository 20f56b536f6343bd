"""A job while it is drawn: from a claim to a handle of the engine, and what is said of it meanwhile."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any

from undertow.adapters.adapter import Adapter
from undertow.adapters.stack import AdapterStack
from undertow.engine.events import PictureEvent, StepEvent
from undertow.engine.handle import Handle
from undertow.engine.limits import BatchLimits
from undertow.engine.options import RunOptions
from undertow.engine.outcomes import OutcomeLog
from undertow.engine.request import GenerationRequest
from undertow.engine.request_run import Stage
from undertow.serving.artifacts import ArtifactFolder
from undertow.serving.failures import Failure
from undertow.serving.jobs import Claim, JobProgress
from undertow.serving.store.records import QueueEntry
from undertow.serving.tracing import StageBegun
from undertow.serving.worker.logs import JobLog
from undertow.serving.worker.looking import Looking, Seen
from undertow.serving.worker.models import Loaded

logger = logging.getLogger(__name__)

PREVIEW_S = 0.5
"""Between two previews of a job."""

STAGES: Mapping[Stage, str] = {
    Stage.WAITING: "encoding",
    Stage.ENCODED: "denoising",
    Stage.DENOISING: "denoising",
    Stage.DECODING: "decoding",
    Stage.FINISHED: "decoding",  # its files are written
}


@dataclass(kw_only=True, eq=False)
class Drawing:
    """entry: as the schedule saw it. request: as the engine gets it. embeddings: files of textual inversions that its
    prompts know. entered: called at its first step. previewed: called with the seconds that a preview took. clock: of
    the store. watched: whether somebody wants previews. pictures: that are done. failure: why it failed, until that is
    written. looking: what looks into it. seen: what it saw, when the pictures are done."""

    claim: Claim
    entry: QueueEntry
    request: GenerationRequest
    embeddings: tuple[Path, ...]
    artifacts: ArtifactFolder
    log: JobLog
    entered: Callable[[], None]
    previewed: Callable[[float], None]
    clock: Callable[[], float]
    watched: bool = False
    pictures: int = 0
    failure: Failure | None = None
    loaded: Loaded | None = None
    handle: Handle | None = None
    options: RunOptions = RunOptions()
    outcomes: OutcomeLog | None = None
    looking: Looking | None = None
    seen: Sequence[Seen] | None = None
    publishing: "Future[bool] | None" = None
    """Of its pictures, while their files are written."""
    late_since: float | None = None
    """Since when its pictures could not be stored."""
    store_at: float = 0.0
    """When that is tried again."""
    stages: list[StageBegun] = field(default_factory=list[StageBegun])
    """Those that it has begun, in order."""
    _has_entered: bool = field(default=False, init=False)
    _previewed_at: float = field(default=float("-inf"), init=False)

    def prepare(self, loaded: Loaded, most_rows: int | None, budget_bytes: int | None = None) -> None:
        """Opens the job's log for an engine. most_rows: of a forward in the mode "fast". budget_bytes: of the process.
        Errors: those of `JobLog.outcomes` and `Looking`."""
        limits = limits_of(self.claim, most_rows)
        self.options = RunOptions(limits=limits, budget_bytes=budget_bytes, drawn=self._drawn)
        wanted = self.claim.job.spec.inspect
        if wanted is not None:
            self.looking = Looking(loaded.engine, self.request, wanted)
            self.options = self.looking.options(self.options)
        # Of steps that are taken from a log nothing can be seen.
        self.outcomes = self.log.outcomes(loaded.engine, self.request, self.options, takes_up=wanted is None)
        self.loaded = loaded

    @property
    def encoded(self) -> bool:
        """Whether its prompts have been read."""
        return self.handle is not None and (self.handle.done or self.handle.progress.stage is not Stage.WAITING)

    @property
    def done(self) -> bool:
        return self.failure is not None or (self.handle is not None and self.handle.done)

    def progress(self) -> JobProgress:
        if self.handle is None:
            return JobProgress(stage="waiting")
        now = self.handle.progress
        return JobProgress(stage=STAGES[now.stage], step=now.step, steps=now.steps, pictures=self.pictures)

    def note(self, stage: str) -> None:
        """The job is at a stage now."""
        if not self.stages or self.stages[-1].stage != stage:
            self.stages.append(StageBegun(stage=stage, at=self.clock()))

    def replayed_steps(self) -> int:
        """Steps of all its pictures that were taken from the log."""
        if self.outcomes is None or self.handle is None:
            return 0
        steps = self.handle.progress.steps
        return sum(self.outcomes.picture(index).reached(steps) for index in range(self.request.count))

    def look(self) -> Sequence[Seen]:
        """What was seen of the pictures that are done. Errors: those of `Looking.seen`."""
        if self.seen is None:
            assert self.handle is not None
            self.seen = () if self.looking is None else self.looking.seen(self.handle.result(), self.handle.number)
        return self.seen

    def look_away(self) -> None:
        """It is drawn no more."""
        if self.looking is not None:
            self.looking.end()

    def stop(self) -> None:
        """Ends the drawing before its next step; the log stays."""
        if self.handle is not None:
            self.handle.cancel()
        self.log.close()

    def end(self, *, canceled: bool) -> None:
        """The job is done: what was kept for it goes. Of one that was canceled the preview stays until garbage is
        collected: it is all that its client gets."""
        self.log.discard()
        if not canceled:
            self.artifacts.forget(self.claim.job.id)

    def said(self) -> dict[str, Any]:
        """What is added to the engine's report."""
        spec = self.claim.job.spec
        notes = {"note": self.log.note} if self.log.note else {}
        return {"mode": spec.mode, "model": spec.model, "attempt": self.claim.job.attempt, **notes}

    def _drawn(self, event: PictureEvent) -> None:
        del event
        self.pictures += 1

    def entered_step(self, event: StepEvent) -> None:
        """A preview, if somebody watches. What goes wrong with it does not hurt the job."""
        if self.looking is not None:
            self.looking.observe(event)
        if not self._has_entered:
            self._has_entered = True
            self.entered()
        if not self.watched or event.picture or time.monotonic() - self._previewed_at < PREVIEW_S:
            return
        self._previewed_at = started = time.monotonic()
        try:
            picture = event.preview()
            if picture is not None:
                content = BytesIO()
                picture.save(content, format="PNG", compress_level=1)
                self.artifacts.put_preview(self.claim.job.id, content.getvalue())
                self.previewed(time.monotonic() - started)
        except Exception as error:
            self.watched = False
            logger.warning("no preview of job %s: %s", self.claim.job.id, error)


def begin(drawings: Sequence[Drawing], loaded: Loaded) -> None:
    """Gives jobs that are prepared to their engine, so that they share forwards from the first step on. Errors: those
    of `Engine.submit_together`."""
    for drawing in drawings:
        if drawing.looking is not None:
            drawing.looking.begin()
    handles = loaded.engine.submit_together(
        [one.request for one in drawings],
        [one.entered_step for one in drawings],
        options=[one.options for one in drawings],
        outcomes=[one.outcomes for one in drawings],
        apart=True,
    )
    for drawing, handle in zip(drawings, handles, strict=True):
        drawing.handle = handle


def limits_of(claim: Claim, most_rows: int | None) -> BatchLimits | None:
    """A fixed number of rows in the mode "reproducible"; else at most as many as were measured to pay, or the engine's
    own where nothing was."""
    spec = claim.job.spec
    if spec.mode == "reproducible" and spec.rows is not None:
        return BatchLimits(padded_to=spec.rows)
    return None if most_rows is None else BatchLimits(rows=most_rows)


def placed(request: GenerationRequest, loras: frozenset[str], per_row: int) -> GenerationRequest:
    """The request with its LoRA merged where they are more than one row has slots for. It is decided by the request
    alone, so that it is drawn alike beside whatever. loras: sources of adapters that are LoRA."""
    everywhere, regions = request.adapters, request.regions

    def count(adapters: Iterable[Adapter]) -> int:
        return sum(str(one.source) in loras for one in adapters)

    if count(everywhere) + max((count(region.adapters) for region in regions), default=0) <= per_row:
        return request

    def merged(adapters: "tuple[Adapter, ...] | AdapterStack") -> Any:
        found = tuple(
            replace(one, residency="merged") if str(one.source) in loras and one.residency == "auto" else one
            for one in adapters
        )
        return replace(adapters, adapters=found) if isinstance(adapters, AdapterStack) else found

    return replace(
        request,
        adapters=merged(everywhere),
        regions=tuple(replace(region, adapters=merged(region.adapters)) for region in regions),
    )
