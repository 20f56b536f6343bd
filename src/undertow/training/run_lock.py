"""One training at a time in the folder of a run: two would write into the same log and replace each other's
checkpoints."""

import os
import socket
from collections.abc import Generator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from undertow.checkpoints.files.atomic import write_text
from undertow.checkpoints.files.locks import lock
from undertow.errors import CheckpointError

HOLDER = "running.txt"
"""Who trains in the folder; what is left of a killed process locks nothing."""


@contextmanager
def only_training(folder: Path) -> Generator[None]:
    """Keeps other trainings out of the folder, which is made if need be, until the end of the block.

    Systems without file locks keep nobody out. Errors: `CheckpointError` says which process trains there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder) as state:
        if state == "taken":
            raise _taken(folder)
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        write_text(f"process {os.getpid()} on {socket.gethostname()}, since {since}\n", folder / HOLDER)
        try:
            yield
        finally:
            (folder / HOLDER).unlink(missing_ok=True)


def require_no_training(folder: Path) -> None:
    """Checks early, before models are loaded. Errors: `CheckpointError` for a folder in which a training runs."""
    if folder.is_dir():
        with lock(folder) as state:
            if state == "taken":
                raise _taken(folder)


def _taken(folder: Path) -> CheckpointError:
    holder = folder / HOLDER
    who = holder.read_text(encoding="utf-8").strip()[:200] if holder.is_file() else "another process"
    return CheckpointError(folder, f"a training runs in it ({who})", "wait for it, stop it, or name another folder")
