"""MicroVMs: persistent jobs with a user of their own, keys of their own, and a state of being stopped."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("login", sa.String))
    op.add_column("jobs", sa.Column("halted", sa.Boolean, nullable=False, server_default=sa.text("0")))
    op.create_table(
        "microvms",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("account_id", sa.Integer, sa.ForeignKey("accounts.id"), nullable=False),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("key_generated", sa.Boolean, nullable=False),
        sa.Column("private_key", sa.LargeBinary),
        sa.Column("created_ns", sa.BigInteger, nullable=False),
        sa.Column("removed_ns", sa.BigInteger),
    )
    op.create_index("microvms_of_account", "microvms", ["account_id", "created_ns"])
    op.create_table(
        "microvm_keys",
        sa.Column("microvm_id", sa.String, sa.ForeignKey("microvms.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("public_key", sa.LargeBinary, primary_key=True),
        sa.Column("generated", sa.Boolean, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("microvms_of_key", "microvm_keys", ["public_key"])
