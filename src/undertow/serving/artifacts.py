"""Pictures by their content: a file that has its name holds exactly these bytes, whenever a process dies. No torch."""

import hashlib
import os
import re
import time
from collections.abc import Collection, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import NamedTemporaryFile

from undertow.errors import UndertowError

try:
    import fcntl
except ImportError:  # Windows, where a folder is served by one process: nobody sweeps while another writes
    fcntl = None

_NAME = re.compile(r"[0-9a-f]{64}")
_JOB = re.compile(r"[A-Za-z0-9_-]{1,64}")


class ArtifactDamaged(UndertowError):
    """An artifact whose bytes are not those that it was named by."""

    def __init__(self, path: Path):
        super().__init__(
            f"{path}: its bytes do not have the hash that it is named by, expected them as they were written; the disk "
            "or another program changed them: submit the job again"
        )
        self.path = path


class ArtifactFolder:
    """A folder of artifacts, and of what workers keep for jobs that run. From any thread and process.

    Errors of writing: `OSError`, such as of a full disk; nothing half-written is left then.
    """

    def __init__(self, root: Path):
        """Errors: `OSError` where the folder cannot be made."""
        self._root = root
        self._artifacts, self._logs, self._previews = root / "artifacts", root / "logs", root / "previews"
        for folder in (self._artifacts, self._logs, self._previews):
            folder.mkdir(parents=True, exist_ok=True)

    def put(self, content: bytes) -> str:
        """The hash that the bytes are found by; they are on the disk when this returns. Written once, however often
        they come."""
        sha256 = hashlib.sha256(content).hexdigest()
        if self.touch(sha256):
            return sha256
        path = self.path(sha256)
        path.parent.mkdir(exist_ok=True)
        _write(path, content, durable=True)
        _sync(path.parent)
        _sync(self._artifacts)
        return sha256

    def touch(self, sha256: str) -> bool:
        """Whether these bytes are there; then they are not swept for a while, though no job names them yet."""
        with self._sweeping(False), suppress(FileNotFoundError):
            os.utime(self.path(sha256))
            return True
        return False

    def read(self, sha256: str) -> bytes:
        """Errors: `FileNotFoundError`, `ArtifactDamaged`."""
        content = self.path(sha256).read_bytes()
        if hashlib.sha256(content).hexdigest() != sha256:
            raise ArtifactDamaged(self.path(sha256))
        return content

    def path(self, sha256: str) -> Path:
        """Where an artifact is, or would be. Errors: `FileNotFoundError` for what is no hash, whatever it is."""
        if not _NAME.fullmatch(sha256):
            raise FileNotFoundError(f"{sha256!r} is no SHA-256 in lower case hexadecimal")
        return self._artifacts / sha256[:2] / sha256

    def sweep(self, keep: Collection[str], older_than_s: float) -> tuple[int, int]:
        """Removes artifacts that are not to be kept, and what dying processes left, when they are old. The number of
        files and of bytes."""
        files = freed = 0
        for path in self._artifacts.glob("??/*"):
            if path.name not in keep and (size := self._remove_old(path, older_than_s)) is not None:
                files, freed = files + 1, freed + size
        return files, freed

    def log_path(self, job: str) -> Path:
        """Where the log of a job's network outcomes is."""
        return self._logs / f"{_checked(job)}.log"

    def claim_log_path(self, job: str, fence: int) -> Path:
        """Where the part of one claim of the job is, which nobody else writes."""
        place = self.log_path(job)
        return place.with_name(f"{place.name}.{fence}")

    def logged(self, job: str, fence: int) -> int:
        """Bytes that a claim of a job has logged, with what it took over."""
        with suppress(FileNotFoundError):
            return self.claim_log_path(job, fence).stat().st_size
        return 0

    def preview_path(self, job: str) -> Path:
        """Where the newest preview of a job is."""
        return self._previews / f"{_checked(job)}.preview"

    def put_preview(self, job: str, content: bytes) -> None:
        """Replaces a preview at once. Nothing waits for the disk: it may be lost."""
        _write(self.preview_path(job), content, durable=False)

    def jobs_with_files(self) -> set[str]:
        """The jobs that have a log or a preview."""
        return {path.name.split(".")[0] for folder in (self._logs, self._previews) for path in folder.iterdir()}

    def forget(self, job: str) -> int:
        """Removes the log and the preview of a job. The number of files."""
        removed = 0
        for folder in (self._logs, self._previews):
            for path in folder.glob(f"{_checked(job)}.*"):
                with suppress(FileNotFoundError):
                    path.unlink()
                    removed += 1
        return removed

    def _remove_old(self, path: Path, older_than_s: float) -> int | None:
        """Bytes of a file that was removed. Nobody can touch it between the look and the removal."""
        with self._sweeping(True), suppress(FileNotFoundError):
            found = path.stat()
            if time.time() - found.st_mtime >= older_than_s:
                path.unlink()
                return found.st_size
        return None

    @contextmanager
    def _sweeping(self, alone: bool) -> Generator[None]:
        """Keeps those that touch apart from the one that sweeps."""
        if fcntl is None:
            yield
            return
        descriptor = os.open(self._root / ".sweep", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
            yield
        finally:
            os.close(descriptor)


def _checked(job: str) -> str:
    """Errors: `ValueError` for what is no id of a job: ids become names of files."""
    if not _JOB.fullmatch(job):
        raise ValueError(f"{job!r} is no id of a job, expected letters, digits, _ and -")
    return job


def _write(path: Path, content: bytes, durable: bool) -> None:
    """Whole or not at all."""
    with NamedTemporaryFile("wb", dir=path.parent, prefix=f"{path.name}.", suffix=".draft", delete=False) as draft:
        try:
            draft.write(content)
            draft.flush()
            if durable:
                os.fsync(draft.fileno())
            os.replace(draft.name, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(draft.name)
            raise


def _sync(folder: Path) -> None:
    """Makes the names in a folder durable, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
