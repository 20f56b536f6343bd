"""The logs of outcomes of running jobs, as files: from them the next worker goes on inside a picture.

Each claim of a job has a file of its own. A worker that was stopped for longer than its lease and wakes up may still
write into its own, and never into the one of the worker that went on.
"""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from undertow.engine.engine import Engine
from undertow.engine.fingerprint import Fingerprint
from undertow.engine.options import RunOptions
from undertow.engine.outcomes import OutcomeLog
from undertow.engine.request import GenerationRequest
from undertow.errors import InvalidInput
from undertow.serving.artifacts import ArtifactFolder
from undertow.serving.jobs import Claim

logger = logging.getLogger(__name__)


class JobLog:
    """The log of one claim. note: why a log of an earlier one was not used, for the report."""

    def __init__(self, artifacts: ArtifactFolder, claim: Claim):
        self.note = ""
        self._place = artifacts.log_path(claim.job.id)
        self._path = artifacts.claim_log_path(claim.job.id, claim.fence)
        self._file: BinaryIO | None = None

    def outcomes(
        self, engine: Engine, request: GenerationRequest, options: RunOptions, *, takes_up: bool = True
    ) -> OutcomeLog:
        """What earlier claims of the job have recorded, if it was made under the same circumstances, else an empty log;
        both with this claim's file behind them. takes_up: goes on from earlier claims at all. Errors: `OSError`; those
        of `Engine.fingerprint`, where there is an earlier claim."""
        self._place.parent.mkdir(parents=True, exist_ok=True)
        earlier = [file for file in self._files() if file != self._path] if takes_up else []
        found = self._taken_up(earlier, engine.fingerprint(request, options=options)) if earlier else None
        if found is None:
            self._open(0)
            return OutcomeLog(sink=self._write)  # the engine says of what, when it takes the request
        return found

    def _taken_up(self, earlier: Sequence[Path], fingerprint: Fingerprint) -> OutcomeLog | None:
        """The first of these logs that fits, as this claim's own. Errors: `OSError`."""
        for file in earlier:
            try:
                found = OutcomeLog.read(file.read_bytes(), fingerprint, sink=self._write)
            except InvalidInput as error:
                self.note = f"the job starts over: {error}"
                logger.warning("job %s starts over: %s", self._place.stem, error)
                continue
            if found.whole_bytes:
                self.note = ""
                shutil.copyfile(file, self._path)
                self._open(found.whole_bytes)
                return found
        return None

    def close(self) -> None:
        """Leaves the log to the next claim."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def discard(self) -> None:
        """The job is done: nobody needs its logs."""
        self.close()
        for file in self._files():
            file.unlink(missing_ok=True)

    def forget(self) -> None:
        """The job is another worker's now: removes this claim's file alone."""
        self.close()
        self._path.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        """Of all claims, the newest first."""
        found = self._place.parent.glob(f"{self._place.name}.*")
        return sorted((file for file in found if file.suffix[1:].isdecimal()), key=_fence, reverse=True)

    def _open(self, whole_bytes: int) -> None:
        """Opens this claim's file behind what is whole, and removes those of earlier claims."""
        self._file = self._path.open("ab")
        self._file.truncate(whole_bytes)
        for earlier in self._files():
            if earlier != self._path:
                earlier.unlink(missing_ok=True)

    def _write(self, record: bytes) -> None:
        """Appends a record. On a full disk the job goes on without a log: what is recorded so far is still of use."""
        if self._file is None:
            return
        try:
            self._file.write(record)
            self._file.flush()
        except OSError as error:
            logger.warning("the log of job %s ends here: %s", self._place.stem, error)
            abandoned, self._file = self._file, None
            try:
                abandoned.close()
            except OSError:  # its buffer still cannot be written
                return


def _fence(file: Path) -> int:
    return int(file.suffix[1:])
