"""Templates, their revisions and runs; schedules of saved jobs and templates."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "templates",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("account_id", sa.Integer, sa.ForeignKey("accounts.id"), nullable=False),
        sa.Column("latest_revision", sa.Integer, nullable=False),
        sa.Column("created_ns", sa.BigInteger, nullable=False),
    )
    op.create_index("templates_of_account", "templates", ["account_id", "created_ns"])
    op.create_table(
        "template_revisions",
        sa.Column("template_id", sa.String, sa.ForeignKey("templates.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("work", sa.LargeBinary, nullable=False),
        sa.Column("comment", sa.String),
        sa.Column("created_ns", sa.BigInteger, nullable=False),
        sa.Column("created_by", sa.String, nullable=False),
    )
    op.create_table(
        "template_runs",
        sa.Column("request_id", sa.String, primary_key=True),
        sa.Column("template_id", sa.String, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("created_ns", sa.BigInteger, nullable=False),
    )
    op.create_index("runs_of_template", "template_runs", ["template_id", "created_ns"])
    op.create_table(
        "schedules",
        sa.Column("cron_id", sa.String, sa.ForeignKey("crons.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("account_id", sa.Integer, sa.ForeignKey("accounts.id"), nullable=False),
        sa.Column("job_id", sa.String, nullable=False),
        sa.Column("ip_lease", sa.Boolean, nullable=False),
        sa.Column("revision", sa.Integer),
        sa.Column("pinned", sa.Boolean, nullable=False),
    )
    op.create_index("schedules_of_job", "schedules", ["job_id"])
    op.create_index("schedules_of_account", "schedules", ["account_id"])
