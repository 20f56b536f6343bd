"""`undertow serve --ray`: a Ray of its own on this machine, or one that runs already, and the service on it."""

import logging
import os
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Generator, MutableMapping
from contextlib import contextmanager, suppress

from undertow.extras import optional_package
from undertow.serving.cluster.application import NAME, application
from undertow.serving.cluster.replica import GIVE_BACK_S
from undertow.serving.settings import LOOPBACK, ServerSettings

logger = logging.getLogger(__name__)

ADDRESS = "RAY_ADDRESS"
"""The variable of Ray's own by which it finds a cluster."""
LOOK_S = 0.5
REPORT_S = "2"
"""Between two reports of replicas to the controller."""


def is_elsewhere() -> bool:
    """Whether the environment names a cluster, whose machines are not all this one."""
    return bool(os.environ.get(ADDRESS))


def run_on_ray(settings: ServerSettings, stop: threading.Event, hurry: threading.Event) -> None:
    """The service until `stop` is set. hurry: what is not done is left to the next start. Errors: `MissingDependency`;
    `OSError`, `RuntimeError` of a Ray that does not start."""
    with own_files(os.environ), optional_package("ray", "ray"):
        import ray  # noqa: PLC0415
        from ray import serve  # noqa: PLC0415

        elsewhere = is_elsewhere()
        given = {} if elsewhere else _own_cluster(settings)
        ray.init(log_to_driver=True, logging_level=logging.WARNING, **given)
        try:
            serve.start(
                proxy_location="HeadOnly",
                http_options={"host": settings.host, "port": settings.port},
                logging_config={"log_level": "WARNING", "enable_access_log": False},
            )
            serve.run(application(settings), name=NAME, route_prefix="/", blocking=False)
            logger.info("serving on Ray at %s port %d", settings.host, settings.port)
            stop.wait()
            _end(settings, hurry)
        finally:
            ray.shutdown()


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


def _end(settings: ServerSettings, hurry: threading.Event) -> None:
    """Waits until the replicas have ended or given back what they draw."""
    from ray import serve  # noqa: PLC0415

    ended = threading.Event()

    def delete() -> None:
        with suppress(Exception):  # what is left is taken back from workers that are gone
            serve.delete(NAME)
        ended.set()

    threading.Thread(target=delete, name="undertow-ray-end", daemon=True).start()
    until = time.monotonic() + settings.grace_s + 2 * GIVE_BACK_S
    while not ended.is_set() and not hurry.is_set() and time.monotonic() < until:
        ended.wait(LOOK_S)
    if not hurry.is_set():
        serve.shutdown()


@contextmanager
def own_files(environment: MutableMapping[str, str]) -> Generator[None]:
    """Around everything of a Ray of our own: its files are in a folder that goes with it, its token is in no file, and
    it tells nobody that it is used. What the user has set stays."""
    folder = tempfile.mkdtemp(prefix="undertow-ray-")  # not in the data folder: paths of sockets are short
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
