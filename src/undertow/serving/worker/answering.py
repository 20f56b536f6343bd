"""Jobs that draw nothing, predictions and diagnoses, which are answered between two steps of those that draw."""

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from undertow.serving.artifacts import ArtifactFolder
from undertow.serving.catalog.catalog import Catalog
from undertow.serving.jobs import Claim, JobProgress, JobResult, JobState, StoredFile
from undertow.serving.store.records import StoreError
from undertow.serving.store.store import Store
from undertow.serving.worker.diagnoses import JSON, diagnosed, words_of
from undertow.serving.worker.finishing import Finishing
from undertow.serving.worker.measures import Measures
from undertow.serving.worker.models import LOAD_S, Models
from undertow.serving.worker.predictions import SAFETENSORS, predicted
from undertow.serving.worker.pulse import Pulse


@dataclass(kw_only=True, eq=False)
class Answering:
    """may_know: whether a model may know the textual inversions in these files now and no others. asked: jobs that wait
    here."""

    store: Store
    artifacts: ArtifactFolder
    catalog: Catalog
    models: Models
    measures: Measures
    pulse: Pulse
    finishing: Finishing
    may_know: Callable[[str, tuple[Path, ...]], bool]
    asked: deque[Claim] = field(default_factory=deque[Claim])

    def take(self, claim: Claim) -> None:
        self.asked.append(claim)
        steps = claim.job.work.steps
        self.pulse.hold(claim, lambda: JobProgress(stage="denoising", steps=steps))

    def answer(self) -> bool:
        """Answers the job that has waited longest; returns whether there was one. Errors: `StoreError`, after which it
        is tried again."""
        if not self.asked:
            return False
        claim = self.asked[0]
        spec = claim.job.spec
        try:
            if spec.kind == "diagnosis" and not self.may_know(spec.model, words_of(spec, self.catalog)):
                return False
            with self.pulse.patient(LOAD_S):
                content, media_type = self._answer_to(claim)
                file = StoredFile(sha256=self.artifacts.put(content), media_type=media_type, bytes=len(content))
            kept = self.store.publish(claim, JobResult(pictures=(), files=(file,)))
            self.measures.ended(claim, JobState.SUCCEEDED, kept=kept)
        except StoreError:
            raise
        except Exception as error:
            self.finishing.refuse(claim, error)
        self.asked.popleft()
        self.pulse.drop(claim.job.id)
        return True

    def give_back(self) -> None:
        """What was not answered is another worker's."""
        for claim in self.asked:
            with suppress(StoreError):  # its lease ends
                self.store.release(claim)

    def _answer_to(self, claim: Claim) -> tuple[bytes, str]:
        """The file that answers a job, and its media type."""
        job, parts = claim.job, (self.artifacts, self.catalog, self.models)
        if job.spec.kind == "diagnosis":
            return diagnosed(job, *parts), JSON
        return predicted(job.spec, *parts), SAFETENSORS
