"""Alembic runs this for each migration, within the transaction of the connection that `migrate.py` gives it."""

from alembic import context

from undertow.serving.store.tables import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
