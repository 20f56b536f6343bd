"""What promises need: how many rows of a job's forwards have adapters, which take longer; when the client was told that
it would be done; and when its worker last said how far it is.

Revision ID: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("adapted_rows", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("promised_at", sa.Double()))
    op.add_column("jobs", sa.Column("beat_at", sa.Double()))
    op.execute("UPDATE jobs SET promised_at = finish_at")
