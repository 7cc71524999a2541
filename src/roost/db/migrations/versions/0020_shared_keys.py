"""A public key in several accounts, each of which counts once who holds it has logged in to it by name."""

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None

NAMES = {"uq": "uq_%(table_name)s_%(column_0_name)s"}


def upgrade() -> None:
    with op.batch_alter_table("ssh_keys", naming_convention=NAMES) as table:
        table.add_column(sa.Column("confirmed_ns", sa.BigInteger))
        table.drop_constraint("uq_ssh_keys_public_key", type_="unique")
    op.execute("UPDATE ssh_keys SET confirmed_ns = last_used_ns")
    op.create_index("ssh_keys_by_key", "ssh_keys", ["public_key"])
    op.create_index(
        "one_key_of_account", "ssh_keys", ["account_id", "public_key"], unique=True,
        sqlite_where=sa.text("job_seq IS NULL"),
    )  # fmt: skip
