"""Users, members of accounts, browser sessions, devices that log in; tokens with scopes, that expire."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "users",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String, nullable=False, unique=True),
        sa.Column("email", sa.String, unique=True),
        sa.Column("password_hash", sa.String),
        sa.Column("account_id", sa.Integer, sa.ForeignKey("accounts.id"), nullable=False),
        sa.Column("created_ns", sa.BigInteger, nullable=False),
        sa.Column("last_login_ns", sa.BigInteger),
        sa.Column("disabled_ns", sa.BigInteger),
    )
    op.create_table(
        "identities",
        sa.Column("issuer", sa.String, primary_key=True),
        sa.Column("subject", sa.String, primary_key=True),
        sa.Column("user_id", sa.Integer, sa.ForeignKey("users.id"), nullable=False),
        sa.Column("created_ns", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("identities_of_user", "identities", ["user_id"])
    op.create_table(
        "members",
        sa.Column("account_id", sa.Integer, sa.ForeignKey("accounts.id"), primary_key=True),
        sa.Column("user_id", sa.Integer, sa.ForeignKey("users.id"), primary_key=True),
        sa.Column("role", sa.String, nullable=False),
        sa.Column("created_ns", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("accounts_of_user", "members", ["user_id", "created_ns"])
    op.create_table(
        "sessions",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("hash", sa.LargeBinary, nullable=False, unique=True),
        sa.Column("user_id", sa.Integer, sa.ForeignKey("users.id"), nullable=False),
        sa.Column("account_id", sa.Integer, sa.ForeignKey("accounts.id"), nullable=False),
        sa.Column("created_ns", sa.BigInteger, nullable=False),
        sa.Column("expires_ns", sa.BigInteger, nullable=False),
        sa.Column("used_ns", sa.BigInteger, nullable=False),
    )
    op.create_index("sessions_of_user", "sessions", ["user_id"])
    op.create_index("sessions_by_end", "sessions", ["expires_ns"])
    op.create_table(
        "devices",
        sa.Column("hash", sa.LargeBinary, primary_key=True),
        sa.Column("user_code", sa.LargeBinary, nullable=False, unique=True),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("address", sa.String, nullable=False),
        sa.Column("scope", sa.String, nullable=False),
        sa.Column("created_ns", sa.BigInteger, nullable=False),
        sa.Column("expires_ns", sa.BigInteger, nullable=False),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("user_id", sa.Integer, sa.ForeignKey("users.id")),
        sa.Column("account_id", sa.Integer, sa.ForeignKey("accounts.id")),
    )
    op.create_index("devices_by_end", "devices", ["expires_ns"])
    # those that exist could do everything, and still can
    op.add_column("tokens", sa.Column("scope", sa.String, nullable=False, server_default=sa.text("'admin'")))
    op.add_column("tokens", sa.Column("expires_ns", sa.BigInteger))
    op.execute("ALTER TABLE tokens ADD COLUMN user_id INTEGER REFERENCES users (id)")
    op.add_column("tokens", sa.Column("roams", sa.Boolean, nullable=False, server_default=sa.text("0")))
    op.create_index("tokens_of_account", "tokens", ["account_id"])
    op.create_index("tokens_of_user", "tokens", ["user_id"])
    op.execute("ALTER TABLE ssh_keys ADD COLUMN user_id INTEGER REFERENCES users (id)")
