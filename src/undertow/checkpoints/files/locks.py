"""Locks on files and folders that end with their process, however it ends."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

Lock = Literal["held", "taken", "unsupported"]


@contextmanager
def lock(path: Path) -> Generator[Lock]:
    """Tries to lock an existing file or folder until the end of the block, without waiting.

    Yields "held" when this process has the only lock, "taken" when another has it (also another thread of this one),
    and "unsupported" on systems that cannot tell (Windows, some network file systems).
    """
    if fcntl is None:
        yield "unsupported"
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        yield _try_lock(descriptor)
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> Lock:
    assert fcntl is not None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return "taken"
    except OSError:
        return "unsupported"
    return "held"
