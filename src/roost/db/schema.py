"""The tables, as SQLAlchemy Core sees them; `migrations/` brings a file on disk to this shape.

Instants are whole nanoseconds since the epoch. A job's `vm_id` is chosen when it is accepted, before any sandbox
exists, so that asking the node to start it may be repeated after any crash without running the script twice.
"""

from typing import Any

from sqlalchemy import (
    JSON,
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
    UniqueConstraint,
    text,
)

metadata = MetaData()

accounts = Table(
    "accounts",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String, nullable=False, unique=True),
    Column("created_ns", BigInteger, nullable=False),
    Column("jobs", Integer, nullable=False, server_default=text("0")),  # that it has: to count rows takes too long
    Column("default_image", String),  # what its jobs start from where they name none; none: the installation's
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
    Column("scope", String, nullable=False, server_default=text("'admin'")),  # read, run or admin
    Column("expires_ns", BigInteger),  # None: never
    Column("user_id", Integer, ForeignKey("users.id")),  # who made it; None: nobody, as the first one of all
    Column("roams", Boolean, nullable=False, server_default=text("0")),  # speaks for its user in any of their accounts
    Index("tokens_of_account", "account_id"),
    Index("tokens_of_user", "user_id"),
)

users = Table(
    "users",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String, nullable=False, unique=True),
    Column("email", String, unique=True),  # lower case
    Column("password_hash", String),  # Argon2id with its parameters and salt; None: comes in by OIDC alone
    Column("account_id", Integer, ForeignKey("accounts.id"), nullable=False),  # made with the user
    Column("created_ns", BigInteger, nullable=False),
    Column("last_login_ns", BigInteger),
    Column("disabled_ns", BigInteger),
)

identities = Table(  # of users at OpenID providers
    "identities",
    metadata,
    Column("issuer", String, primary_key=True),
    Column("subject", String, primary_key=True),
    Column("user_id", Integer, ForeignKey("users.id"), nullable=False),
    Column("created_ns", BigInteger, nullable=False),
    Index("identities_of_user", "user_id"),
    sqlite_with_rowid=False,
)

members = Table(
    "members",
    metadata,
    Column("account_id", Integer, ForeignKey("accounts.id"), primary_key=True),
    Column("user_id", Integer, ForeignKey("users.id"), primary_key=True),
    Column("role", String, nullable=False),  # owner, member or viewer
    Column("created_ns", BigInteger, nullable=False),
    Index("accounts_of_user", "user_id", "created_ns"),
    sqlite_with_rowid=False,
)

invitations = Table(  # to accounts, until they are answered or too old
    "invitations",
    metadata,
    Column("account_id", Integer, ForeignKey("accounts.id"), primary_key=True),
    Column("user_id", Integer, ForeignKey("users.id"), primary_key=True),
    Column("role", String, nullable=False),  # that membership will begin with
    Column("invited_by", Integer, ForeignKey("users.id")),  # None: a token that is nobody's
    Column("created_ns", BigInteger, nullable=False),
    Column("expires_ns", BigInteger, nullable=False),
    Index("invitations_of_user", "user_id"),
    Index("invitations_by_end", "expires_ns"),
    sqlite_with_rowid=False,
)

sessions = Table(  # of browsers
    "sessions",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("hash", LargeBinary, nullable=False, unique=True),  # SHA-256 of the cookie's value
    Column("user_id", Integer, ForeignKey("users.id"), nullable=False),
    Column("account_id", Integer, ForeignKey("accounts.id"), nullable=False),  # which it speaks for
    Column("created_ns", BigInteger, nullable=False),
    Column("expires_ns", BigInteger, nullable=False),
    Column("used_ns", BigInteger, nullable=False),
    Index("sessions_of_user", "user_id"),
    Index("sessions_by_end", "expires_ns"),
)

devices = Table(  # that ask to be logged in, until that is decided or too late
    "devices",
    metadata,
    Column("hash", LargeBinary, primary_key=True),  # SHA-256 of the device code
    Column("user_code", LargeBinary, nullable=False, unique=True),  # SHA-256
    Column("name", String, nullable=False),
    Column("address", String, nullable=False),  # that asked
    Column("scope", String, nullable=False),
    Column("created_ns", BigInteger, nullable=False),
    Column("expires_ns", BigInteger, nullable=False),
    Column("status", String, nullable=False),  # pending, approved or denied
    Column("user_id", Integer, ForeignKey("users.id")),  # who decided
    Column("account_id", Integer, ForeignKey("accounts.id")),
    Index("devices_by_end", "expires_ns"),
)

audit = Table(  # who did what; rows are added and, when they are old, deleted
    "audit",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("account_id", Integer, ForeignKey("accounts.id"), nullable=False),
    Column("at_ns", BigInteger, nullable=False),
    Column("actor", String, nullable=False),
    Column("action", String, nullable=False),
    Column("resource", String),
    Column("address", String, nullable=False),
    Column("status", Integer, nullable=False),
    Index("audit_of_account", "account_id", "id"),
    Index("audit_by_age", "at_ns"),
    sqlite_autoincrement=True,
)

quotas = Table(  # accounts that have limits of their own; none in a column: the installation's default
    "quotas",
    metadata,
    Column("account_id", Integer, ForeignKey("accounts.id"), primary_key=True),
    Column("running", Integer),
    Column("vcpus", Float),
    Column("memory_mb", Integer),
    Column("disk_gb", Integer),
    Column("stored_bytes", BigInteger),
    Column("requests_per_second", Integer),
    Column("updated_ns", BigInteger, nullable=False),
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
    Column("workspace", String),  # a name: the job outlives the workspace
    Column("base_workspace", String),
    Column("base_revision", String),  # of the base, where one was asked for
    Column("start_revision", String),  # pinned when the job starts: what its files began as
    Column("save_revision", String),  # chosen at submission: the id under which its end state is saved
    Column("persistent", Boolean, nullable=False, server_default=text("0")),
    Column("no_sync", Boolean, nullable=False, server_default=text("0")),
    Column("no_sleep", Boolean, nullable=False, server_default=text("0")),
    Column("startup_command", String),
    Column("file_ids", JSON(none_as_null=True)),  # list of uploads
    Column("idle_seconds", Float, nullable=False, server_default=text("600")),
    Column("keepalive_ns", BigInteger),  # until then it does not fall asleep by itself
    Column("depth", String),  # while asleep: frozen, cold, or waking (from cold)
    Column("asleep_ns", BigInteger),  # since when
    Column("wakes", Integer, nullable=False, server_default=text("0")),  # from cold; each has a sandbox of its own
    Column("log_id", String),  # the first sandbox's id, whose log all of them continue; none before the first wake
    Column("stateful", Boolean, nullable=False, server_default=text("0")),  # it has a directory /workspace
    Column("image_source", String),  # a registry's reference: the node pulls the image if it does not have it
    Column("trace", String),  # `traceparent` of what submitted it
    Column("login", String),  # of a microVM: the user that its sandbox has besides root
    Column("halted", Boolean, nullable=False, server_default=text("0")),  # it is cold, or to be, until it is started
    Column("waits", Boolean, nullable=False, server_default=text("0")),  # for its workspace, which another job has
    Column("input", Boolean, nullable=False, server_default=text("0")),  # its script is given some while it runs
    Index("jobs_of_account", "account_id", "seq"),
    Index("jobs_by_name", "account_id", "name"),
    Index("jobs_unfinished", "status", sqlite_where=text("status IN ('pending', 'running', 'sleeping')")),
    Index("jobs_by_time", "account_id", "created_ns", "workspace"),
    Index("jobs_by_workspace", "account_id", "workspace", "seq"),
    Index(
        "one_writer",  # of a workspace at a time: a second submission breaks this, whoever races
        "account_id",
        "workspace",
        unique=True,
        sqlite_where=text("workspace IS NOT NULL AND NOT waits AND status IN ('pending', 'running', 'sleeping')"),
    ),
    Index("jobs_in_line", "account_id", "workspace", "seq", sqlite_where=text("waits")),
    Index(
        "users_of_base",
        "account_id",
        "base_workspace",
        sqlite_where=text("base_workspace IS NOT NULL AND status IN ('pending', 'running', 'sleeping')"),
    ),
    sqlite_autoincrement=True,
)

workspaces = Table(
    "workspaces",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("account_id", Integer, ForeignKey("accounts.id"), nullable=False),
    Column("name", String, nullable=False),
    Column("head", String),  # a revision; none before the first save
    Column("persistent", Boolean, nullable=False),  # kept in the object store since a persistent job had it
    Column("created_ns", BigInteger, nullable=False),
    Column("used_ns", BigInteger, nullable=False),
    UniqueConstraint("account_id", "name"),
)

revisions = Table(
    "revisions",
    metadata,
    Column("id", String, primary_key=True),
    Column("workspace_id", Integer, ForeignKey("workspaces.id"), nullable=False),
    Column("parent", String),  # may be gone, or of another workspace
    Column("image", String, nullable=False),
    Column("request_id", String),  # of the job that made it; none for an edit
    Column("periodic", Boolean, nullable=False),  # the next save of its workspace replaces it
    Column("size", BigInteger, nullable=False),
    Column("stored", Boolean, nullable=False),
    Column("stored_bytes", BigInteger, nullable=False),
    Column("created_ns", BigInteger, nullable=False),
    Index("revisions_of_workspace", "workspace_id", "created_ns"),
)

files = Table(
    "files",
    metadata,
    Column("id", String, primary_key=True),
    Column("account_id", Integer, ForeignKey("accounts.id"), nullable=False),
    Column("name", String, nullable=False),
    Column("size", BigInteger),  # none until the upload is complete
    Column("created_ns", BigInteger, nullable=False),
    Column("expires_ns", BigInteger, nullable=False),
    Index("files_by_expiry", "expires_ns"),
)

routes = Table(  # ports of jobs that are reached by the job's own host name
    "routes",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("job_seq", Integer, ForeignKey("jobs.seq"), nullable=False),
    Column("port", Integer, nullable=False),
    Column("access", String, nullable=False),  # public, token or signed
    Column("token_hash", LargeBinary),  # SHA-256 of the route's token
    Column("created_ns", BigInteger, nullable=False),
    UniqueConstraint("job_seq"),
)

aliases = Table(
    "aliases",
    metadata,
    Column("id", String, primary_key=True),
    Column("account_id", Integer, ForeignKey("accounts.id"), nullable=False),
    Column("subdomain", String, nullable=False),
    Column("domain", String, nullable=False),
    Column("workspace", String, nullable=False),
    Column("port", Integer, nullable=False),
    Column("access", String, nullable=False),
    Column("token_hash", LargeBinary),
    Column("created_ns", BigInteger, nullable=False),
    UniqueConstraint("subdomain", "domain"),
    Index("aliases_of_account", "account_id", "created_ns"),
)

former_names = Table(  # that were given back; the labels of aliases and proxy targets
    "former_names",
    metadata,
    Column("subdomain", String, primary_key=True),
    Column("account_id", Integer, ForeignKey("accounts.id"), nullable=False),  # which alone may have it until then
    Column("until_ns", BigInteger, nullable=False),
)

proxy_targets = Table(
    "proxy_targets",
    metadata,
    Column("id", String, primary_key=True),
    Column("account_id", Integer, ForeignKey("accounts.id"), nullable=False),
    Column("subdomain", String, nullable=False, unique=True),
    Column("request_id", String, nullable=False),  # of the job whose sandbox had the address
    Column("ipv6_address", String, nullable=False),
    Column("port", Integer, nullable=False),
    Column("name", String),
    Column("description", String),
    Column("created_ns", BigInteger, nullable=False),
    Column("updated_ns", BigInteger, nullable=False),
    Index("proxy_targets_of_account", "account_id", "created_ns"),
)

ssh_keys = Table(
    "ssh_keys",
    metadata,
    Column("id", String, primary_key=True),
    Column("account_id", Integer, ForeignKey("accounts.id"), nullable=False),
    Column("job_seq", Integer, ForeignKey("jobs.seq")),  # None: the account's own, for all of its sandboxes
    Column("name", String, nullable=False),
    Column("public_key", LargeBinary, nullable=False),  # as on the wire (RFC 4253, 6.6)
    Column("created_ns", BigInteger, nullable=False),
    Column("last_used_ns", BigInteger),
    Column("confirmed_ns", BigInteger),  # when who holds it said, by a login, that it is for this account
    Column("user_id", Integer, ForeignKey("users.id")),  # who added it or had it made; it goes with them
    Index("ssh_keys_of_job", "job_seq", "last_used_ns"),
    Index("ssh_keys_of_account", "account_id", "created_ns"),
    Index("ssh_keys_by_key", "public_key"),
    Index("one_key_of_account", "account_id", "public_key", unique=True, sqlite_where=text("job_seq IS NULL")),
)

ssh_ports = Table(  # of the gateway that belong to one job; they go when it has ended
    "ssh_ports",
    metadata,
    Column("port", Integer, primary_key=True),
    Column("job_seq", Integer, ForeignKey("jobs.seq"), nullable=False, unique=True),
    Column("created_ns", BigInteger, nullable=False),
)

microvms = Table(  # each is a persistent job of the same id
    "microvms",
    metadata,
    Column("id", String, primary_key=True),
    Column("account_id", Integer, ForeignKey("accounts.id"), nullable=False),
    Column("name", String, nullable=False),
    Column("key_generated", Boolean, nullable=False),
    Column("private_key", LargeBinary),  # sealed; erased before it is told, once
    Column("created_ns", BigInteger, nullable=False),
    Column("removed_ns", BigInteger),  # since then it is not there for its owner; the row goes when all is removed
    Index("microvms_of_account", "account_id", "created_ns"),
)

microvm_keys = Table(  # who may log in; a key may be of many
    "microvm_keys",
    metadata,
    Column("microvm_id", String, ForeignKey("microvms.id", ondelete="CASCADE"), primary_key=True),
    Column("public_key", LargeBinary, primary_key=True),  # as on the wire (RFC 4253, 6.6)
    Column("generated", Boolean, nullable=False),  # here, so that it is of this one alone
    Index("microvms_of_key", "public_key"),
    sqlite_with_rowid=False,
)

webhooks = Table(
    "webhooks",
    metadata,
    Column("id", String, primary_key=True),
    Column("account_id", Integer, ForeignKey("accounts.id"), nullable=False),
    Column("url", String, nullable=False),
    Column("description", String),
    Column("events", JSON(none_as_null=True)),  # list of types; none: all
    Column("secret", LargeBinary, nullable=False),  # sealed
    Column("previous_secret", LargeBinary),
    Column("previous_until_ns", BigInteger),  # it signs too
    Column("enabled", Boolean, nullable=False),
    Column("disabled_reason", String),
    Column("sequence", Integer, nullable=False),  # of its newest message
    Column("failing_since_ns", BigInteger),
    Column("created_ns", BigInteger, nullable=False),
    Column("updated_ns", BigInteger, nullable=False),
    Index("webhooks_of_account", "account_id", "enabled"),
)

webhook_deliveries = Table(  # the outbox; triggers write it (migration 0013) whenever a job's state changes
    "webhook_deliveries",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("message_id", String, nullable=False, unique=True),
    Column("webhook_id", String, ForeignKey("webhooks.id", ondelete="CASCADE"), nullable=False),
    Column("sequence", Integer, nullable=False),
    Column("type", String, nullable=False),
    Column("data", String, nullable=False),  # a JSON object
    Column("occurred_ns", BigInteger, nullable=False),
    Column("status", String, nullable=False),  # waiting, delivered or failed
    Column("attempts", Integer, nullable=False),
    Column("next_ns", BigInteger),  # attempt; none: it does not wait
    Column("until_ns", BigInteger, nullable=False),  # it is tried
    Column("attempted_ns", BigInteger),
    Column("response_status", Integer),
    Column("error", String),
    Index("webhook_deliveries_of_webhook", "webhook_id", "sequence"),
    Index("webhook_deliveries_waiting", "webhook_id", "id", "next_ns", sqlite_where=text("status = 'waiting'")),
    Index("webhook_deliveries_by_age", "status", "occurred_ns"),
)


def _counters() -> list[Column[Any]]:
    whole = ("cpu_ns", "rx_bytes", "tx_bytes", "awake_ns", "frozen_ns")
    columns = [Column(name, BigInteger, nullable=False) for name in whole]
    return [*columns, Column("memory_mb_seconds", Float, nullable=False)]


metered = Table(  # the newest counters of each sandbox that have been added to `usage_days`
    "metered",
    metadata,
    Column("vm_id", String, primary_key=True),
    Column("account_id", Integer, ForeignKey("accounts.id"), nullable=False),
    Column("workspace", String, nullable=False),  # empty: none
    *_counters(),
    Column("ended", Boolean, nullable=False),  # they do not grow any more; the row goes when the node has forgotten it
    Index("metered_over", "vm_id", sqlite_where=text("ended")),
)

usage_days = Table(
    "usage_days",
    metadata,
    Column("account_id", Integer, ForeignKey("accounts.id"), primary_key=True),
    Column("day", Integer, primary_key=True),  # UTC, since the epoch
    Column("workspace", String, primary_key=True),  # empty: none
    *_counters(),
    sqlite_with_rowid=False,
)

crons = Table(
    "crons",
    metadata,
    Column("id", String, primary_key=True),
    Column("account_id", Integer, ForeignKey("accounts.id"), nullable=False),
    Column("name", String, nullable=False),
    Column("expression", String, nullable=False),  # five fields
    Column("timezone", String, nullable=False),  # an IANA name
    Column("workspace", String),
    Column("persistent", Boolean, nullable=False),
    Column("work", LargeBinary, nullable=False),  # the job's order with script and environment, sealed
    Column("enabled", Boolean, nullable=False),
    Column("missed", String, nullable=False),  # none, latest or all
    Column("overlap", String, nullable=False),  # skip, queue or parallel
    Column("created_ns", BigInteger, nullable=False),
    Column("updated_ns", BigInteger, nullable=False),
    Column("next_ns", BigInteger),  # the first instant that is not in cron_runs yet; none while disabled
    Index("crons_of_account", "account_id", "created_ns"),
    Index("crons_due", "next_ns", sqlite_where=text("next_ns IS NOT NULL")),
)

cron_runs = Table(
    "cron_runs",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("cron_id", String, ForeignKey("crons.id", ondelete="CASCADE"), nullable=False),
    Column("scheduled_ns", BigInteger, nullable=False),
    Column("status", String, nullable=False),  # queued, running, completed, error or skipped
    Column("waits", Boolean, nullable=False),  # for what is in its way, rather than being skipped
    Column("reason", String),
    Column("request_id", String),  # of the job that it is, or whose sandbox it entered
    Column("exec_number", Integer),  # of its process there
    Column("vm_id", String),  # of the sandbox that was entered; none before anything was asked of it
    Column("exit_code", Integer),
    Column("started_ns", BigInteger),
    Column("ended_ns", BigInteger),
    UniqueConstraint("cron_id", "scheduled_ns"),  # no instant fires twice
    Index("cron_runs_unended", "cron_id", "scheduled_ns", sqlite_where=text("status IN ('queued', 'running')")),
)

saved_jobs = Table(  # of the Jobs API: definitions, which are run again and again
    "saved_jobs",
    metadata,
    Column("id", String, primary_key=True),  # that of its first run
    Column("account_id", Integer, ForeignKey("accounts.id"), nullable=False),
    Column("name", String, nullable=False),
    Column("work", LargeBinary, nullable=False),  # everything else that was asked for, sealed
    Column("created_ns", BigInteger, nullable=False),
    Column("updated_ns", BigInteger, nullable=False),
    Index("saved_jobs_of_account", "account_id", "created_ns"),
)

saved_job_runs = Table(
    "saved_job_runs",
    metadata,
    Column("request_id", String, primary_key=True),
    Column("job_id", String, nullable=False),  # the definition's, which may be gone
    Column("ip_lease", Boolean, nullable=False),
    Column("created_ns", BigInteger, nullable=False),
    Index("runs_of_saved_job", "job_id", "created_ns"),
)

templates = Table(
    "templates",
    metadata,
    Column("id", String, primary_key=True),
    Column("account_id", Integer, ForeignKey("accounts.id"), nullable=False),
    Column("latest_revision", Integer, nullable=False),
    Column("created_ns", BigInteger, nullable=False),
    Index("templates_of_account", "account_id", "created_ns"),
)

template_revisions = Table(  # never changed
    "template_revisions",
    metadata,
    Column("template_id", String, ForeignKey("templates.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("name", String, nullable=False),
    Column("work", LargeBinary, nullable=False),  # the definition, sealed
    Column("comment", String),
    Column("created_ns", BigInteger, nullable=False),
    Column("created_by", String, nullable=False),  # the user's name, or else the account's
)

template_runs = Table(
    "template_runs",
    metadata,
    Column("request_id", String, primary_key=True),
    Column("template_id", String, nullable=False),  # which may be gone
    Column("revision", Integer, nullable=False),
    Column("created_ns", BigInteger, nullable=False),
    Index("runs_of_template", "template_id", "created_ns"),
)

schedules = Table(  # those rows of `crons` that run a saved job or a template, whose order they hold a copy of
    "schedules",
    metadata,
    Column("cron_id", String, ForeignKey("crons.id", ondelete="CASCADE"), primary_key=True),
    Column("account_id", Integer, ForeignKey("accounts.id"), nullable=False),
    Column("job_id", String, nullable=False),  # the saved job's or the template's
    Column("ip_lease", Boolean, nullable=False),
    Column("revision", Integer),  # of a template: the one that its order is; none for a saved job
    Column("pinned", Boolean, nullable=False),  # to that revision, whatever follows
    Index("schedules_of_job", "job_id"),
    Index("schedules_of_account", "account_id"),
)
