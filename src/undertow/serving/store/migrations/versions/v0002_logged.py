"""How far a job was when its worker was lost: only who got no further is charged an attempt.

Revision ID: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("logged", sa.BigInteger(), nullable=False, server_default="0"))
