"""`undertow serve --ray`: a Ray of its own on this machine, or one that runs already, and the service on it."""

import logging
import os
import secrets
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Generator, MutableMapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any

from undertow.errors import UndertowError
from undertow.extras import optional_package
from undertow.serving.cluster.application import NAME, application
from undertow.serving.cluster.replica import GIVE_BACK_S
from undertow.serving.settings import LOOPBACK, ServerSettings
from undertow.serving.worker.process import on_signals

logger = logging.getLogger(__name__)

ADDRESS = "RAY_ADDRESS"
"""The variable of Ray's own by which it finds a cluster."""


class RayDidNotStart(UndertowError):
    """There is no cluster to serve on. problem: what Ray said."""

    def __init__(self, problem: str):
        remedy = "on a busy machine it has too little time: try again; with RAY_ADDRESS, look whether it runs there"
        super().__init__(f"Ray did not start: {problem}; {remedy}")
        self.problem = problem


LOOK_S = 0.5
LONGEST = 16
"""Characters of a folder below which the paths of Ray's sockets, of 107 characters at most, have room."""
REPORT_S = "2"
"""Between two reports of replicas to the controller."""


def is_elsewhere() -> bool:
    """Whether the environment names a cluster, whose machines are not all this one."""
    return bool(os.environ.get(ADDRESS))


def run_on_ray(
    settings: ServerSettings,
    stop: threading.Event,
    hurry: threading.Event,
    *,
    listen: Callable[[], None] = lambda: None,
) -> None:
    """The service until `stop` is set. hurry: what is not done is left to the next start. listen: called when Ray has
    made its own handlers of signals. Errors: `MissingDependency`; `RayDidNotStart`."""
    with own_files(os.environ), optional_package("ray", "ray"):
        import ray  # noqa: PLC0415  # pyright: ignore[reportMissingImports]
        from ray import serve  # noqa: PLC0415  # pyright: ignore[reportMissingImports]

        elsewhere = is_elsewhere()
        given = {} if elsewhere else _own_cluster(settings)
        try:
            ray.init(log_to_driver=True, logging_level=logging.WARNING, **given)
        except Exception as error:  # Ray's are of no kind that could be told apart
            ray.shutdown()
            raise RayDidNotStart(str(error).strip() or type(error).__name__) from error
        listen()
        try:
            serve.start(
                proxy_location="HeadOnly",
                http_options={"host": settings.host, "port": settings.port},
                logging_config={"log_level": "WARNING", "enable_access_log": False},
            )
            # It returns when all replicas are there, which may take minutes, or never be.
            started = Future[Any]()
            threading.Thread(
                target=_run, args=(started, serve.run, application(settings)), name="undertow-ray-start", daemon=True
            ).start()
            while not stop.is_set() and not started.done():
                stop.wait(LOOK_S)
            if started.done():
                started.result()
                logger.info("serving on Ray at %s port %d", settings.host, settings.port)
                stop.wait()
            if _drained(lambda: serve.delete(NAME), settings.grace_s + 2 * GIVE_BACK_S, hurry):
                serve.shutdown()
        finally:
            ray.shutdown()


def _run(started: "Future[Any]", run: Callable[..., Any], wanted: Any) -> None:
    try:
        started.set_result(run(wanted, name=NAME, route_prefix="/"))
    except Exception as error:
        started.set_exception(error)


def run_until_signals(settings: ServerSettings) -> None:
    """The same until SIGTERM or SIGINT; a second one ends it at once."""
    stop, hurry = threading.Event(), threading.Event()

    def listen() -> None:
        on_signals(lambda: hurry.set() if stop.is_set() else stop.set(), signal.SIGTERM, signal.SIGINT)

    run_on_ray(settings, stop, hurry, listen=listen)


def _own_cluster(settings: ServerSettings) -> dict[str, object]:
    """Reached from this machine alone, without a dashboard, and with room for all replicas."""
    cores = max(os.cpu_count() or 1, settings.most_replicas)
    return {
        "address": "local",
        "num_cpus": cores,
        "include_dashboard": False,
        "_node_ip_address": LOOPBACK[0],
        "configure_logging": True,
    }


def _drained(delete: Callable[[], None], patience_s: float, hurry: threading.Event) -> bool:
    """Waits until the replicas have ended or given back what they draw; whether there was no hurry."""
    ended = threading.Event()

    def end() -> None:
        with suppress(Exception):  # what is left is taken back from workers that are gone
            delete()
        ended.set()

    threading.Thread(target=end, name="undertow-ray-end", daemon=True).start()
    until = time.monotonic() + patience_s
    while not ended.is_set() and not hurry.is_set() and time.monotonic() < until:
        ended.wait(LOOK_S)
    return not hurry.is_set()


@contextmanager
def own_files(environment: MutableMapping[str, str]) -> Generator[None]:
    """Around everything of a Ray of our own: its files are in a folder that goes with it, its token is in no file, and
    it tells nobody that it is used. What the user has set stays."""
    usual = tempfile.gettempdir()
    folder = tempfile.mkdtemp(prefix="undertow-ray-", dir=usual if len(usual) <= LONGEST else "/tmp")
    wanted = {
        "RAY_TMPDIR": folder,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": REPORT_S,
        # Ray's ports are those of 127.0.0.1 then; the name tells where others need it.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }
    if environment.get(ADDRESS):  # its token and its places are the cluster's
        wanted = {"RAY_USAGE_STATS_ENABLED": "0"}
    added = {name: value for name, value in wanted.items() if name not in environment}
    environment.update(added)
    try:
        yield
    finally:
        for name in added:
            environment.pop(name, None)
        shutil.rmtree(folder, ignore_errors=True)
