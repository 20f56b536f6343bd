"""Jobs of predictions, which are answered between two steps of those that draw."""

from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field

from undertow.serving.artifacts import ArtifactFolder
from undertow.serving.catalog.catalog import Catalog
from undertow.serving.jobs import Claim, JobProgress, JobResult, JobState, StoredFile
from undertow.serving.store.records import StoreError
from undertow.serving.store.store import Store
from undertow.serving.worker.finishing import Finishing
from undertow.serving.worker.measures import Measures
from undertow.serving.worker.models import LOAD_S, Models
from undertow.serving.worker.predictions import SAFETENSORS, predicted
from undertow.serving.worker.pulse import Pulse


@dataclass(kw_only=True, eq=False)
class Predicting:
    """asked: jobs that wait here."""

    store: Store
    artifacts: ArtifactFolder
    catalog: Catalog
    models: Models
    measures: Measures
    pulse: Pulse
    finishing: Finishing
    asked: deque[Claim] = field(default_factory=deque[Claim])

    def take(self, claim: Claim) -> None:
        self.asked.append(claim)
        self.pulse.hold(claim, lambda: JobProgress(stage="denoising", steps=1))

    def answer(self) -> bool:
        """Answers the job that has waited longest; returns whether there was one. Errors: `StoreError`, after which it
        is tried again."""
        if not self.asked:
            return False
        claim = self.asked[0]
        try:
            with self.pulse.patient(LOAD_S):
                content = predicted(claim.job.spec, self.artifacts, self.catalog, self.models)
                file = StoredFile(sha256=self.artifacts.put(content), media_type=SAFETENSORS, bytes=len(content))
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
