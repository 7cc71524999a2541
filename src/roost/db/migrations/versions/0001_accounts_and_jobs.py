"""Accounts, their tokens, and jobs."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "accounts",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String, nullable=False, unique=True),
        sa.Column("created_ns", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "tokens",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("account_id", sa.Integer, sa.ForeignKey("accounts.id"), nullable=False),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("hash", sa.LargeBinary, nullable=False, unique=True),
        sa.Column("created_ns", sa.BigInteger, nullable=False),
        sa.Column("last_used_ns", sa.BigInteger),
    )
    op.create_table(
        "jobs",
        sa.Column("seq", sa.Integer, primary_key=True),
        sa.Column("request_id", sa.String, nullable=False, unique=True),
        sa.Column("account_id", sa.Integer, sa.ForeignKey("accounts.id"), nullable=False),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("vm_id", sa.String, nullable=False, unique=True),
        sa.Column("subdomain", sa.String, nullable=False, unique=True),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("script", sa.LargeBinary, nullable=False),
        sa.Column("environment", sa.LargeBinary),
        sa.Column("image", sa.String, nullable=False),
        sa.Column("vcpus", sa.Float, nullable=False),
        sa.Column("memory_mb", sa.Integer, nullable=False),
        sa.Column("disk_gb", sa.Integer, nullable=False),
        sa.Column("timeout_seconds", sa.Integer, nullable=False),
        sa.Column("created_ns", sa.BigInteger, nullable=False),
        sa.Column("started_ns", sa.BigInteger),
        sa.Column("script_ended_ns", sa.BigInteger),
        sa.Column("ended_ns", sa.BigInteger),
        sa.Column("exit_code", sa.Integer),
        sa.Column("error", sa.String),
        sa.Column("stop_requested", sa.Boolean, nullable=False, server_default=sa.text("0")),
        sa.Column("stopped", sa.Boolean, nullable=False, server_default=sa.text("0")),
        sqlite_autoincrement=True,
    )
    op.create_index("jobs_of_account", "jobs", ["account_id", "seq"])
    op.create_index("jobs_by_name", "jobs", ["account_id", "name"])
    op.create_index("jobs_unfinished", "jobs", ["status"], sqlite_where=sa.text("status IN ('pending', 'running')"))
