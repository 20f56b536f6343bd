"""`undertow keys`: who may use a service."""

from collections.abc import Generator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from undertow.cli.service_settings import Data, Database, read_settings
from undertow.errors import InvalidInput
from undertow.extras import require_packages
from undertow.lookup import did_you_mean

if TYPE_CHECKING:
    from undertow.serving.store.store import Store

keys = typer.Typer(help="Keys by which clients use a service.", no_args_is_help=True)

LONGEST_NAME = 100


@keys.command("add")
def add(
    name: Annotated[str, typer.Argument(help="Whose it is, as lists and logs show it.")],
    scopes: Annotated[
        list[str] | None,
        typer.Option("--scope", help="submit, read, inspect or admin; repeatable.", show_default="submit and read"),
    ] = None,
    max_queued: Annotated[
        int | None, typer.Option(min=1, help="Jobs of it that may wait.", show_default="as the service allows")
    ] = None,
    per_minute: Annotated[
        int | None, typer.Option(min=1, help="Jobs that it may submit in a minute.", show_default="any number")
    ] = None,
    data: Data = None,
    database: Database = None,
) -> None:
    """Make a key and print it: this once, since only its hash is kept."""
    from undertow.serving.store.records import Scope

    if not name.strip() or len(name) > LONGEST_NAME or not name.isprintable():
        raise InvalidInput("NAME", repr(name[:LONGEST_NAME]), f"1 to {LONGEST_NAME} printable characters")
    for scope in scopes or ():
        if scope not in list(Scope):
            expected = f"one of {', '.join(Scope)}"
            raise InvalidInput("--scope", repr(scope), expected, did_you_mean(scope, list(Scope)).strip())
    wanted = tuple(map(Scope, scopes)) if scopes else (Scope.SUBMIT, Scope.READ)
    with _opened(data, database) as store:
        if any(key.name == name and key.revoked_at is None for key in store.keys.list()):
            raise InvalidInput("NAME", repr(name), "one that no key has", "revoke the other, or choose another name")
        key, secret = store.keys.create(name, wanted, max_queued=max_queued, requests_per_minute=per_minute)
    typer.echo(secret)
    typer.echo(f"key {key.name} ({key.id}) may {' and '.join(key.scopes)}; it is not shown again", err=True)


@keys.command("list")
def list_keys(data: Data = None, database: Database = None) -> None:
    """List keys without their secrets."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    from undertow.cli.terminal import SafeConsole

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("name", "id", "scopes", "limits", "made", "used", "state"):
        table.add_column(column, overflow="fold", no_wrap=column in ("id", "state"))
    with _opened(data, database, there=True) as store:
        for key in store.keys.list():
            limits = (
                f"{key.max_queued} wait" if key.max_queued else "",
                f"{key.requests_per_minute} a minute" if key.requests_per_minute else "",
            )
            table.add_row(
                escape(key.name),
                key.id,
                ", ".join(key.scopes),
                ", ".join(filter(None, limits)),
                _day(key.created_at),
                _day(key.last_used),
                "revoked" if key.revoked_at is not None else "valid",
            )
    SafeConsole().print(table)


@keys.command("revoke")
def revoke(
    name: Annotated[str, typer.Argument(help="The name of a key, or its id.")],
    data: Data = None,
    database: Database = None,
) -> None:
    """Revoke a key: the service refuses it within a second. Its jobs go on. Without any other key nobody may draw."""
    with _opened(data, database, there=True) as store:
        valid = [key for key in store.keys.list() if key.revoked_at is None]
        found = [key for key in valid if name in (key.id, key.name)]
        if not found:
            names = [key.name for key in valid]
            known = f"{did_you_mean(name, names)}known: {', '.join(names) or 'none'}"
            raise InvalidInput("NAME", repr(name), "the name or the id of a valid key", known)
        for key in found:
            store.keys.revoke(key.id)
    typer.echo(f"revoked {', '.join(f'{key.name} ({key.id})' for key in found)}")


@contextmanager
def _opened(data: Data, database: Database, *, there: bool = False) -> "Generator[Store]":
    """The store of the service. there: it must be. Errors: `InvalidInput`, `StoreError`, `OSError`."""
    require_packages("serve", {"sqlalchemy": "sqlalchemy", "alembic": "alembic"})
    from undertow.serving.store.store import Store

    settings = read_settings({"data": data, "database": database})
    if there and settings.database is None and not (settings.data / "undertow.db").is_file():
        raise InvalidInput("--data", str(settings.data), "the folder of a service", "the first key or job makes one")
    settings.data.mkdir(parents=True, exist_ok=True)
    store = Store.open(settings.database_url)
    try:
        yield store
    finally:
        store.close()


def _day(at: float | None) -> str:
    return "" if at is None else datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M")
