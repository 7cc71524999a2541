"""Invitations to accounts: membership begins when the user has accepted."""

import sqlalchemy as sa
from alembic import op

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "invitations",
        sa.Column("account_id", sa.Integer, sa.ForeignKey("accounts.id"), primary_key=True),
        sa.Column("user_id", sa.Integer, sa.ForeignKey("users.id"), primary_key=True),
        sa.Column("role", sa.String, nullable=False),
        sa.Column("invited_by", sa.Integer, sa.ForeignKey("users.id")),
        sa.Column("created_ns", sa.BigInteger, nullable=False),
        sa.Column("expires_ns", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("invitations_of_user", "invitations", ["user_id"])
    op.create_index("invitations_by_end", "invitations", ["expires_ns"])
