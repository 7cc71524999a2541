"""Sleep and wake, host names that lead to sandboxes, and keys for SSH."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

UNFINISHED = "status IN ('pending', 'running', 'sleeping')"


def upgrade() -> None:
    _extend_jobs()
    op.create_table(
        "routes",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("job_seq", sa.Integer, sa.ForeignKey("jobs.seq"), nullable=False),
        sa.Column("port", sa.Integer, nullable=False),
        sa.Column("access", sa.String, nullable=False),
        sa.Column("token_hash", sa.LargeBinary),
        sa.Column("created_ns", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("job_seq"),
    )
    op.create_table(
        "aliases",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("account_id", sa.Integer, sa.ForeignKey("accounts.id"), nullable=False),
        sa.Column("subdomain", sa.String, nullable=False),
        sa.Column("domain", sa.String, nullable=False),
        sa.Column("workspace", sa.String, nullable=False),
        sa.Column("port", sa.Integer, nullable=False),
        sa.Column("access", sa.String, nullable=False),
        sa.Column("token_hash", sa.LargeBinary),
        sa.Column("created_ns", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("subdomain", "domain"),
    )
    op.create_index("aliases_of_account", "aliases", ["account_id", "created_ns"])
    op.create_table(
        "proxy_targets",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("account_id", sa.Integer, sa.ForeignKey("accounts.id"), nullable=False),
        sa.Column("subdomain", sa.String, nullable=False, unique=True),
        sa.Column("request_id", sa.String, nullable=False),
        sa.Column("ipv6_address", sa.String, nullable=False),
        sa.Column("port", sa.Integer, nullable=False),
        sa.Column("name", sa.String),
        sa.Column("description", sa.String),
        sa.Column("created_ns", sa.BigInteger, nullable=False),
        sa.Column("updated_ns", sa.BigInteger, nullable=False),
    )
    op.create_index("proxy_targets_of_account", "proxy_targets", ["account_id", "created_ns"])
    op.create_table(
        "ssh_keys",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("account_id", sa.Integer, sa.ForeignKey("accounts.id"), nullable=False),
        sa.Column("job_seq", sa.Integer, sa.ForeignKey("jobs.seq")),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("public_key", sa.LargeBinary, nullable=False, unique=True),
        sa.Column("created_ns", sa.BigInteger, nullable=False),
        sa.Column("last_used_ns", sa.BigInteger),
    )
    op.create_index("ssh_keys_of_job", "ssh_keys", ["job_seq", "last_used_ns"])
    op.create_index("ssh_keys_of_account", "ssh_keys", ["account_id", "created_ns"])
    op.create_table(
        "ssh_ports",
        sa.Column("port", sa.Integer, primary_key=True),
        sa.Column("job_seq", sa.Integer, sa.ForeignKey("jobs.seq"), nullable=False, unique=True),
        sa.Column("created_ns", sa.BigInteger, nullable=False),
    )


def _extend_jobs() -> None:
    for column in (
        sa.Column("idle_seconds", sa.Float, nullable=False, server_default=sa.text("600")),
        sa.Column("keepalive_ns", sa.BigInteger),
        sa.Column("depth", sa.String),
        sa.Column("asleep_ns", sa.BigInteger),
        sa.Column("wakes", sa.Integer, nullable=False, server_default=sa.text("0")),
        sa.Column("log_id", sa.String),
    ):
        op.add_column("jobs", column)
    for name in ("jobs_unfinished", "one_writer", "users_of_base"):
        op.drop_index(name, "jobs")
    writer = sa.text(f"workspace IS NOT NULL AND {UNFINISHED}")
    user = sa.text(f"base_workspace IS NOT NULL AND {UNFINISHED}")
    op.create_index("jobs_unfinished", "jobs", ["status"], sqlite_where=sa.text(UNFINISHED))
    op.create_index("one_writer", "jobs", ["account_id", "workspace"], unique=True, sqlite_where=writer)
    op.create_index("users_of_base", "jobs", ["account_id", "base_workspace"], sqlite_where=user)
