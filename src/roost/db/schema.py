"""The tables, as SQLAlchemy Core sees them; `migrations/` brings a file on disk to this shape.

Instants are whole nanoseconds since the epoch. A job's `vm_id` is chosen when it is accepted, before any sandbox
exists, so that asking the node to start it may be repeated after any crash without running the script twice.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    text,
)

metadata = MetaData()

accounts = Table(
    "accounts",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String, nullable=False, unique=True),
    Column("created_ns", BigInteger, nullable=False),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("account_id", Integer, ForeignKey("accounts.id"), nullable=False),
    Column("name", String, nullable=False),
    Column("hash", LargeBinary, nullable=False, unique=True),  # SHA-256 of the token: 256 random bits need no salt
    Column("created_ns", BigInteger, nullable=False),
    Column("last_used_ns", BigInteger),
)

jobs = Table(
    "jobs",
    metadata,
    Column("seq", Integer, primary_key=True),  # order of acceptance
    Column("request_id", String, nullable=False, unique=True),
    Column("account_id", Integer, ForeignKey("accounts.id"), nullable=False),
    Column("name", String, nullable=False),
    Column("vm_id", String, nullable=False, unique=True),
    Column("subdomain", String, nullable=False, unique=True),
    Column("status", String, nullable=False),
    Column("script", LargeBinary, nullable=False),
    Column("environment", LargeBinary),  # sealed by db/secret.py; erased when the job has ended
    Column("image", String, nullable=False),
    Column("vcpus", Float, nullable=False),
    Column("memory_mb", Integer, nullable=False),
    Column("disk_gb", Integer, nullable=False),
    Column("timeout_seconds", Integer, nullable=False),
    Column("created_ns", BigInteger, nullable=False),
    Column("started_ns", BigInteger),
    Column("script_ended_ns", BigInteger),
    Column("ended_ns", BigInteger),
    Column("exit_code", Integer),
    Column("error", String),
    Column("stop_requested", Boolean, nullable=False, server_default=text("0")),
    Column("stopped", Boolean, nullable=False, server_default=text("0")),
    Index("jobs_of_account", "account_id", "seq"),
    Index("jobs_by_name", "account_id", "name"),
    Index("jobs_unfinished", "status", sqlite_where=text("status IN ('pending', 'running')")),
    sqlite_autoincrement=True,
)
