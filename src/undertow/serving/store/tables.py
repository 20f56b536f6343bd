"""The tables, as they are now; `migrations/` has how they became so."""

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Dialect,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.types import TypeDecorator

REVISION = "0005"
"""Of these tables: the newest of `migrations/versions`."""

VERSION_TABLE = "undertow_version"


class Json(TypeDecorator[Any]):
    """JSON as ASCII text, which both databases take whatever characters a prompt has."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        return None if value is None else json.dumps(value, separators=(",", ":"))

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        return None if value is None else json.loads(value)


Fields = Mapping[Any, Any]
"""A row by the names of its columns: a RowMapping, whose own base tests cannot check."""

metadata = MetaData()

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("key", String(64), nullable=False),
    Column("client_id", Text),
    Column("idempotency_key", Text),
    Column("body_hash", Text, nullable=False),
    Column("spec_hash", String(64), nullable=False),
    Column("model", Text, nullable=False),
    Column("mode", String(16), nullable=False),
    Column("rows", Integer),
    Column("cells", Integer, nullable=False),
    Column("work_rows", Integer, nullable=False),
    Column("adapted_rows", Integer, nullable=False, server_default="0"),
    Column("steps", Integer, nullable=False),
    Column("pictures", Integer, nullable=False),
    Column("longer", Double, nullable=False, server_default="1"),
    Column("after_s", Double, nullable=False, server_default="0"),
    Column("cost", Double, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("label", Text, nullable=False),
    Column("batch", Text),
    Column("webhook", Text),
    Column("traceparent", Text),
    Column("state", String(16), nullable=False),
    Column("submitted_at", Double, nullable=False),
    Column("started_at", Double),
    Column("finished_at", Double),
    Column("deadline_at", Double),
    Column("expires_at", Double),
    # Of these two the first never changes, and the second is updated.
    Column("promised_at", Double),
    Column("finish_at", Double),
    Column("attempt", Integer, nullable=False),
    Column("alone", Boolean, nullable=False),
    # Bytes of its log when a worker of it was lost last.
    Column("logged", BigInteger, nullable=False, server_default="0"),
    Column("requeued", Boolean, nullable=False),
    Column("worker", Text),
    Column("fence", Integer, nullable=False),
    Column("lease_until", Double),
    # When its worker last said how far it is.
    Column("beat_at", Double),
    Column("cancel_requested", Boolean, nullable=False),
    Column("preview_until", Double, nullable=False),
    Column("progress", Json, nullable=False),
    Column("result", Json),
    Column("failure", Json),
    # Of the newest event.
    Column("seq", Integer, nullable=False),
    UniqueConstraint("key", "client_id", name="uq_jobs_client_id"),
    UniqueConstraint("key", "idempotency_key", name="uq_jobs_idempotency_key"),
)
Index("ix_jobs_state", jobs.c.state, jobs.c.key)
Index("ix_jobs_key", jobs.c.key, jobs.c.id)
Index("ix_jobs_spec", jobs.c.key, jobs.c.spec_hash)
Index("ix_jobs_batch", jobs.c.batch)
Index("ix_jobs_expires", jobs.c.expires_at)

# Apart from `jobs`: they may be large, and a row is written as a whole at each change.
specs = Table(
    "specs",
    metadata,
    Column("job", String(64), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("spec", Json, nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("job", String(64), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("at", Double, nullable=False),
    Column("data", Json, nullable=False),
)

# A row here has a file in the folder of artifacts: it is written after the file, and removed before it.
artifacts = Table(
    "artifacts",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("media_type", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("created_at", Double, nullable=False),
)

# What keeps an artifact: jobs that draw from it or drew it, and uploads for a while.
uses = Table(
    "uses",
    metadata,
    Column("job", String(64), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("sha256", String(64), ForeignKey("artifacts.sha256"), primary_key=True),
    Index("ix_uses_sha256", "sha256"),
)

uploads = Table(
    "uploads",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("sha256", String(64), ForeignKey("artifacts.sha256"), primary_key=True),
    Column("expires_at", Double, nullable=False),
    Index("ix_uploads_sha256", "sha256"),
)

# Written in the same transaction as the final state, so that no process that dies forgets to call.
deliveries = Table(
    "deliveries",
    metadata,
    Column("job", String(64), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("due_at", Double, nullable=False),
    Column("attempt", Integer, nullable=False),
    Index("ix_deliveries_due", "due_at"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("name", Text, nullable=False),
    Column("hash", String(64), nullable=False, unique=True),
    Column("scopes", Json, nullable=False),
    Column("max_queued", Integer),
    Column("requests_per_minute", Integer),
    Column("created_at", Double, nullable=False),
    Column("last_used", Double),
    Column("revoked_at", Double),
)

key_options = Table(
    "key_options",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("options", Json, nullable=False),
)

workers = Table(
    "workers",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("info", Json, nullable=False),
    Column("seen_at", Double, nullable=False),
)

costs = Table(
    "costs",
    metadata,
    Column("model", Text, primary_key=True),
    Column("device", Text, primary_key=True),
    Column("computing", Text, primary_key=True),
    Column("at", Double, nullable=False),
    Column("costs", Json, nullable=False),
)

health = Table(
    "health",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at", Double, nullable=False),
)
