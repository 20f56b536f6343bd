"""The processes of a service, and how they begin and end. Imports no torch: the API's process comes by here too."""

import argparse
import json
import logging
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from multiprocessing import current_process
from pathlib import Path
from queue import SimpleQueue

from undertow.errors import UndertowError
from undertow.serving.settings import ServerSettings
from undertow.serving.worker.child import ChildSetup, setup_from, signs_of_life, when_alone
from undertow.serving.worker.supervisor import Supervisor, listening

logger = logging.getLogger(__name__)

USAGE = "python -m undertow.serving.worker"


def main(arguments: Sequence[str] | None = None) -> int:
    """The whole service, by the settings in a JSON file; `--child` is for the supervisor's own use."""
    parser = argparse.ArgumentParser(
        prog=USAGE, description="Runs a service: an API process and a worker for each device."
    )
    parser.add_argument("--settings", type=Path, help="a file of ServerSettings as JSON; the defaults without one")
    parser.add_argument("--one-process", action="store_true", help="everything in this process, for small machines")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    try:
        if chosen.child:
            log_lines()
            return run_child(setup_from(sys.stdin.buffer))
        text = "{}" if chosen.settings is None else chosen.settings.read_text()
        settings = ServerSettings.from_json(json.loads(text))
        (run_in_one_process if chosen.one_process else run_supervised)(settings)
    except (UndertowError, OSError, ValueError) as error:
        sys.stderr.write(f"undertow: {error}\n")
        return 1
    return 0


def run_supervised(settings: ServerSettings, *, api: bool = True) -> None:
    """The service in a process for each part, until SIGTERM or SIGINT; a second one ends it at once. api: whether
    clients are answered; workers alone draw what they find in the store. Errors: `InvalidInput` for a port in use."""
    log_lines()
    stop, hurry = threading.Event(), threading.Event()
    supervisor = Supervisor(settings, api=api)
    on_signals(lambda: hurry.set() if stop.is_set() else stop.set(), signal.SIGTERM, signal.SIGINT)
    supervisor.run(stop, hurry)


def run_in_one_process(settings: ServerSettings, stop: threading.Event | None = None) -> None:
    """The same API and worker as threads of this process. stop: ends it, like a signal. Errors: `InvalidInput` for a
    port in use; `StoreError`; what ended a worker."""
    from undertow.serving.worker.parts import serve_api, worker_for  # noqa: PLC0415  # imports torch

    log_lines()
    ended, hurry = threading.Event() if stop is None else stop, threading.Event()
    place = listening(settings.host, settings.port)
    workers = [worker_for(settings, device, name=f"here.{index}") for index, device in enumerate(settings.devices)]
    failed: list[Exception] = []

    def work(run: Callable[[threading.Event, threading.Event], None]) -> None:
        try:
            run(ended, hurry)
        except Exception as error:
            failed.append(error)
            ended.set()  # nobody starts it again here: the process ends, and its jobs come back

    threads = [threading.Thread(target=work, args=(one.run,), name=one.name) for one in workers]
    for thread in threads:
        thread.start()
    if stop is None:
        on_signals(lambda: hurry.set() if ended.is_set() else ended.set(), signal.SIGTERM, signal.SIGINT)
    serve_api(settings, place, ended)
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


def log_lines() -> None:
    """Lines of the log to standard error, each with the name of its process, which parts of a service have of their
    own."""
    current_process().name = "undertow"
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(processName)s %(name)s: %(message)s")


def run_child(setup: ChildSetup) -> int:
    """A part of the service, as the supervisor wants it."""
    threading.current_thread().name = current_process().name = setup.name
    stop, hurry = threading.Event(), threading.Event()

    def alone() -> None:
        hurry.set()
        stop.set()

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: it is the supervisor's
    on_signals(lambda: hurry.set() if stop.is_set() else stop.set(), signal.SIGTERM)
    when_alone(sys.stdin.buffer, alone)
    alive = signs_of_life()
    if setup.role == "api":
        from undertow.serving.worker.parts import api_socket, serve_api  # noqa: PLC0415

        serve_api(setup.settings, api_socket(setup), stop)
        return 0
    from undertow.serving.worker.parts import worker_for  # noqa: PLC0415  # imports torch

    worker_for(setup.settings, setup.device, name=setup.name, lost=setup.lost, alive=alive).run(stop, hurry)
    return 0


def on_signals(act: Callable[[], None], *numbers: int) -> None:
    """Calls `act` in a thread at each signal: a handler that sets an event could wait for the lock that the interrupted
    code holds. `SimpleQueue.put` may be called from handlers."""
    came: SimpleQueue[int] = SimpleQueue()
    for number in numbers:
        signal.signal(number, lambda number, _: came.put(number))

    def hear() -> None:
        while True:
            came.get()
            act()

    threading.Thread(target=hear, name="undertow-signals", daemon=True).start()
