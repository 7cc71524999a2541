"""Webhooks and their outbox, which triggers fill.

A change of a job's state and the messages that tell of it are one transaction, whoever writes the change: that is what
the triggers are for. Their order within one change is the order below. A migration that makes the table `jobs` or
`revisions` anew must make its triggers anew, too.
"""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

DAY_NS = 24 * 3600 * 10**9
NOW_NS = "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) * 1000000"
JOB = """json_object('request_id', NEW.request_id, 'name', NEW.name, 'workspace_id', NEW.workspace,
    'status', NEW.status, 'vm_id', NEW.vm_id, 'persistent', json(iif(NEW.persistent, 'true', 'false')),
    'stopped', json(iif(NEW.stopped, 'true', 'false')), 'depth', NEW.depth, 'exit_code', NEW.exit_code,
    'error', NEW.error, 'created_ns', NEW.created_ns, 'started_ns', NEW.started_ns,
    'script_ended_ns', NEW.script_ended_ns, 'ended_ns', NEW.ended_ns)"""
# of a job that was over when its first write came: what it was when it began
STARTED = f"""json_set(json_remove({JOB}, '$.exit_code', '$.error', '$.script_ended_ns', '$.ended_ns', '$.depth'),
    '$.status', 'running', '$.stopped', json('false'))"""
SAVE = """json_object('workspace_id', (SELECT name FROM workspaces WHERE id = NEW.workspace_id), 'revision', NEW.id,
    'request_id', NEW.request_id, 'size_bytes', NEW.size, 'stored', json(iif(NEW.stored, 'true', 'false')),
    'created_ns', NEW.created_ns)"""
OWNER = "(SELECT account_id FROM workspaces WHERE id = NEW.workspace_id)"
ENDED = "OLD.ended_ns IS NULL AND NEW.ended_ns IS NOT NULL"

JOB_CHANGES = {
    "job.started": "OLD.status = 'pending' AND NEW.status <> 'pending'"
    " AND (NEW.status IN ('running', 'sleeping') OR NEW.started_ns IS NOT NULL)",
    "job.script_ended": "OLD.script_ended_ns IS NULL AND NEW.script_ended_ns IS NOT NULL"
    " AND NEW.persistent AND NEW.ended_ns IS NULL",
    "sandbox.asleep": "OLD.status <> 'sleeping' AND NEW.status = 'sleeping'",
    "sandbox.cold": "NEW.depth = 'cold' AND OLD.depth IS NOT 'cold'",
    "sandbox.awake": "OLD.status = 'sleeping' AND NEW.status = 'running'",
    "job.stopped": f"{ENDED} AND NEW.stopped",
    "job.completed": f"{ENDED} AND NOT NEW.stopped AND NEW.status = 'completed'",
    "job.failed": f"{ENDED} AND NOT NEW.stopped AND NEW.status <> 'completed'",
}


def _tell(account: str, data: str, event: str, condition: str) -> str:
    """Numbers a message for each webhook that wants it, then writes it."""
    wants = f"""account_id = {account} AND enabled AND ({condition})
        AND (events IS NULL OR EXISTS (SELECT 1 FROM json_each(webhooks.events) WHERE value = '{event}'))"""  # noqa: S608
    return f"""
    UPDATE webhooks SET sequence = sequence + 1 WHERE {wants};
    INSERT INTO webhook_deliveries
        (message_id, webhook_id, sequence, type, data, occurred_ns, status, attempts, next_ns, until_ns)
        SELECT 'msg_' || lower(hex(randomblob(12))), id, sequence, '{event}', {data}, {NOW_NS}, 'waiting', 0,
            {NOW_NS}, {NOW_NS} + {DAY_NS} FROM webhooks WHERE {wants};"""  # noqa: S608


def _trigger(name: str, when: str, account: str, data: str, events: dict[str, str]) -> str:
    told = {"job.started": STARTED}
    body = "".join(_tell(account, told.get(event, data), event, condition) for event, condition in events.items())
    some = f"EXISTS (SELECT 1 FROM webhooks WHERE account_id = {account} AND enabled)"  # noqa: S608
    return f"CREATE TRIGGER {name} {when} WHEN {some} BEGIN {body} END"


def upgrade() -> None:
    op.create_table(
        "webhooks",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("account_id", sa.Integer, sa.ForeignKey("accounts.id"), nullable=False),
        sa.Column("url", sa.String, nullable=False),
        sa.Column("description", sa.String),
        sa.Column("events", sa.JSON(none_as_null=True)),
        sa.Column("secret", sa.LargeBinary, nullable=False),
        sa.Column("previous_secret", sa.LargeBinary),
        sa.Column("previous_until_ns", sa.BigInteger),
        sa.Column("enabled", sa.Boolean, nullable=False),
        sa.Column("disabled_reason", sa.String),
        sa.Column("sequence", sa.Integer, nullable=False),
        sa.Column("failing_since_ns", sa.BigInteger),
        sa.Column("created_ns", sa.BigInteger, nullable=False),
        sa.Column("updated_ns", sa.BigInteger, nullable=False),
    )
    op.create_index("webhooks_of_account", "webhooks", ["account_id", "enabled"])
    op.create_table(
        "webhook_deliveries",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("message_id", sa.String, nullable=False, unique=True),
        sa.Column("webhook_id", sa.String, sa.ForeignKey("webhooks.id", ondelete="CASCADE"), nullable=False),
        sa.Column("sequence", sa.Integer, nullable=False),
        sa.Column("type", sa.String, nullable=False),
        sa.Column("data", sa.String, nullable=False),
        sa.Column("occurred_ns", sa.BigInteger, nullable=False),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("next_ns", sa.BigInteger),
        sa.Column("until_ns", sa.BigInteger, nullable=False),
        sa.Column("attempted_ns", sa.BigInteger),
        sa.Column("response_status", sa.Integer),
        sa.Column("error", sa.String),
    )
    waiting = sa.text("status = 'waiting'")
    op.create_index("webhook_deliveries_of_webhook", "webhook_deliveries", ["webhook_id", "sequence"])
    op.create_index(
        "webhook_deliveries_waiting", "webhook_deliveries", ["webhook_id", "id", "next_ns"], sqlite_where=waiting
    )
    op.create_index("webhook_deliveries_by_age", "webhook_deliveries", ["status", "occurred_ns"])
    op.execute(_trigger("jobs_submitted", "AFTER INSERT ON jobs", "NEW.account_id", JOB, {"job.submitted": "1"}))
    op.execute(
        _trigger(
            "jobs_changed",
            "AFTER UPDATE OF status, depth, script_ended_ns, ended_ns ON jobs",
            "NEW.account_id",
            JOB,
            JOB_CHANGES,
        )
    )
    op.execute(
        _trigger("workspaces_saved", "AFTER INSERT ON revisions", OWNER, SAVE, {"workspace.saved": "NOT NEW.periodic"})
    )
    op.execute(
        _trigger(
            "workspaces_save_kept",
            "AFTER UPDATE OF periodic ON revisions",
            OWNER,
            SAVE,
            {"workspace.saved": "OLD.periodic AND NOT NEW.periodic"},
        )
    )
