"""What accounts may use, where that is not the installation's default."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "quotas",
        sa.Column("account_id", sa.Integer, sa.ForeignKey("accounts.id"), primary_key=True),
        sa.Column("running", sa.Integer),
        sa.Column("vcpus", sa.Float),
        sa.Column("memory_mb", sa.Integer),
        sa.Column("disk_gb", sa.Integer),
        sa.Column("stored_bytes", sa.BigInteger),
        sa.Column("requests_per_second", sa.Integer),
        sa.Column("updated_ns", sa.BigInteger, nullable=False),
    )
