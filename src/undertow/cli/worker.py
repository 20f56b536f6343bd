"""`undertow worker`: workers on a further machine, which draw what a service has accepted."""

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

if TYPE_CHECKING:
    from undertow.serving.catalog.catalog import Catalog
    from undertow.serving.settings import ServerSettings

LIVES_S = 10.0
"""A worker that wrote something so long ago lives."""


def worker(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MODEL]...", help="Models, or NAME=MODEL: the same as those of the service."),
    ] = None,
    data: Data = None,
    database: Database = None,
    adapters: Annotated[
        list[Path] | None, typer.Option("--adapters", help="Folder of adapters, as the service has it; repeatable.")
    ] = None,
    devices: Devices = None,
    threads: Threads = None,
    precision: Computed = None,
    backend: Backends = None,
    quantize: Quantizing = None,
    budget: Budget = None,
    jobs_at_once: JobsAtOnce = None,
    telemetry: Telemetry = None,
    check: Annotated[bool, typer.Option("--check", help="Say for what it would draw, and stop.")] = False,
) -> None:
    """Draw for a service that runs elsewhere: workers without an API, which take jobs from its database.

    The service and all its workers name one PostgreSQL with --database, and share the folder of --data. Ctrl-C lets
    running jobs end; what is left is drawn by others."""
    from undertow.memory.units import parse_bytes

    require_packages("serve", NEEDED)
    typed = {
        "data": data,
        "database": database,
        "adapters": adapters or None,
        "devices": devices or None,
        "threads": threads,
        "precision": precision,
        "backend": backend,
        "quantize": quantize,
        "budget_bytes": None if budget is None else parse_bytes("--budget", budget),
        "jobs_at_once": jobs_at_once,
        "telemetry": telemetry,
    }
    settings = _checked(read_settings(typed, models or ()))
    if check:
        return
    from undertow.serving.worker.process import run_supervised

    run_supervised(settings, api=False)


def _checked(settings: "ServerSettings") -> "ServerSettings":
    """The settings, after all that could be wrong was, and was said. Errors: `UndertowError`, `OSError`."""
    from socket import gethostname

    from undertow.serving.store.opening import shown
    from undertow.serving.store.store import Store
    from undertow.serving.worker.neighbours import require_same_folder

    require_worker_parts(settings)
    require_folder(settings.data)
    catalog = readable_catalog(settings)
    store = Store.open(settings.database_url)
    try:
        others = store.workers.list(seen_after=store.clock() - LIVES_S)
        foreign = next((one for one in others if one.host != gethostname()), None)
        if settings.database_url.startswith("sqlite") and foreign is not None:
            raise InvalidInput(
                "--database",
                shown(settings.database_url),
                f"PostgreSQL, since worker {foreign.name} is on another machine",
                "the locks of SQLite do not hold over a network: name one database with --database everywhere",
            )
        require_same_folder(settings.data, others)
    finally:
        store.close()
    _say(settings, catalog, shown(settings.database_url), len(others))
    return settings


def _say(settings: "ServerSettings", catalog: "Catalog", database: str, others: int) -> None:
    from undertow.cli.terminal import SafeConsole

    rows = {
        "models": ", ".join(settings.models),
        "data": str(settings.data.absolute()),
        **described_computing(settings, catalog),
        "workers": f"{', '.join(settings.devices)}, beside {others} that {'draws' if others == 1 else 'draw'} already",
    }
    console = SafeConsole(soft_wrap=True, highlight=False)
    console.print(f"undertow draws for {database}", markup=False)
    for name, value in rows.items():
        console.print(f"  {name:<9} {value}", markup=False)
