"""Jobs whose script is given input while it runs."""

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("input", sa.Boolean, nullable=False, server_default=sa.text("0")))
