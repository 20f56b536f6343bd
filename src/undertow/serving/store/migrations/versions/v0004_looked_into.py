"""What promises need of jobs that are looked into: how many times as long a step of theirs takes, and the seconds after
their last picture.

Revision ID: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("longer", sa.Double(), nullable=False, server_default="1"))
    op.add_column("jobs", sa.Column("after_s", sa.Double(), nullable=False, server_default="0"))
