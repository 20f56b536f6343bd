"""`undertow serve`: the service, after everything that can be wrong with it was looked at."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from undertow.cli.service_checks import (
    NEEDED,
    described_computing,
    readable_catalog,
    require_folder,
    require_worker_parts,
)
from undertow.cli.service_settings import (
    Backends,
    Budget,
    Computed,
    Data,
    Database,
    Devices,
    JobsAtOnce,
    Quantizing,
    Telemetry,
    Threads,
    read_settings,
)
from undertow.errors import InvalidInput
from undertow.extras import require_packages
from undertow.lookup import counted

if TYPE_CHECKING:
    from undertow.serving.catalog.catalog import Catalog
    from undertow.serving.settings import ServerSettings
    from undertow.serving.store.records import ApiKey
    from undertow.serving.store.store import Store

NO_KEYS = {
    False: "none: everybody on this machine may draw; make one with: undertow keys add NAME",
    True: "all revoked: nobody may draw; make one with: undertow keys add NAME",
}
"""By whether there ever was one."""


def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]...",
            help="Models, or NAME=MODEL; the first is taken where clients name none.",
            show_default="emoji emoji-turbo",
        ),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(help="Address to listen at; one that others reach needs a key.", show_default="127.0.0.1"),
    ] = None,
    port: Annotated[int | None, typer.Option(help="0 takes any that is free.", show_default="8188")] = None,
    data: Data = None,
    database: Database = None,
    adapters: Annotated[
        list[Path] | None,
        typer.Option("--adapters", help="Folder of adapters, which clients name by file name; repeatable."),
    ] = None,
    devices: Devices = None,
    threads: Threads = None,
    precision: Computed = None,
    backend: Backends = None,
    quantize: Quantizing = None,
    mode: Annotated[
        str | None,
        typer.Option(help="reproducible or fast, where clients name none.", show_default="reproducible"),
    ] = None,
    budget: Budget = None,
    jobs_at_once: JobsAtOnce = None,
    cors: Annotated[
        list[str] | None, typer.Option("--cors", help="Origin of web pages that may call the API; repeatable.")
    ] = None,
    webhooks: Annotated[
        bool | None, typer.Option("--webhooks/--no-webhooks", help="Tell clients' servers when jobs are done.")
    ] = None,
    webhooks_private: Annotated[
        bool | None,
        typer.Option(
            "--webhooks-to-private-addresses/--webhooks-to-public-addresses",
            help="Also servers in this machine's own network.",
        ),
    ] = None,
    telemetry: Telemetry = None,
    page: Annotated[
        bool | None, typer.Option("--page/--no-page", help="Serve the studio, a page to draw with, at /.")
    ] = None,
    one_process: Annotated[
        bool, typer.Option("--one-process", help="API and worker in one process, for small machines.")
    ] = False,
    ray: Annotated[
        bool, typer.Option("--ray", help="Workers as replicas of Ray Serve; the cluster of RAY_ADDRESS, or its own.")
    ] = False,
    min_replicas: Annotated[int | None, typer.Option(min=1, help="Workers that --ray keeps.", show_default="1")] = None,
    max_replicas: Annotated[
        int | None,
        typer.Option(min=1, help="Workers that --ray may start when much waits.", show_default="as --min-replicas"),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Say what would be served, try each model, and stop.")] = False,
) -> None:
    """Serve models over HTTP: every accepted job is kept until it is done, whatever dies meanwhile.

    The table [serve] of undertow.toml says the same things. Ctrl-C lets running jobs end; what is left goes on when
    the service starts again."""
    from undertow.memory.units import parse_bytes

    require_packages("serve", NEEDED)
    typed = {
        "host": host,
        "port": port,
        "data": data,
        "database": database,
        "adapters": adapters or None,
        "devices": devices or None,
        "threads": threads,
        "precision": precision,
        "backend": backend,
        "quantize": quantize,
        "mode": mode,
        "budget_bytes": None if budget is None else parse_bytes("--budget", budget),
        "jobs_at_once": jobs_at_once,
        "cors": cors or None,
        "webhooks": webhooks,
        "webhooks_private": webhooks_private,
        "telemetry": telemetry,
        "page": page,
        "min_replicas": min_replicas,
        "max_replicas": max_replicas,
    }
    _require_one_way(ray=ray, one_process=one_process, least=min_replicas, most=max_replicas)
    settings = read_settings(typed, models or ())
    if ray:
        _require_ray(settings)
    settings = _checked(settings, ray=ray)
    if check:
        _require_numbers(settings)
        return
    from undertow.serving.cluster.running import run_until_signals
    from undertow.serving.worker.process import run_in_one_process, run_supervised

    (run_until_signals if ray else run_in_one_process if one_process else run_supervised)(settings)


def _require_one_way(*, ray: bool, one_process: bool, least: int | None, most: int | None) -> None:
    """Errors: `InvalidInput` for options that exclude each other."""
    if ray and one_process:
        raise InvalidInput("--one-process", "beside --ray", "one of them", "Ray runs a process for each worker")
    for name, given in {"--min-replicas": least, "--max-replicas": most}.items():
        if given is not None and not ray:
            remedy = "without Ray there is a worker for each --device"
            raise InvalidInput(name, given, "no value without --ray", remedy)


def _require_ray(settings: "ServerSettings") -> None:
    """Errors: `MissingDependency`; `InvalidInput` for what replicas cannot share."""
    from undertow.serving.cluster.application import require_for_ray, require_shared
    from undertow.serving.cluster.running import is_elsewhere

    require_packages("ray", {"ray": "ray[serve]"})
    (require_shared if is_elsewhere() else require_for_ray)(settings)


def _checked(settings: "ServerSettings", *, ray: bool) -> "ServerSettings":
    """The settings with the port that is taken, after all that could be wrong was, and was said. Errors:
    `UndertowError`, `OSError`."""
    from dataclasses import replace

    from undertow.serving.store.store import Store

    require_worker_parts(settings)
    if settings.webhooks and not settings.webhook_secret:
        remedy = "set webhook_secret under [serve] in undertow.toml, by which receivers know who calls"
        raise InvalidInput("webhook_secret", "missing", "text that only you and your receivers know", remedy)
    settings = replace(settings, port=_free_port(settings))
    require_folder(settings.data)
    catalog = readable_catalog(settings)
    store = Store.open(settings.database_url)
    try:
        keys = [key for key in store.keys.list() if key.revoked_at is None]
        if settings.is_public and not keys:
            raise InvalidInput(
                "--host",
                settings.host,
                "127.0.0.1 while there are no keys: everybody who reaches it could draw",
                f"make one with: undertow keys add NAME --data {settings.data}",
            )
        _say(settings, catalog, keys, store, ray=ray)
    finally:
        store.close()
    return settings


def _require_numbers(settings: "ServerSettings") -> None:
    """Errors: `InvalidInput` for a model whose pictures are none; those of loading it."""
    from undertow.serving.worker.trial import faults

    for name, fault in faults(settings).items():
        raise InvalidInput("MODEL", name, "a model whose pictures have finite numbers", f"undertow doctor: {fault}")


def _free_port(settings: "ServerSettings") -> int:
    """Errors: `InvalidInput` for one in use."""
    from undertow.serving.worker.supervisor import listening

    with listening(settings.host, settings.port) as place:
        return place.getsockname()[1]


def _say(settings: "ServerSettings", catalog: "Catalog", keys: "list[ApiKey]", store: "Store", *, ray: bool) -> None:
    """What a person needs who has just started it."""
    from undertow.cli.terminal import SafeConsole

    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    address = f"http://{host}:{settings.port}"
    waiting = len(store.queue())
    header = " -H 'Authorization: Bearer KEY'" if keys else ""
    rows = {
        "models": ", ".join(settings.models),
        "adapters": f"{len(catalog.adapters())}, listed at {address}/v1/adapters"
        + (f"; {len(catalog.skipped)} are not offered, with the reason there" if catalog.skipped else ""),
        "keys": ", ".join(key.name for key in keys) or NO_KEYS[bool(store.keys.list())],
        "data": str(settings.data.absolute())
        + (f", with {counted(waiting, 'job')} that {'goes' if waiting == 1 else 'go'} on" if waiting else ""),
        **described_computing(settings, catalog),
        "workers": ", ".join(settings.devices) + (f", {_replicas(settings)} of Ray Serve" if ray else ""),
        **({"studio": f"{address}/"} if settings.page else {}),
        "docs": f"{address}/docs",
        "draw": f"curl -s {address}/v1/jobs{header} -H 'Prefer: wait=60' --json "
        f'\'{{"prompt": "red apple on white background"}}\'',
    }
    console = SafeConsole(soft_wrap=True, highlight=False)
    console.print(f"undertow serves at {address}", markup=False)
    for name, value in rows.items():
        console.print(f"  {name:<9} {value}", markup=False)


def _replicas(settings: "ServerSettings") -> str:
    least, most = settings.min_replicas, settings.most_replicas
    return counted(most, "replica") if least == most else f"{least} to {counted(most, 'replica')}"
