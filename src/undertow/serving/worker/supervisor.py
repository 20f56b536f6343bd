"""The supervisor: starts the API and a worker for each device in processes of their own, and starts them again. On
further machines it starts workers alone.

It draws nothing, answers nobody and opens no database, so there is little in it that can fail. A child that ends is
started again, after longer and longer pauses when it ends again and again; a worker that says nothing for too long is
killed first. Children end when the supervisor does, however it ends. Imports no torch.
"""

import logging
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from undertow.errors import InvalidInput
from undertow.serving.settings import ServerSettings
from undertow.serving.worker.child import ChildSetup, Role

logger = logging.getLogger(__name__)

CHILD = (sys.executable, "-m", "undertow.serving.worker", "--child")
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
"""Before a child that ended again is started: doubled each time."""
HEALTHY_S = 10.0
"""A child that ran for so long starts at once again, and then from the shortest pause: pauses are for those that end
as soon as they start, not for those that somebody kills now and then."""
MANY_FAILURES = 5
START_S = 600.0
"""Given to a worker before it first says something: it imports PyTorch and opens the store."""
SILENT_S = 30.0
"""A worker whose loop goes on says so every second; it decides itself how long a unit of work may take."""
GIVE_BACK_S = 10.0
"""For giving jobs back when a worker stops."""
API_GRACE_S = 5.0
"""Given to open requests of the API when the service stops."""


@dataclass(kw_only=True, eq=False)
class Child:
    """A process that is to run always. name: of the process that runs now. failures: ends in a row. lost: names of
    earlier processes, whose jobs the next one may take at once."""

    role: Role
    device: str = ""
    process: "subprocess.Popen[bytes] | None" = None
    name: str = ""
    started: int = 0
    failures: int = 0
    started_at: float = 0.0
    heard_at: float | None = None
    start_at: float = 0.0
    lost: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        return "API" if self.role == "api" else f"worker on {self.device}"


class Supervisor:
    """Runs a service until `stop` is set. api: whether it answers clients. command: runs a child; now: a clock that
    never goes back. Errors: `InvalidInput` for a port in use.

    Supervisor(settings).run(stop)
    """

    def __init__(
        self,
        settings: ServerSettings,
        *,
        api: bool = True,
        command: Sequence[str] = CHILD,
        now: Callable[[], float] = time.monotonic,
    ):
        self.settings = settings
        self.children = [Child(role="api")] if api else []
        self.children += [Child(role="worker", device=device) for device in settings.devices]
        self._command = command
        self._now = now
        self._selector = selectors.DefaultSelector()
        # Held by the supervisor, so that clients wait in line while the API is started again.
        self._socket = listening(settings.host, settings.port) if api else None

    @property
    def address(self) -> str:
        """Where clients are answered; empty where none are."""
        if self._socket is None:
            return ""
        host, port = self._socket.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def run(self, stop: threading.Event, hurry: threading.Event | None = None) -> None:
        """Starts the children, and returns when they have ended after `stop` was set. hurry: jobs are given back at
        once instead of after `grace_s`."""
        logger.info("serving at %s", self.address or "no address: workers alone")
        try:
            while not stop.is_set():
                self.watch()
        finally:
            self._stop(threading.Event() if hurry is None else hurry)
            self._selector.close()
            if self._socket is not None:
                self._socket.close()

    def watch(self, wait_s: float = 0.2) -> None:
        """One round: hears the children, starts those that are due, and kills those that hang."""
        for key, _ in self._selector.select(wait_s):
            child: Child = key.data
            if os.read(key.fd, 4096):
                child.heard_at = self._now()
            else:
                self._selector.unregister(key.fd)
        for child in self.children:
            self._reap(child)
            if child.process is None and self._now() >= child.start_at:
                self._start(child)
            elif self._hangs(child):
                logger.error("the %s has said nothing for too long and is started again", child.title)
                _kill(child)

    def _start(self, child: Child) -> None:
        child.started += 1
        child.name = f"{socket.gethostname()}.{os.getpid()}.{child.device or child.role}.{child.started}"
        place = self._socket.fileno() if self._socket is not None and child.role == "api" else None
        setup = ChildSetup(
            role=child.role,
            settings=self.settings,
            name=child.name,
            device=child.device,
            lost=tuple(child.lost),
            socket=place,
        )
        child.process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,  # whose end tells the child that the supervisor is gone
            stdout=subprocess.PIPE,  # on which the child says that it lives
            pass_fds=() if place is None else (place,),
            start_new_session=True,  # Ctrl-C is for the supervisor, which stops its children in order
        )
        child.started_at, child.heard_at = self._now(), None
        assert child.process.stdin is not None
        assert child.process.stdout is not None
        self._selector.register(child.process.stdout, selectors.EVENT_READ, child)
        try:
            child.process.stdin.write(setup.to_line())
            child.process.stdin.flush()
        except OSError:
            return  # ended already: the next round sees it

    def _reap(self, child: Child) -> None:
        """Notices that a child has ended, and when it is started again."""
        process = child.process
        if process is None or process.poll() is None:
            return
        self._forget(child)
        ran = self._now() - child.started_at
        child.failures = 1 if ran >= HEALTHY_S else child.failures + 1
        pause = 0.0 if child.failures == 1 else min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (child.failures - 2))
        child.start_at = self._now() + pause
        logger.warning(
            "the %s ended after %.0f s with %s; it is started again%s",
            child.title,
            ran,
            _ending(process.returncode),
            f" in {pause:g} s" if pause else "",
        )
        if child.failures == MANY_FAILURES:
            logger.error(
                "the %s has ended %d times in a row: what it said before is why; it is tried again every %g s",
                child.title,
                child.failures,
                LONGEST_PAUSE_S,
            )

    def _forget(self, child: Child) -> None:
        process = child.process
        assert process is not None
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            if pipe in self._selector.get_map():
                self._selector.unregister(pipe)
            with suppress(OSError):  # what a child that ended at once was to be told and never read
                pipe.close()
        child.process = None
        if child.role == "worker":
            child.lost = [*child.lost, child.name][-10:]

    def _hangs(self, child: Child) -> bool:
        """Whether a worker that should say something has been silent for too long."""
        if child.role != "worker" or child.process is None:
            return False
        heard, patience = (child.started_at, START_S) if child.heard_at is None else (child.heard_at, SILENT_S)
        return self._now() - heard > patience

    def _stop(self, hurry: threading.Event) -> None:
        """Workers first, so that clients get the answers of jobs that end within the grace."""
        workers = [child for child in self.children if child.role == "worker"]
        others = [child for child in self.children if child.role != "worker"]
        self._end(workers, self.settings.grace_s + GIVE_BACK_S, hurry)
        self._end(others, API_GRACE_S, hurry)

    def _end(self, children: Sequence[Child], grace_s: float, hurry: threading.Event) -> None:
        running = [child for child in children if child.process is not None]
        for child in running:
            _signal(child, signal.SIGTERM)
        until, hurried = self._now() + grace_s, False
        while any(_runs(child) for child in running) and self._now() < until:
            if hurry.wait(0.05) and not hurried:
                hurried, until = True, min(until, self._now() + GIVE_BACK_S)
                for child in running:
                    _signal(child, signal.SIGTERM)  # the second one
        for child in running:
            if _runs(child):
                logger.warning("the %s did not end in time and is killed", child.title)
            _kill(child)
            self._forget(child)


def listening(host: str, port: int) -> socket.socket:
    """A socket on which clients may wait. Errors: `InvalidInput` for an address in use, or one that is not ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
        found.listen(2048)
    except OSError as error:
        found.close()
        raise InvalidInput(
            "serve.port",
            f"{port} on {host}: {error.strerror or error}",
            "an address that is free",
            "choose another --port or --host, or stop what uses it",
        ) from error
    found.set_inheritable(True)
    return found


def _runs(child: Child) -> bool:
    return child.process is not None and child.process.poll() is None


def _signal(child: Child, number: int) -> None:
    if child.process is not None:
        child.process.send_signal(number)  # does nothing to one that has ended


def _kill(child: Child) -> None:
    if child.process is not None:
        child.process.kill()
        child.process.wait()


def _ending(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
