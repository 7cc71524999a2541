"""The Jobs API: definitions and their runs; jobs whose image comes from a registry, and those with /workspace."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("stateful", sa.Boolean, nullable=False, server_default=sa.text("0")))
    op.add_column("jobs", sa.Column("image_source", sa.String))
    op.create_table(
        "saved_jobs",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("account_id", sa.Integer, sa.ForeignKey("accounts.id"), nullable=False),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("work", sa.LargeBinary, nullable=False),
        sa.Column("created_ns", sa.BigInteger, nullable=False),
        sa.Column("updated_ns", sa.BigInteger, nullable=False),
    )
    op.create_index("saved_jobs_of_account", "saved_jobs", ["account_id", "created_ns"])
    op.create_table(
        "saved_job_runs",
        sa.Column("request_id", sa.String, primary_key=True),
        sa.Column("job_id", sa.String, nullable=False),
        sa.Column("ip_lease", sa.Boolean, nullable=False),
        sa.Column("created_ns", sa.BigInteger, nullable=False),
    )
    op.create_index("runs_of_saved_job", "saved_job_runs", ["job_id", "created_ns"])
