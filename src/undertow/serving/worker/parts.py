"""The parts of a service, made from its settings: what a process of its own and a thread have in common."""

import logging
import socket
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from undertow.serving.artifacts import ArtifactFolder
from undertow.serving.catalog.catalog import Catalog
from undertow.serving.settings import ServerSettings
from undertow.serving.store.store import Store
from undertow.serving.tracing import tracing_of
from undertow.serving.worker.child import ChildSetup
from undertow.serving.worker.threads import threads_of_worker

if TYPE_CHECKING:
    from undertow.serving.worker.worker import Worker

logger = logging.getLogger(__name__)


def worker_for(
    settings: ServerSettings,
    device: str,
    *,
    name: str,
    lost: Sequence[str] = (),
    alive: Callable[[], None] = lambda: None,
) -> "Worker":
    """A worker with a store of its own. Errors: `StoreError`; `InvalidInput` for a device that is not there."""
    import torch  # noqa: PLC0415

    from undertow.checkpoints.read.dtypes import require_device  # noqa: PLC0415  # imports torch
    from undertow.serving.worker.worker import Worker  # noqa: PLC0415

    require_device("device", device)
    threads = threads_of_worker(settings, device)
    if threads is not None:
        torch.set_num_threads(threads)

    artifacts = ArtifactFolder(settings.data / "artifacts")
    store = Store.open(
        settings.database_url,
        attempts=settings.attempts,
        keep_s=settings.keep_s,
        has_file=artifacts.touch,
        logged=artifacts.logged,
    )
    catalog = Catalog(settings, device=device)
    return Worker(
        store,
        artifacts,
        catalog,
        settings,
        name=name,
        device=device,
        lost=lost,
        alive=alive,
        tracing=tracing_of(settings.telemetry),
    )


def serve_api(settings: ServerSettings, place: socket.socket, stop: threading.Event) -> None:
    """Answers clients on a listening socket until `stop` is set."""
    import uvicorn  # noqa: PLC0415

    from undertow.serving.api.app import create_app  # noqa: PLC0415

    class Server(uvicorn.Server):
        """Signals are ours."""

        @contextmanager
        def capture_signals(self) -> Generator[None]:
            yield

    server = Server(
        uvicorn.Config(create_app(settings), log_config=None, timeout_graceful_shutdown=3, server_header=False)
    )

    def end() -> None:
        stop.wait()
        server.should_exit = True

    threading.Thread(target=end, name="undertow-api-end", daemon=True).start()
    server.run(sockets=[place])


def api_socket(setup: ChildSetup) -> socket.socket:
    """The socket that the supervisor holds."""
    assert setup.socket is not None
    return socket.socket(fileno=setup.socket)
