"""Workspaces, their revisions, uploaded files, and what a job has to do with them."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

UNFINISHED_WRITER = "workspace IS NOT NULL AND status IN ('pending', 'running')"
UNFINISHED_USER = "base_workspace IS NOT NULL AND status IN ('pending', 'running')"


def upgrade() -> None:
    _extend_jobs()
    op.create_table(
        "workspaces",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("account_id", sa.Integer, sa.ForeignKey("accounts.id"), nullable=False),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("head", sa.String),
        sa.Column("persistent", sa.Boolean, nullable=False),
        sa.Column("created_ns", sa.BigInteger, nullable=False),
        sa.Column("used_ns", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("account_id", "name"),
    )
    op.create_table(
        "revisions",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("workspace_id", sa.Integer, sa.ForeignKey("workspaces.id"), nullable=False),
        sa.Column("parent", sa.String),
        sa.Column("image", sa.String, nullable=False),
        sa.Column("request_id", sa.String),
        sa.Column("periodic", sa.Boolean, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("stored", sa.Boolean, nullable=False),
        sa.Column("stored_bytes", sa.BigInteger, nullable=False),
        sa.Column("created_ns", sa.BigInteger, nullable=False),
    )
    op.create_index("revisions_of_workspace", "revisions", ["workspace_id", "created_ns"])
    op.create_table(
        "files",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("account_id", sa.Integer, sa.ForeignKey("accounts.id"), nullable=False),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("size", sa.BigInteger),
        sa.Column("created_ns", sa.BigInteger, nullable=False),
        sa.Column("expires_ns", sa.BigInteger, nullable=False),
    )
    op.create_index("files_by_expiry", "files", ["expires_ns"])


def _extend_jobs() -> None:
    for name in ("workspace", "base_workspace", "base_revision", "start_revision", "save_revision"):
        op.add_column("jobs", sa.Column(name, sa.String))
    for name in ("persistent", "no_sync", "no_sleep"):
        op.add_column("jobs", sa.Column(name, sa.Boolean, nullable=False, server_default=sa.text("0")))
    op.add_column("jobs", sa.Column("startup_command", sa.String))
    op.add_column("jobs", sa.Column("file_ids", sa.JSON))
    op.create_index("jobs_by_workspace", "jobs", ["account_id", "workspace", "seq"])
    op.create_index(
        "one_writer", "jobs", ["account_id", "workspace"], unique=True, sqlite_where=sa.text(UNFINISHED_WRITER)
    )
    op.create_index("users_of_base", "jobs", ["account_id", "base_workspace"], sqlite_where=sa.text(UNFINISHED_USER))
