"""What sandboxes use: by account, workspace and day."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def _counters() -> list[sa.Column[int]]:
    whole = ("cpu_ns", "rx_bytes", "tx_bytes", "awake_ns", "frozen_ns")
    columns = [sa.Column(name, sa.BigInteger, nullable=False) for name in whole]
    return [*columns, sa.Column("memory_mb_seconds", sa.Float, nullable=False)]  # type: ignore[list-item]


def upgrade() -> None:
    op.create_table(
        "metered",
        sa.Column("vm_id", sa.String, primary_key=True),
        sa.Column("account_id", sa.Integer, sa.ForeignKey("accounts.id"), nullable=False),
        sa.Column("workspace", sa.String, nullable=False),
        *_counters(),
        sa.Column("ended", sa.Boolean, nullable=False),
    )
    op.create_index("metered_over", "metered", ["vm_id"], sqlite_where=sa.text("ended"))
    op.create_table(
        "usage_days",
        sa.Column("account_id", sa.Integer, sa.ForeignKey("accounts.id"), primary_key=True),
        sa.Column("day", sa.Integer, primary_key=True),
        sa.Column("workspace", sa.String, primary_key=True),
        *_counters(),
        sqlite_with_rowid=False,
    )
    op.create_index("jobs_by_time", "jobs", ["account_id", "created_ns", "workspace"])
