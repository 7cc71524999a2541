"""What the API answers: dictionaries, as JSON has them. Made by scripts/sdk_results.py."""

from typing import Any, Literal, NotRequired, TypedDict


class Accepted(TypedDict):
    message: str
    request_id: str
    status: str
    pending_reason: NotRequired[str | None]


class AccountRecord(TypedDict):
    name: str
    role: str | None
    current: bool


class AccountList(TypedDict):
    accounts: list[AccountRecord]


class WorkspaceUsage(TypedDict):
    total_jobs: int
    vm_seconds: float
    frozen_seconds: float
    cpu_seconds: float
    memory_mb_seconds: float
    bytes_in: int
    bytes_out: int
    stored_bytes: int
    workspace_id: str


class AccountUsage(TypedDict):
    total_jobs: int
    vm_seconds: float
    frozen_seconds: float
    cpu_seconds: float
    memory_mb_seconds: float
    bytes_in: int
    bytes_out: int
    stored_bytes: int
    window_days: int
    since: str
    workspaces: list[WorkspaceUsage]


class AliasRecord(TypedDict):
    id: str
    subdomain: str
    url: str
    workspace_id: str
    domain: str
    port: int
    access: str
    created_at: str
    access_token: NotRequired[str | None]
    expires_at: NotRequired[str | None]


class AliasList(TypedDict):
    aliases: list[AliasRecord]
    total: int


class AuditEntry(TypedDict):
    id: int
    at: str
    actor: str
    action: str
    resource: str | None
    address: str
    status: int


class AuditPage(TypedDict):
    entries: list[AuditEntry]


class BegunRun(TypedDict):
    request_id: str
    id: str
    job_id: str
    job_name: str
    status: Literal["not_started"]
    message: str


class Changed(TypedDict):
    success: bool
    message: str
    revision: NotRequired[str | None]


class Check(TypedDict):
    workspace_id: str
    ok: bool
    checked: int
    missing: list[str]
    problems: list[str]


class CommandResult(TypedDict):
    exit_code: int | None
    stdout: str
    stderr: str
    truncated: bool
    timed_out: bool
    duration_ms: int
    note: NotRequired[str | None]


class CronJob(TypedDict):
    id: str
    name: str
    cron_expression: str
    timezone: str
    script: str
    persistent: bool
    enabled: bool
    missed: Literal["none", "latest", "all"]
    overlap: Literal["skip", "queue", "parallel"]
    environment_names: list[str]
    rootfs_type: str
    vcpus: float
    memory_mb: int
    disk_gb: int
    timeout_seconds: int
    created_at: str
    updated_at: str
    workspace_id: str | None
    next_run_at: str | None
    last_run_at: str | None
    last_status: NotRequired[str | None]
    last_request_id: NotRequired[str | None]


class CronJobs(TypedDict):
    cron_jobs: list[CronJob]
    total: int


class CronRunRecord(TypedDict):
    scheduled_at: str
    status: Literal["queued", "running", "completed", "error", "skipped"]
    request_id: NotRequired[str | None]
    exec_id: NotRequired[str | None]
    started_at: NotRequired[str | None]
    ended_at: NotRequired[str | None]
    exit_code: NotRequired[int | None]
    reason: NotRequired[str | None]


class Declined(TypedDict):
    success: bool
    message: str


class DefaultImage(TypedDict):
    name: str
    chosen: bool
    installation: str


class Sent(TypedDict):
    id: str
    sequence: int
    type: str
    status: Literal["waiting", "delivered", "failed"]
    attempts: int
    created_at: str
    payload: dict[str, Any]
    last_attempt_at: NotRequired[str | None]
    next_attempt_at: NotRequired[str | None]
    response_status: NotRequired[int | None]
    error: NotRequired[str | None]


class Deliveries(TypedDict):
    deliveries: list[Sent]


class JobRun(TypedDict):
    id: str
    request_id: str
    job_id: str
    job_name: str
    status: Literal["not_started", "in_progress", "completed", "failed", "cancelled", "error"]
    agent_id: str
    started_at: NotRequired[str | None]
    completed_at: NotRequired[str | None]
    duration_ms: NotRequired[int | None]
    exit_code: NotRequired[int | None]
    error: NotRequired[str | None]


class SavedJobRecord(TypedDict):
    id: str
    name: str
    script: str
    script_type: str
    type: str
    vcpus: int
    memory_mb: int
    environment: dict[str, str]
    stateful: bool
    persist: bool
    ip_lease: bool
    user_id: str
    created_at: str
    updated_at: str
    description: NotRequired[str | None]
    docker_image: NotRequired[str | None]
    workspace_id: NotRequired[str | None]
    workspace_size_gb: NotRequired[int | None]
    proxy_port: NotRequired[int | None]


class Details(TypedDict):
    request_id: str
    status: str
    run: JobRun
    workspace_id: NotRequired[str | None]
    job: NotRequired[SavedJobRecord | None]
    runs: NotRequired[list[JobRun]]


class DeviceCode(TypedDict):
    device_code: str
    user_code: str
    verification_uri: str
    verification_uri_complete: str
    expires_in: int
    interval: int


class ExecState(TypedDict):
    exec_id: str
    status: Literal["running", "ended"]
    arguments: list[str]
    started_at: str
    input_taken: int
    input_closed: bool
    ended_at: NotRequired[str | None]
    exit_code: NotRequired[int | None]
    signal: NotRequired[str | None]
    reason: NotRequired[str | None]
    terminal: NotRequired[bool]
    dropped_bytes: NotRequired[int]


class ExecList(TypedDict):
    execs: list[ExecState]


class Health(TypedDict):
    status: Literal["ok"]
    version: str
    node: Literal["ready", "unavailable"]


class ImageRecord(TypedDict):
    name: str
    digest: str
    size: int
    source: str
    created_at: str


class ImageList(TypedDict):
    images: list[ImageRecord]


class InvitationRecord(TypedDict):
    account: str
    role: str
    invited_by: str | None
    invited_at: str
    expires_at: str


class InvitationList(TypedDict):
    invitations: list[InvitationRecord]


class Invited(TypedDict):
    user: str
    role: str
    invited_by: str | None
    invited_at: str
    expires_at: str


class InvitedList(TypedDict):
    account: str
    invited: list[Invited]


class JobStatus(TypedDict):
    request_id: str
    name: str
    status: Literal["pending", "running", "sleeping", "completed", "error"]
    persistent: bool
    sleeping: bool
    subdomain: str
    created_at: str
    url: NotRequired[str | None]
    workspace_id: NotRequired[str | None]
    vm_id: NotRequired[str | None]
    exit_code: NotRequired[int | None]
    script_duration_ms: NotRequired[int | None]
    started_at: NotRequired[str | None]
    completed_at: NotRequired[str | None]
    stopped: NotRequired[bool]
    sleep_depth: NotRequired[Literal["frozen", "cooling", "cold", "waking"] | None]
    asleep_since: NotRequired[str | None]
    awake_until: NotRequired[str | None]
    error: NotRequired[str | None]
    error_message: NotRequired[str | None]
    pending_reason: NotRequired[str | None]


class JobPage(TypedDict):
    jobs: list[JobStatus]
    total: int
    page: int
    page_size: int


class JobRecord(TypedDict):
    request_id: str
    name: str
    status: Literal["pending", "running", "sleeping", "completed", "error"]
    persistent: bool
    sleeping: bool
    subdomain: str
    created_at: str
    url: NotRequired[str | None]
    workspace_id: NotRequired[str | None]
    vm_id: NotRequired[str | None]
    exit_code: NotRequired[int | None]
    script_duration_ms: NotRequired[int | None]
    started_at: NotRequired[str | None]
    completed_at: NotRequired[str | None]
    stopped: NotRequired[bool]
    sleep_depth: NotRequired[Literal["frozen", "cooling", "cold", "waking"] | None]
    asleep_since: NotRequired[str | None]
    awake_until: NotRequired[str | None]
    error: NotRequired[str | None]
    error_message: NotRequired[str | None]
    pending_reason: NotRequired[str | None]
    script: str
    type: str
    rootfs_type: str
    vcpus: float
    memory_mb: int
    disk_gb: int
    timeout_seconds: int
    base_workspace_id: NotRequired[str | None]
    base_revision: NotRequired[str | None]
    no_sync: NotRequired[bool]
    no_sleep: NotRequired[bool]
    startup_command: NotRequired[str | None]
    idle_minutes: NotRequired[float | None]
    file_ids: NotRequired[list[str] | None]


class Leased(TypedDict):
    success: bool
    awake_until: str


class Limits(TypedDict):
    running: NotRequired[int | None]
    vcpus: NotRequired[float | None]
    memory_mb: NotRequired[int | None]
    disk_gb: NotRequired[int | None]
    stored_bytes: NotRequired[int | None]
    requests_per_second: NotRequired[int | None]


class LoggedOut(TypedDict):
    success: bool
    revoked: bool


class MadeInvitation(TypedDict):
    user: str
    role: str
    invited_by: str | None
    invited_at: str
    expires_at: str
    success: bool
    message: str


class MadeToken(TypedDict):
    id: str
    name: str
    scope: str
    created_at: str
    created_by: str | None
    expires_at: str | None
    last_used_at: str | None
    login: bool
    token: str


class MadeUser(TypedDict):
    name: str
    email: str | None
    has_password: bool
    disabled: bool
    created_at: str
    last_login_at: str | None
    password: NotRequired[str | None]


class MadeWebhook(TypedDict):
    id: str
    url: str
    events: list[
        Literal[
            "job.submitted",
            "job.started",
            "job.script_ended",
            "job.completed",
            "job.failed",
            "job.stopped",
            "sandbox.asleep",
            "sandbox.cold",
            "sandbox.awake",
            "workspace.saved",
        ]
    ]
    enabled: bool
    created_at: str
    updated_at: str
    description: NotRequired[str | None]
    failing_since: NotRequired[str | None]
    disabled_reason: NotRequired[str | None]
    secret: str


class MemberRecord(TypedDict):
    user: str
    email: str | None
    role: str
    disabled: bool
    since: str


class MemberList(TypedDict):
    account: str
    members: list[MemberRecord]


class MembersDone(TypedDict):
    success: bool
    message: str


class MicroVMRecord(TypedDict):
    id: str
    name: str
    state: Literal["creating", "starting", "running", "stopping", "stopped", "sleeping", "error"]
    cpu: float
    memory: int
    disk: int
    image: str
    runtime: str
    key_generated: bool
    created_at: str
    started_at: NotRequired[str | None]
    ip_address: NotRequired[str | None]
    ipv6_address: NotRequired[str | None]
    error: NotRequired[str | None]
    image_note: NotRequired[str | None]


class MicroVMList(TypedDict):
    microvms: list[MicroVMRecord]
    total: int


class PoolSize(TypedDict):
    idle_vms: int
    busy_vms: int
    total_vms: int
    min_pool_size: int
    max_pool_size: int


class ProxyTarget(TypedDict):
    id: str
    target_id: str
    subdomain: str
    ipv6_address: str
    port: int
    proxy_url: str
    request_id: str
    created_at: str
    updated_at: str
    name: NotRequired[str | None]
    description: NotRequired[str | None]


class ProxyTargets(TypedDict):
    proxy_targets: list[ProxyTarget]
    total: int


class QuotaUse(TypedDict):
    running: int
    vcpus: float
    memory_mb: int
    disk_gb: int
    stored_bytes: int


class QuotaState(TypedDict):
    account_id: int
    limits: Limits
    used: QuotaUse


class UnsavedFiles(TypedDict):
    revision: str
    error: str


class Recovered(TypedDict):
    success: bool
    message: str
    recovered: list[str]
    unsaved: list[UnsavedFiles]


class Removed(TypedDict):
    success: bool
    message: str


class Restored(TypedDict):
    success: bool
    message: str
    revision: str


class RevisionRecord(TypedDict):
    revision: str
    head: bool
    created_at: str
    size: int
    stored: bool
    stored_bytes: int
    image: str
    parent: NotRequired[str | None]
    request_id: NotRequired[str | None]
    periodic: NotRequired[bool]
    unsaved: NotRequired[str | None]


class RevisionPage(TypedDict):
    workspace_id: str
    revisions: list[RevisionRecord]
    total: int
    page: int
    page_size: int


class Revoked(TypedDict):
    success: bool
    message: str


class Rotated(TypedDict):
    secret: str
    previous_until: str


class VmInfo(TypedDict):
    vm_id: NotRequired[str | None]
    agent_id: NotRequired[str | None]
    ip_address: NotRequired[str | None]
    ipv6_address: NotRequired[str | None]
    ipv4_address: NotRequired[str | None]
    proxy_url: NotRequired[str | None]


class RunStatus(TypedDict):
    request_id: str
    id: str
    job_id: str
    name: str
    status: Literal["not_started", "in_progress", "completed", "failed", "cancelled", "error"]
    logs: list[str]
    persist: bool
    duration: NotRequired[int]
    duration_ms: NotRequired[int]
    script_duration_ms: NotRequired[int]
    exit_code: NotRequired[int]
    started_at: NotRequired[str]
    completed_at: NotRequired[str]
    error_message: NotRequired[str]
    workspace_id: NotRequired[str]
    vm_info: NotRequired[VmInfo]
    ipv6_address: NotRequired[str]
    proxy_url: NotRequired[str]


class Runs(TypedDict):
    runs: list[CronRunRecord]


class SavedJobPage(TypedDict):
    jobs: list[SavedJobRecord]
    total: int
    page: int
    page_size: int


class ScheduleRecord(TypedDict):
    id: str
    job_id: str
    job_name: str
    cron: str
    timezone: str
    enabled: bool
    missed: Literal["none", "latest", "all"]
    overlap: Literal["skip", "queue", "parallel"]
    created_at: str
    updated_at: str
    next_run_at: str | None
    last_run_at: str | None
    revision: NotRequired[int | None]
    last_status: NotRequired[str | None]
    last_request_id: NotRequired[str | None]


class Schedules(TypedDict):
    schedules: list[ScheduleRecord]
    total: int


class SshAccess(TypedDict):
    success: NotRequired[bool]
    ssh_host: str
    ssh_port: int
    ssh_private_key: str
    ssh_user: NotRequired[Literal["root"]]
    access_type: NotRequired[Literal["ssh_proxy"]]
    host_key: str


class SshConnection(TypedDict):
    ssh_command: str
    ip_address: str | None
    ipv6_address: str | None
    key_generated: bool
    ssh_host: str
    ssh_port: int
    ssh_user: str
    host_key: str


class SshKey(TypedDict):
    id: str
    name: str
    type: str
    fingerprint: str
    created_at: str
    last_used_at: NotRequired[str | None]


class SshKeys(TypedDict):
    keys: list[SshKey]


class SshResult(TypedDict):
    request_id: str
    command: str
    exit_code: int
    stdout: str
    stderr: str
    duration_ms: int


class Stopped(TypedDict):
    success: bool
    message: str


class Taken(TypedDict):
    position: int
    closed: bool


class TemplateRevision(TypedDict):
    id: str
    template_id: str
    revision: int
    name: str
    script: str
    script_type: str
    vcpus: int
    memory_mb: int
    environment: dict[str, str]
    created_at: str
    created_by: str
    description: NotRequired[str | None]
    docker_image: NotRequired[str | None]
    comment: NotRequired[str | None]


class TemplateRecord(TypedDict):
    id: str
    name: str
    script_type: str
    default_vcpus: int
    default_memory_mb: int
    latest_revision: TemplateRevision
    stateful: bool
    persist: bool
    ip_lease: bool
    user_id: str
    created_at: str
    updated_at: str
    description: NotRequired[str | None]
    docker_image: NotRequired[str | None]
    workspace_id: NotRequired[str | None]
    workspace_size_gb: NotRequired[int | None]
    proxy_port: NotRequired[int | None]


class TemplatePage(TypedDict):
    templates: list[TemplateRecord]
    total: int
    page: int
    page_size: int


class TemplateRevisions(TypedDict):
    revisions: list[TemplateRevision]
    total: int


class TokenRecord(TypedDict):
    id: str
    name: str
    scope: str
    created_at: str
    created_by: str | None
    expires_at: str | None
    last_used_at: str | None
    login: bool


class TokenList(TypedDict):
    tokens: list[TokenRecord]


class TokenUsed(TypedDict):
    id: str
    name: str


class Uploaded(TypedDict):
    file_id: str
    file_name: str
    size: int


class UrlAccess(TypedDict):
    success: bool
    url: str
    subdomain: str
    port: int
    access_type: str
    access: str
    gateway_url: NotRequired[str | None]
    ipv6_address: NotRequired[str | None]
    access_token: NotRequired[str | None]
    expires_at: NotRequired[str | None]


class UserRecord(TypedDict):
    name: str
    email: str | None
    has_password: bool
    disabled: bool
    created_at: str
    last_login_at: str | None


class UserList(TypedDict):
    users: list[UserRecord]


class UsersDone(TypedDict):
    success: bool
    message: str


class Webhook(TypedDict):
    id: str
    url: str
    events: list[
        Literal[
            "job.submitted",
            "job.started",
            "job.script_ended",
            "job.completed",
            "job.failed",
            "job.stopped",
            "sandbox.asleep",
            "sandbox.cold",
            "sandbox.awake",
            "workspace.saved",
        ]
    ]
    enabled: bool
    created_at: str
    updated_at: str
    description: NotRequired[str | None]
    failing_since: NotRequired[str | None]
    disabled_reason: NotRequired[str | None]


class Webhooks(TypedDict):
    webhooks: list[Webhook]
    total: int


class Who(TypedDict):
    user: str | None
    account: str
    role: str | None
    scopes: list[str]
    accounts: list[AccountRecord]
    authentication: str
    token: TokenUsed | None
    csrf_token: str | None


class WorkspaceRecord(TypedDict):
    workspace_id: str
    job_count: int
    last_used: str
    has_active: bool
    persistent: bool
    created_at: str
    revision: NotRequired[str | None]
    unsaved: NotRequired[list[UnsavedFiles]]


class WorkspaceList(TypedDict):
    workspaces: list[WorkspaceRecord]
    total: int
