"""The tools: what an agent may ask of Roost, each one call or two of the REST API.

The docstrings and the types are what agents read. Answers are bounded; what is left out can be asked for. Whatever the
API refuses is told in its own words, which name the cure.
"""

import base64
import binascii
import codecs
import functools
import json
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal, ParamSpec, TypeVar
from urllib.parse import urlencode

import anyio
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ToolAnnotations
from pydantic import Field

from roost.errors import Invalid, RoostError
from roost.mcp.api import JOBS, WORKSPACES, Api, elements, file_path, job_path
from roost.mcp.excerpt import LIMIT, Excerpt, Window, excerpt
from roost.mcp.shapes import (
    Changed,
    Characters,
    Entries,
    Executed,
    FileContent,
    FilePath,
    Job,
    JobId,
    Jobs,
    Logs,
    Page,
    Port,
    Ran,
    Stopped,
    Url,
    Workspace,
    WorkspaceRecord,
    Workspaces,
    job_of,
    known,
)
from roost.mcp.watch import Watch, read_log, stop_quietly

WAIT = 50.0  # seconds; many clients give a call 60
WAIT_STAYING = 5.0  # seconds, for a script that may be a server
MAX_WAIT = 3600.0
EXEC_TIMEOUT = 30.0  # seconds
EXEC_BEYOND = 100.0  # seconds; a sandbox that sleeps is woken first
WAKE_WITHIN = 60.0  # seconds
STDERR = 10_000  # characters of an exec's
MAX_CONTENT = 2_000_000  # characters in one message of 4 MiB
READ_BYTES = 36_000  # of binary files: 48,000 characters of base64
MAX_ENTRIES = 250  # of one answer: at most 200 bytes each, but for names of unusual length
PAGE = 50
SSH_PORT = 22

P = ParamSpec("P")
T = TypeVar("T")
Call = Context[Any, Any]


class Tools:
    """`api_of` tells whose token a call carries, and where to."""

    def __init__(self, api_of: Callable[[Call], Api]) -> None:
        self._api = api_of

    async def run(
        self,
        ctx: Call,
        script: Annotated[str, Field(description="Shell text; may begin with #! and another interpreter")],
        workspace: Annotated[
            str | None,
            Field(description="Begin with the files of this workspace and save them to it; made if it is not there"),
        ] = None,
        base: Annotated[
            str | None,
            Field(description="Begin with the files of this workspace, or NAME@REVISION, and leave it as it is"),
        ] = None,
        persistent: Annotated[
            bool, Field(description="The sandbox stays when the script has ended: for servers, exec and url")
        ] = False,
        environment: Annotated[dict[str, str] | None, Field(description="Environment variables")] = None,
        timeout: Annotated[
            int | None, Field(ge=1, description="Seconds until the script is ended; 300 unless persistent")
        ] = None,
        image: Annotated[
            str | None, Field(description="Root file system; default the account's, as installed Debian")
        ] = None,
        wait: Annotated[
            float | None,
            Field(
                ge=0, le=MAX_WAIT, description="Seconds to wait for the script's end; default 50, or 5 if persistent"
            ),
        ] = None,
    ) -> Ran:
        """Run a script in a new, isolated Linux sandbox with internet access, as root, and return its output and exit
        code. The sandbox is gone afterwards, with its files, unless `workspace` or `persistent` is given. A script that
        takes longer than `wait` goes on; status and logs tell the rest. Lines are sent as progress while it runs.
        """
        api = self._api(ctx)
        body = known(
            script=script, type="inline", workspace_id=workspace, base_workspace_id=base, environment=environment,
            timeout=timeout, rootfs_type=image, persistent=persistent or None,
        )  # fmt: skip
        job = ""
        with anyio.CancelScope(shield=True):  # a job whose id is not known could not be stopped
            job = (await api.call("POST", JOBS, body))["request_id"]

        async def tell(lines: float, newest: str) -> None:
            await ctx.report_progress(lines, message=newest)

        within = (WAIT_STAYING if persistent else WAIT) if wait is None else wait
        try:
            await Watch(api, job, tell).end(within, persistent)
        except anyio.get_cancelled_exc_class():
            if not persistent:
                await stop_quietly(api, job)
            raise
        return await _ran(api, job)

    async def exec(
        self,
        ctx: Call,
        job: JobId,
        command: Annotated[str, Field(description="Shell text", min_length=1)],
        timeout: Annotated[float, Field(gt=0, le=3600, description="Seconds until it is ended")] = EXEC_TIMEOUT,
    ) -> Executed:
        """Run a command in the sandbox of a job that runs or sleeps (see run with persistent), and return its output
        and exit code. A sleeping sandbox is woken. Use run for work that needs no sandbox of yours.
        """
        body = {"command": command, "timeout": timeout}
        done = await self._api(ctx).call("POST", f"{job_path(job)}/exec", body, timeout + EXEC_BEYOND)
        how = "run it again with its output in a file, and read parts of that"
        return known(
            exit_code=done.get("exit_code"),
            stdout=excerpt(done["stdout"], LIMIT - STDERR, how),
            stderr=excerpt(done["stderr"], STDERR, how),
            timed_out=done["timed_out"],
            note=done.get("note"),
        )

    async def read_file(
        self,
        ctx: Call,
        workspace: Workspace,
        path: FilePath,
        offset: Annotated[int, Field(ge=0, description="Begin at this byte")] = 0,
        limit: Annotated[int, Field(ge=1, le=LIMIT, description="At most so many bytes")] = LIMIT,
    ) -> FileContent:
        """Read a file of a workspace: as it is in the sandbox of the job that runs with it, else as the last job left
        it. Long files come in parts: go on at next_offset.
        """
        headers = {"Range": f"bytes={offset}-{offset + limit - 1}"}
        async with self._api(ctx).answer("GET", file_path(workspace, path), headers=headers, accept=(416,)) as answer:
            if answer.content_type == "application/json" and answer.status == 200:
                raise Invalid(f"{path} is a directory; list_files shows what is in it")
            size = int(answer.headers.get("Content-Range", "/0").rpartition("/")[2])
            if answer.status == 416 and (size or offset):
                raise Invalid(json.loads(await answer.read())["error"])
            data = b"" if answer.status == 416 or not size else await answer.read()
        encoding, content, taken = _decoded(data, offset + len(data) >= size)
        end = offset + taken
        return known(path=path, encoding=encoding, content=content, size=size, next_offset=end if end < size else None)

    async def write_file(
        self,
        ctx: Call,
        workspace: Workspace,
        path: FilePath,
        content: Annotated[str, Field(max_length=MAX_CONTENT)],
        encoding: Annotated[Literal["utf-8", "base64"], Field(description="base64: for what is no text")] = "utf-8",
        mode: Annotated[
            str | None,
            Field(
                description="Octal permissions; else those of the file that is there, or 0644", pattern="^[0-7]{3,4}$"
            ),
        ] = None,
    ) -> Changed:
        """Write a whole file of a workspace, over the one that is there; missing directories are made. It is written
        into the sandbox of the job that runs with the workspace, else the workspace gets a new revision. A workspace is
        made by running something with it.
        """
        place = file_path(workspace, _file(path)) + (f"?mode={mode}" if mode else "")
        headers = {"Content-Type": "application/octet-stream"}
        async with self._api(ctx).answer("PUT", place, data=_encoded(content, encoding), headers=headers) as answer:
            return _changed(await answer.json())

    async def list_files(
        self,
        ctx: Call,
        workspace: Workspace,
        path: Annotated[str, Field(description="A directory, from the root of the file system")] = "/root",
        offset: Annotated[int, Field(ge=0, description="Leave out so many entries")] = 0,
    ) -> Entries:
        """List a directory of a workspace, in parts of 250 entries: go on at next_offset."""
        found: list[Any] = []
        total = 0
        async with self._api(ctx).answer("GET", file_path(workspace, path), timeout=None) as answer:
            if answer.content_type != "application/json":
                raise Invalid(f"{path} is a file; read_file reads it")
            async for entry in elements(answer, "entries"):
                if offset <= total < offset + MAX_ENTRIES:
                    names = ("name", "type", "size", "mode", "modified_at", "target")
                    found.append(known(**{name: entry.get(name) for name in names}))
                total += 1
        end = offset + len(found)
        return known(path=path, entries=found, total=total, next_offset=end if end < total else None)

    async def delete_file(self, ctx: Call, workspace: Workspace, path: FilePath) -> Changed:
        """Delete a file of a workspace, or a directory with all that is in it. Older revisions keep it."""
        return _changed(await self._api(ctx).call("DELETE", file_path(workspace, _file(path))))

    async def url(
        self,
        ctx: Call,
        job: JobId,
        port: Port = 8080,
        access: Annotated[
            Literal["public", "token", "signed"] | None,
            Field(description="Who may visit: everybody, who sends the token, or who has the link; at first public"),
        ] = None,
        expires_in: Annotated[
            int | None, Field(ge=1, le=604800, description="Seconds that a signed link lives; default 3600")
        ] = None,
    ) -> Url:
        """Open an HTTP URL that leads to a port of a persistent job's sandbox, where a program listens. A sleeping
        sandbox is woken, also by visits. A job has one URL; asking again points it to another port.
        """
        if port == SSH_PORT:
            raise Invalid("port 22 is for SSH: `roost ssh JOB`; give the port of a web server")
        body = known(port=port, access=access, expires_in=expires_in)
        made = await self._api(ctx).call("POST", f"{job_path(job)}/access", body, WAKE_WITHIN)
        return known(**{name: made.get(name) for name in ("url", "port", "access", "access_token", "expires_at")})

    async def workspaces(self, ctx: Call, page: Page = 1) -> Workspaces:
        """List workspaces: named file systems that scripts begin with and save to; last used first, 50 a page."""
        query = urlencode({"page": page, "page_size": PAGE})
        found = await self._api(ctx).call("GET", f"{WORKSPACES}?{query}")
        names = ("last_used", "created_at", "job_count", "has_active", "persistent", "revision")
        rows: list[WorkspaceRecord] = [
            known(workspace=one["workspace_id"], **{name: one.get(name) for name in names})
            for one in found["workspaces"]
        ]
        return {"workspaces": rows, "total": found["total"], "page": page}

    async def jobs(self, ctx: Call, page: Page = 1) -> Jobs:
        """List jobs, the newest first, 50 a page."""
        found = await self._api(ctx).call("GET", f"{JOBS}?{urlencode({'page': page, 'page_size': PAGE})}")
        return {"jobs": [job_of(one) for one in found["jobs"]], "total": found["total"], "page": page}

    async def status(self, ctx: Call, job: JobId) -> Job:
        """Tell how far a job is: its status, exit code and times."""
        return job_of(await self._api(ctx).call("GET", f"{job_path(job)}/status"))

    async def logs(
        self,
        ctx: Call,
        job: JobId,
        offset: Annotated[
            int | None, Field(ge=0, description="Begin at this character; left out: begin and end of what is too long")
        ] = None,
        limit: Characters = LIMIT,
    ) -> Logs:
        """Read what a job's script wrote up to now, standard output and error in order. Long output comes in parts: go
        on at next_offset.
        """
        api = self._api(ctx)
        if offset is not None:
            window = Window(offset, limit)
            await read_log(api, job, window)
            return known(output=window.content, total=window.total, next_offset=window.next_offset)
        kept = Excerpt(limit)
        await read_log(api, job, kept)
        return {"output": kept.text("logs with offset={offset} has them"), "total": kept.total}

    async def stop(self, ctx: Call, job: JobId) -> Stopped:
        """Stop a job and its sandbox. Its workspace is saved; whatever else it holds is lost."""
        return {"message": (await self._api(ctx).call("POST", f"{job_path(job)}/stop"))["message"]}


READS = ToolAnnotations(read_only_hint=True, open_world_hint=False)
WRITES = ToolAnnotations(read_only_hint=False, destructive_hint=True, idempotent_hint=True, open_world_hint=False)
# A script may change the workspace that it was given, and reaches the internet
RUNS = ToolAnnotations(read_only_hint=False, destructive_hint=True, idempotent_hint=False, open_world_hint=True)
OPENS = ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=True, open_world_hint=True)
ANNOTATIONS = {
    "run": RUNS, "exec": RUNS, "read_file": READS, "write_file": WRITES, "list_files": READS, "delete_file": WRITES,
    "url": OPENS, "workspaces": READS, "jobs": READS, "status": READS, "logs": READS, "stop": WRITES,
}  # fmt: skip


def told(tool: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
    """The same tool; conditions become the protocol's errors of tools, which the agent reads."""

    @functools.wraps(tool)
    async def telling(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await tool(*args, **kwargs)
        except RoostError as error:
            raise ToolError(str(error)) from error

    return telling


async def _ran(api: Api, job: str) -> Ran:
    status = await api.call("GET", f"{job_path(job)}/status")
    output = Excerpt()
    await read_log(api, job, output)
    over = status.get("exit_code") is not None or status["status"] in ("completed", "error")
    note = None
    if not over:
        note = f"it goes on; status and logs of job {job} tell the rest, stop ends it"
    elif status["status"] not in ("completed", "error"):
        note = f"the sandbox stays; exec and url use it, stop ends it: job {job}"
    return known(
        job_id=job,
        status=status["status"],
        exit_code=status.get("exit_code"),
        output=output.text(f"logs of job {job} with offset={{offset}} has them"),
        error=status.get("error"),
        note=note,
    )


def _file(path: str) -> str:
    """Raises Invalid for the root and for what ends like a directory."""
    if path.endswith("/"):
        raise Invalid("path: name a file, without a slash at its end")
    return path


def _decoded(data: bytes, whole: bool) -> tuple[str, str, int]:
    """Encoding, text, and how many of the bytes that is: a character that is cut is left for the next part."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        if b"\0" in data:
            raise ValueError
        text = decoder.decode(data, final=whole)
        taken = len(data) - len(decoder.getstate()[0])
        if data and not taken:
            raise ValueError  # a limit below one character's length
        return "utf-8", text, taken
    except ValueError:
        part = data[:READ_BYTES]
        return "base64", base64.b64encode(part).decode(), len(part)


def _encoded(content: str, encoding: str) -> bytes:
    try:
        return base64.b64decode(content, validate=True) if encoding == "base64" else content.encode()
    except (binascii.Error, ValueError) as error:
        raise Invalid(f"content: it is not {encoding} ({error})") from error


def _changed(answer: Any) -> Changed:
    return known(message=answer["message"], revision=answer.get("revision"))
