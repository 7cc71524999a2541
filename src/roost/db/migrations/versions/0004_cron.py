"""Schedules and their runs."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "crons",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("account_id", sa.Integer, sa.ForeignKey("accounts.id"), nullable=False),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("expression", sa.String, nullable=False),
        sa.Column("timezone", sa.String, nullable=False),
        sa.Column("workspace", sa.String),
        sa.Column("persistent", sa.Boolean, nullable=False),
        sa.Column("work", sa.LargeBinary, nullable=False),
        sa.Column("enabled", sa.Boolean, nullable=False),
        sa.Column("missed", sa.String, nullable=False),
        sa.Column("overlap", sa.String, nullable=False),
        sa.Column("created_ns", sa.BigInteger, nullable=False),
        sa.Column("updated_ns", sa.BigInteger, nullable=False),
        sa.Column("next_ns", sa.BigInteger),
    )
    op.create_index("crons_of_account", "crons", ["account_id", "created_ns"])
    op.create_index("crons_due", "crons", ["next_ns"], sqlite_where=sa.text("next_ns IS NOT NULL"))
    op.create_table(
        "cron_runs",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("cron_id", sa.String, sa.ForeignKey("crons.id", ondelete="CASCADE"), nullable=False),
        sa.Column("scheduled_ns", sa.BigInteger, nullable=False),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("waits", sa.Boolean, nullable=False),
        sa.Column("reason", sa.String),
        sa.Column("request_id", sa.String),
        sa.Column("exec_number", sa.Integer),
        sa.Column("vm_id", sa.String),
        sa.Column("exit_code", sa.Integer),
        sa.Column("started_ns", sa.BigInteger),
        sa.Column("ended_ns", sa.BigInteger),
        sa.UniqueConstraint("cron_id", "scheduled_ns"),
    )
    unended = sa.text("status IN ('queued', 'running')")
    op.create_index("cron_runs_unended", "cron_runs", ["cron_id", "scheduled_ns"], sqlite_where=unended)
