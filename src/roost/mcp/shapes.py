"""What the tools take and tell, as agents read it in the tools' schemas. What is unknown is left out."""

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from roost.mcp.excerpt import LIMIT

JobId = Annotated[str, Field(description="A job's id, its name, or the workspace that it uses", min_length=1)]
Workspace = Annotated[str, Field(description="A workspace's name", min_length=1)]
FilePath = Annotated[
    str, Field(description="From the root of the file system, such as /root/app/main.py", min_length=1)
]
Characters = Annotated[int, Field(ge=1, le=LIMIT, description="At most so many characters")]
Page = Annotated[int, Field(ge=1, description="The first is 1")]
Port = Annotated[int, Field(ge=1, le=65535, description="Where the program listens, inside the sandbox")]


class Job(TypedDict):
    job_id: str
    name: NotRequired[str]
    status: Annotated[str, Field(description="pending, running, sleeping, completed or error")]
    exit_code: NotRequired[int]
    error: NotRequired[str]
    workspace: NotRequired[str]
    persistent: NotRequired[bool]
    url: NotRequired[str]
    created_at: NotRequired[str]
    started_at: NotRequired[str]
    completed_at: NotRequired[str]
    script_duration_ms: NotRequired[int]
    stopped: NotRequired[bool]


class Ran(TypedDict):
    job_id: str
    status: Annotated[str, Field(description="running: the script had not ended when the wait was over")]
    exit_code: NotRequired[Annotated[int, Field(description="Of the script; not there while it runs")]]
    output: Annotated[str, Field(description="Standard output and error in order, cut in the middle where too long")]
    error: NotRequired[Annotated[str, Field(description="Why it ended, where that was not the script's doing")]]
    note: NotRequired[Annotated[str, Field(description="What to do next")]]


class Executed(TypedDict):
    exit_code: NotRequired[int]
    stdout: str
    stderr: str
    timed_out: bool
    note: NotRequired[str]


class FileContent(TypedDict):
    path: str
    encoding: Annotated[Literal["utf-8", "base64"], Field(description="base64: it is no text")]
    content: str
    size: Annotated[int, Field(description="Of the whole file, in bytes")]
    next_offset: NotRequired[Annotated[int, Field(description="Read on from this byte; not there: this was the end")]]


class Changed(TypedDict):
    message: str
    revision: NotRequired[Annotated[str, Field(description="The workspace's new head; none while a job runs in it")]]


class Entry(TypedDict):
    name: str
    type: str
    size: int
    mode: str
    modified_at: str
    target: NotRequired[str]


class Entries(TypedDict):
    path: str
    entries: list[Entry]
    total: int
    next_offset: NotRequired[int]


class Url(TypedDict):
    url: str
    port: int
    access: str
    access_token: NotRequired[Annotated[str, Field(description="Visitors send it as X-Roost-Token; shown this once")]]
    expires_at: NotRequired[str]


class WorkspaceRecord(TypedDict):
    workspace: str
    last_used: str
    created_at: str
    job_count: int
    has_active: Annotated[bool, Field(description="A job uses it now")]
    persistent: bool
    revision: NotRequired[str]


class Workspaces(TypedDict):
    workspaces: list[WorkspaceRecord]
    total: int
    page: int


class Jobs(TypedDict):
    jobs: list[Job]
    total: int
    page: int


class Logs(TypedDict):
    output: str
    total: Annotated[int, Field(description="Characters of output up to now")]
    next_offset: NotRequired[Annotated[int, Field(description="Read on from here; not there: no more up to now")]]


class Stopped(TypedDict):
    message: str


def known(**values: Any) -> Any:
    """Without those that are None."""
    return {name: value for name, value in values.items() if value is not None}


def job_of(status: Any) -> Job:
    names = ("name", "status", "exit_code", "error", "persistent", "url", "created_at", "started_at", "completed_at",
             "script_duration_ms", "stopped")  # fmt: skip
    values = {name: status.get(name) for name in names}
    return known(job_id=status["request_id"], workspace=status.get("workspace_id"), **values)
