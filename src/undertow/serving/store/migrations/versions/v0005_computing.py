"""What work costs is kept by how a worker computes too: its machine, its threads, its type. What was written before
does not say with how many threads it was measured, so nobody could take it up; workers measure when they start.

Revision ID: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.drop_table("costs")
    op.create_table(
        "costs",
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("computing", sa.Text(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("costs", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("model", "device", "computing"),
    )
