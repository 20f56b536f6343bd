"""How a job ends in a worker: its pictures are published, or why there are none is written."""

import logging
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace

from undertow.errors import CheckpointError, RequestFailed
from undertow.serving.artifacts import ArtifactDamaged, ArtifactFolder
from undertow.serving.failures import Failure, FailureCode, failure_of, without_paths
from undertow.serving.jobs import Claim, JobState
from undertow.serving.store.records import StoreError
from undertow.serving.store.store import Store
from undertow.serving.tracing import StageBegun
from undertow.serving.worker.about import STORAGE_FULL, About
from undertow.serving.worker.drawing import Drawing
from undertow.serving.worker.measures import Measures
from undertow.serving.worker.publish import NO_ROOM, Inline, publish

logger = logging.getLogger(__name__)

MOST_EVENTS = 10_000
"""Of a job that was canceled, among which is the wish."""
STORE_AGAIN_S, STORED_LATE_S = 1.0, 60.0
"""Pictures that could not be stored are tried again for so long, at such intervals."""


@dataclass(kw_only=True, eq=False)
class Finishing:
    """let_go: called with a drawing that has ended. log_prompts: whether the log may have them. publisher: writes the
    files of pictures."""

    store: Store
    artifacts: ArtifactFolder
    about: About
    measures: Measures
    let_go: Callable[[Drawing], None]
    log_prompts: bool
    publisher: Executor = field(default_factory=Inline)

    def finish(self, drawing: Drawing) -> None:
        """Publishes what is done, or goes on with that. Errors: `StoreError`, after which it is tried again."""
        if drawing.failure is not None:
            self._give_up(drawing, drawing.failure)
            return
        assert drawing.handle is not None
        try:
            result = drawing.handle.result()
        except Exception as error:
            self.fail(drawing, error)
            return
        if time.monotonic() < drawing.store_at:
            return
        replayed, said = drawing.replayed_steps(), drawing.said()
        if drawing.publishing is None:
            drawing.note("publishing")
            try:
                seen = drawing.look()
            except Exception as error:
                self.fail(drawing, error)
                return
            arguments = (self.store, self.artifacts, drawing.claim, result, seen)
            assert drawing.loaded is not None
            said |= {"drawn_by": drawing.loaded.entry, "replayed_steps": replayed}
            drawing.publishing = self.publisher.submit(publish, *arguments, **said)
        if not drawing.publishing.done():
            return
        published, drawing.publishing = drawing.publishing, None
        try:
            kept = published.result()
        except StoreError:
            raise
        except OSError as error:
            self._not_stored(drawing, error)
            return
        except Exception as error:
            self.fail(drawing, error)
            return
        self.about.storage = ""
        self.measures.drew(drawing.claim, result, replayed)
        self._ended(drawing, JobState.SUCCEEDED, kept=kept)

    def fail(self, drawing: Drawing, error: BaseException) -> None:
        """Ends a job with what went wrong. Errors: `StoreError`, after which `finish` tries it again."""
        drawing.failure = failure_in_job(error, drawing.claim.job.spec.files)
        if drawing.failure.fault == "engine":
            logger.error("job %s failed", drawing.claim.job.id, exc_info=error)
        self._give_up(drawing, drawing.failure)

    def refuse(self, claim: Claim, error: BaseException) -> None:
        """Ends a job that was not begun. Errors: `StoreError`."""
        self._write(claim, failure_in_job(error, claim.job.spec.files))
        self.artifacts.forget(claim.job.id)

    def end(self, drawing: Drawing, outcome: JobState | None, *, kept: bool) -> None:
        """Ends a job that is drawn no more. outcome: `None` where it is another worker's."""
        if drawing.handle is not None:
            drawing.handle.cancel()
        if outcome is JobState.CANCELED and kept:
            asked = self.store.events(drawing.claim.job.id, limit=MOST_EVENTS)
            wishes = [event.at for event in asked if event.data.get("cancel_requested")]
            self.measures.canceled(*wishes[:1] or [drawing.clock()])
        self._ended(drawing, outcome or "", kept=kept)

    def _not_stored(self, drawing: Drawing, error: OSError) -> None:
        """The pictures wait for room on the disk, for a while."""
        now = time.monotonic()
        if drawing.late_since is None:
            drawing.late_since = now
        if error.errno not in NO_ROOM or now - drawing.late_since > STORED_LATE_S:
            self.fail(drawing, error)
            return
        self.about.storage = STORAGE_FULL
        drawing.store_at = now + STORE_AGAIN_S
        logger.error("the pictures of job %s wait for room on the disk: %s", drawing.claim.job.id, error)

    def _give_up(self, drawing: Drawing, failure: Failure) -> None:
        kept = self._write(drawing.claim, failure, drawing.stages)
        self.let_go(drawing)
        self._clean(drawing, kept=kept)

    def _write(self, claim: Claim, failure: Failure, stages: Sequence[StageBegun] = ()) -> bool:
        # What the request is to blame for may quote its prompt, which its client is told and the log is not.
        said = f": {failure.detail}" if self.log_prompts or failure.fault != "request" else ""
        logger.warning("job %s failed: %s%s", claim.job.id, failure.code, said)
        kept = self.store.fail(claim, failure)
        self.measures.ended(claim, failure.code, kept=kept, stages=stages)
        return kept

    def _ended(self, drawing: Drawing, outcome: str, *, kept: bool) -> None:
        self.measures.ended(drawing.claim, outcome, kept=kept, stages=drawing.stages)
        self.let_go(drawing)
        self._clean(drawing, kept=kept, canceled=outcome == JobState.CANCELED)

    def _clean(self, drawing: Drawing, *, kept: bool, canceled: bool = False) -> None:
        """After a final state nobody needs the log; where the fence was lost, another worker needs its own."""
        if kept:
            drawing.end(canceled=canceled)
        else:
            logger.warning("job %s is not this worker's any more: what it drew is dropped", drawing.claim.job.id)
            drawing.log.forget()


def failure_in_job(error: BaseException, files: Collection[str] = ()) -> Failure:
    """Why a job failed. A stored picture that is damaged or gone is ours, not the request's; an adapter that cannot be
    read is the request's. files: names of its adapters."""
    if isinstance(error, ArtifactDamaged | FileNotFoundError):
        return Failure(code=FailureCode.UNREADABLE_FILE, detail=without_paths(str(error), error))
    failure = failure_of(error)
    cause = error.__cause__ if isinstance(error, RequestFailed) else error
    place = cause.path.name.removesuffix(".safetensors") if isinstance(cause, CheckpointError) else None
    if failure.code is FailureCode.UNREADABLE_FILE and place in files:
        return replace(failure, code=FailureCode.UNUSABLE_ADAPTER)
    return failure
