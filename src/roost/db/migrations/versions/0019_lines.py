"""Jobs that wait for their workspace: accepted, in line behind the one that writes to it."""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

WRITER = "workspace IS NOT NULL AND NOT waits AND status IN ('pending', 'running', 'sleeping')"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("waits", sa.Boolean, nullable=False, server_default=sa.text("0")))
    op.drop_index("one_writer")
    op.create_index("one_writer", "jobs", ["account_id", "workspace"], unique=True, sqlite_where=sa.text(WRITER))
    op.create_index("jobs_in_line", "jobs", ["account_id", "workspace", "seq"], sqlite_where=sa.text("waits"))
