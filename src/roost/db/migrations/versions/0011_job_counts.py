"""How many jobs an account has, so that a list can tell it without counting them."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("accounts", sa.Column("jobs", sa.Integer, nullable=False, server_default=sa.text("0")))
    op.execute("UPDATE accounts SET jobs = (SELECT count(*) FROM jobs WHERE jobs.account_id = accounts.id)")
