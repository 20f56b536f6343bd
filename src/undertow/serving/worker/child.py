"""What a child of the supervisor is told, and how it notices that the supervisor is gone. Imports no torch."""

import json
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, Literal

from undertow.records import Record
from undertow.serving.settings import ServerSettings

Role = Literal["api", "worker"]

GONE_S = 10.0
"""After the supervisor is gone a child that does not end by itself ends at once."""


@dataclass(frozen=True, kw_only=True)
class ChildSetup(Record):
    """name: of the process, unique. lost: names of processes that are known to be dead. socket: the number of a
    listening one that it inherits."""

    role: Role
    settings: ServerSettings
    name: str
    device: str = ""
    lost: tuple[str, ...] = ()
    socket: int | None = None

    def to_line(self) -> bytes:
        return json.dumps(self.to_json()).encode() + b"\n"


def setup_from(stream: BinaryIO) -> ChildSetup:
    """What the supervisor wrote first."""
    return ChildSetup.from_json(json.loads(stream.readline()))


def when_alone(stream: BinaryIO, gone: Callable[[], None]) -> None:
    """Calls `gone` in a thread when the supervisor has ended, however it did, and ends this process a little later if
    that has not."""

    def wait() -> None:
        # Not `stream.read`: a thread that holds its lock when the interpreter ends makes it abort.
        while os.read(stream.fileno(), 1):
            pass
        gone()
        threading.Event().wait(GONE_S)
        os._exit(1)

    threading.Thread(target=wait, name="undertow-supervisor", daemon=True).start()


def signs_of_life() -> Callable[[], None]:
    """A function that tells the supervisor that this process lives. Standard output is where it listens, so what is
    printed goes to standard error from now on."""
    pipe = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    os.set_blocking(pipe, False)

    def beat() -> None:
        try:
            os.write(pipe, b".")
        except OSError:
            return  # it is gone, which `when_alone` notices, or listens late

    return beat
