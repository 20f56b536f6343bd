"""Brings a database to the tables of this version, once, whoever else starts at the same time."""

from sqlalchemy import Connection, inspect, text

from undertow.extras import optional_package
from undertow.serving.store.database import MIGRATION, wait_turn
from undertow.serving.store.records import StoreError
from undertow.serving.store.tables import REVISION, VERSION_TABLE, metadata

NEWER = "start the version of undertow that made it, or name another database; going back is not possible"
FOREIGN = "name a database of its own for undertow"

MIGRATIONS = "undertow.serving.store:migrations"


def is_current(connection: Connection) -> bool:
    return _revision(connection) == REVISION


def migrate(connection: Connection, place: str) -> None:
    """Runs in a transaction that keeps others from doing the same. Errors: `StoreError`."""
    wait_turn(connection, MIGRATION)
    found = _revision(connection)
    if found == REVISION:
        return
    if found is None:
        _require_empty(connection, place)
    with optional_package("alembic", "serve"):
        from alembic import command  # noqa: PLC0415  # only where there is something to migrate: half a second
        from alembic.config import Config  # noqa: PLC0415
        from alembic.script import ScriptDirectory  # noqa: PLC0415
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", MIGRATIONS)
    known = {one.revision for one in ScriptDirectory.from_config(config).walk_revisions()}
    if found is not None and found not in known:
        said = f"it was made by a newer undertow (revision {found}, expected {REVISION} or older)"
        raise StoreError(place, "newer", said, NEWER)
    command.upgrade(config, REVISION)


def _revision(connection: Connection) -> str | None:
    """None for a database that is new, or not ours."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    return connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()


def _require_empty(connection: Connection, place: str) -> None:
    """A schema of PostgreSQL may be shared; a file may not."""
    there = set(inspect(connection).get_table_names())
    others = there if connection.dialect.name == "sqlite" else there & set(metadata.tables)
    if others:
        raise StoreError(
            place, "foreign", f"it has tables of another program ({', '.join(sorted(others)[:3])})", FOREIGN
        )
