"""How many rows of a job's forwards have adapters, which take longer.

Revision ID: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("adapted_rows", sa.Integer(), nullable=False, server_default="0"))
