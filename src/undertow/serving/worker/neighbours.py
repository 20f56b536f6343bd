"""Other workers, as a worker that starts must know them: which are dead, and whether they share its folder."""

import os
import secrets
import socket
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from undertow.errors import InvalidInput
from undertow.serving.store.records import WorkerInfo

PLACE, FOLDER = "place", "folder"
"""What a worker writes of itself: where its number of a process means anything, and which folder its pictures go to."""


@cache
def place() -> str:
    """This boot of this machine, and its numbers of processes: containers on one machine have their own. Empty where
    nobody tells."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}:{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def dead(workers: Sequence[WorkerInfo]) -> list[str]:
    """Names of those whose process was here and has ended: nobody need wait until their leases are over."""
    here = place()
    return [one.name for one in workers if here and one.data.get(PLACE) == here and not _runs(one.pid)]


def folder_id(data: Path) -> str:
    """By which machines know that they see the same folder. Errors: `OSError`."""
    path = data / "folder-id"
    with suppress(FileExistsError), path.open("x") as file:
        file.write(secrets.token_hex(8))
    return path.read_text()


def require_same_folder(data: Path, workers: Sequence[WorkerInfo]) -> None:
    """workers: that live. Errors: `InvalidInput` where some write their pictures elsewhere; `OSError`."""
    mine = folder_id(data)
    others = [one for one in workers if one.data.get(FOLDER, mine) != mine]
    if others:
        raise InvalidInput(
            "--data",
            f"{data} on {socket.gethostname()}",
            f"the folder that worker {others[0].name} has",
            "all machines of a service share one, since pictures and the logs of running jobs are files: mount it here",
        )


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True
