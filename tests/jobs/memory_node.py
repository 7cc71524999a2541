"""A node that lives in memory and keeps the protocol's promises, and a control plane's jobs in front of it.

Starting the same id again changes nothing, events begin with all that exists, a save under the same id is the same
save, and what is promised not to be collected is not.
"""

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from roost.clock import now_ns
from roost.db import secret
from roost.db.database import Database
from roost.db.schema import accounts
from roost.errors import Conflict, Invalid, NoCapacity, NodeUnavailable, NotFound, Refused, TooLarge, Unsaved
from roost.jobs import job as jobs
from roost.jobs.job import Job, Keeping, Order, Work
from roost.jobs.live import LiveJobs
from roost.node.protocol import (
    VERSION,
    Check,
    Checked,
    Collected,
    Entry,
    Event,
    Freeze,
    Image,
    LogRecord,
    NodeInfo,
    PoolStatus,
    Progress,
    PullImage,
    Revision,
    SandboxState,
    SaveRequest,
    Snapshot,
    StartSandbox,
    StopSandbox,
    Usage,
)
from roost.sandboxes.placement import Machine, SingleNode

Files = dict[str, bytes]
IPV4 = "100.64.0.1"  # of every sandbox here


@dataclass
class Saved:
    """A revision and what it holds."""

    revision: Revision
    files: Files


@dataclass
class Node:
    """Sandboxes are their states and files; the test decides when their scripts end."""

    up: bool = True
    protocol: int = VERSION
    room: int = 1000
    save_error: str | None = None  # why no final save works
    kept_raw: str | None = None  # why what is saved at the end is only kept as it is
    states: dict[str, SandboxState] = field(default_factory=dict)
    requests: dict[str, StartSandbox] = field(default_factory=dict)
    files: dict[str, Files] = field(default_factory=dict)  # of each sandbox
    saves: dict[str, Saved] = field(default_factory=dict)  # by revision
    uploads: dict[str, bytes] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)  # revisions in the object store
    largest_chunk: int = 0  # of an upload
    doors: dict[tuple[str, int], int] = field(default_factory=dict)  # a sandbox's port -> one of the host's
    logs: dict[str, list[LogRecord]] = field(default_factory=dict)  # by the first sandbox that wrote it
    started: list[str] = field(default_factory=list)  # scripts, in order
    environments: list[dict[str, str]] = field(default_factory=list)
    stops: list[str] = field(default_factory=list)
    listeners: list[asyncio.Queue[SandboxState | None]] = field(default_factory=list)
    used: dict[str, Usage] = field(default_factory=dict)  # by sandboxes, as far as a test had them use something
    thawed: int = 0  # how often any of them was
    reclaimed: list[str] = field(default_factory=list)
    registry: set[str] = field(default_factory=set)  # references that can be pulled
    pulled: list[str] = field(default_factory=list)  # images
    asked: asyncio.Event = field(default_factory=asyncio.Event)  # the registry answers
    may_save: asyncio.Event = field(default_factory=asyncio.Event)
    may_freeze: asyncio.Event = field(default_factory=asyncio.Event)
    may_stop: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        for allowed in (self.may_save, self.may_freeze, self.may_stop, self.asked):
            allowed.set()

    async def __aenter__(self) -> "Node":
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    def reach(self) -> None:
        if not self.up:
            raise NodeUnavailable("the node does not answer")

    def go(self) -> None:
        """The node's program dies; its sandboxes live on."""
        self.up = False
        for listener in self.listeners:
            listener.put_nowait(None)

    def tell(self, state: SandboxState) -> SandboxState:
        self.states[state.id] = state
        for listener in self.listeners:
            listener.put_nowait(state)
        return state

    def end(
        self, vm_id: str, cause: Any = "exited", exit_code: int | None = 0, reason: str | None = None
    ) -> SandboxState:
        """The sandbox is gone, its end state saved if that was asked for."""
        before = self.states.get(vm_id)
        wanted = self.requests[vm_id].save if vm_id in self.requests else None
        revision = before.revision if before else None
        if wanted is not None and self.save_error is None and cause != "lost":
            revision = self.keep(vm_id, wanted)
            if self.kept_raw:
                revision = msgspec.structs.replace(revision, unsaved=self.kept_raw)
                self.saves[revision.id].revision = revision
        ended = SandboxState(
            id=vm_id, phase="ended", started_ns=10**18, script_ended_ns=10**18 + 5_000_000, exit_code=exit_code,
            cause=cause, reason=reason, ended_ns=10**18 + 6_000_000, revision=revision,
            save_error=(self.save_error or self.kept_raw) if wanted else None, usage=self.used.get(vm_id),
        )  # fmt: skip
        return self.tell(ended)

    def use(self, vm_id: str, **counters: Any) -> None:
        """The sandbox has used so much since its start."""
        self.used[vm_id] = Usage(sandbox=vm_id, at_ns=now_ns(), **counters)

    def exit_script(self, vm_id: str, exit_code: int = 0) -> SandboxState:
        """The script of a sandbox that lingers is over."""
        before = self.states[vm_id]
        return self.tell(
            SandboxState(
                id=vm_id,
                phase="running",
                started_ns=10**18,
                script_ended_ns=10**18 + 7_000_000,
                exit_code=exit_code,
                cause="exited",
                revision=before.revision,
                ipv4=before.ipv4,
                ipv6=before.ipv6,
            )
        )

    def keep(self, vm_id: str, wanted: SaveRequest) -> Revision:
        if wanted.revision in self.saves:
            return self.saves[wanted.revision].revision
        before = self.states[vm_id].revision
        parent = before.id if before else self.requests[vm_id].start_from
        return self.make(wanted, parent, dict(self.files[vm_id]))

    def make(self, wanted: SaveRequest, parent: str | None, files: Files) -> Revision:
        made = Revision(
            id=wanted.revision, parent=parent, image="sha256:image", created_ns=now_ns(),
            size=sum(len(content) for content in files.values()), stored=wanted.upload, stored_bytes=0,
        )  # fmt: skip
        self.saves[made.id] = Saved(made, files)
        return made

    def sync(self, vm_id: str, revision: str) -> Revision:
        """A periodic save, as the node makes them of itself."""
        wanted = self.requests[vm_id].save
        assert wanted is not None
        made = self.keep(vm_id, SaveRequest(revision=revision, account=wanted.account, upload=wanted.upload))
        state = self.states[vm_id]
        self.tell(
            SandboxState(
                id=vm_id,
                phase=state.phase,
                started_ns=state.started_ns,
                script_ended_ns=state.script_ended_ns,
                exit_code=state.exit_code,
                cause=state.cause,
                revision=made,
                ipv4=state.ipv4,
                ipv6=state.ipv6,
            )
        )
        return made

    # the protocol

    async def info(self) -> NodeInfo:
        self.reach()
        pool = PoolStatus(idle=3, busy=0, creating=0, min_size=3, max_size=0)
        return NodeInfo(
            version="x", protocol=self.protocol, runtime="memory", cgroup="v1", cpus=2, memory_mb=4000,
            memory_available_mb=4000, pool=pool,
        )  # fmt: skip

    async def usage(self) -> list[Usage]:
        """Of all that it knows, so also of those that have ended, until they are forgotten."""
        self.reach()
        return [used for vm_id, used in self.used.items() if vm_id in self.states]

    async def images(self) -> list[Image]:
        self.reach()
        known = [("standard", "build: debian bookworm with jq"), *((name, "pull") for name in self.pulled)]
        return [Image(name=name, digest="sha256:image", size=1, source=of, created_ns=1) for name, of in known]

    async def pull_image(self, name: str, request: PullImage) -> AsyncIterator[Progress]:
        """A registry has what is in `registry`."""
        self.reach()
        yield Progress(message=f"asking for {request.reference}")
        await self.asked.wait()
        if request.reference not in self.registry:
            yield Progress(message="failed", error="no route to the registry")
            return
        yield Progress(message="pulling sha256:1")
        self.pulled.append(name)
        yield Progress(message="ready", done=(await self.images())[-1])

    async def start(self, vm_id: str, wanted: StartSandbox) -> SandboxState:
        self.reach()
        if vm_id in self.states:
            return self.states[vm_id]
        if len([state for state in self.states.values() if state.phase != "ended"]) >= self.room:
            raise NoCapacity("full")
        if wanted.image == "missing":
            raise NotFound("there is no image 'missing'")
        if wanted.start_from is not None and wanted.start_from not in self.saves:
            raise NotFound(f"there is no revision {wanted.start_from}")
        if wanted.start_from is not None:
            await self.recover(wanted.start_from)
        if wanted.log is not None and self.written(wanted.log):
            raise Conflict("a sandbox still writes that log")
        self.logs.setdefault(wanted.log or vm_id, [])
        self.started.append(wanted.script.decode())
        self.environments.append(wanted.environment)
        self.requests[vm_id] = wanted
        self.files[vm_id] = dict(self.saves[wanted.start_from].files) if wanted.start_from else {}
        self.files[vm_id] |= {f"root/{file.name}": self.uploads[file.id] for file in wanted.files}
        return self.tell(SandboxState(id=vm_id, phase="running", started_ns=10**18, ipv4=IPV4, ipv6=address_of(vm_id)))

    async def stop(self, vm_id: str, wanted: StopSandbox) -> SandboxState:
        self.reach()
        if vm_id not in self.states:
            raise NotFound("no such sandbox")
        state = self.states[vm_id]
        if state.phase == "ended":
            return state
        self.stops.append(vm_id)
        await self.may_stop.wait()
        if wanted.save is not None:
            self.requests[vm_id] = msgspec.structs.replace(self.requests[vm_id], save=wanted.save)
        if state.script_ended_ns is not None:
            return self.end(vm_id, "exited", state.exit_code)  # what ended its script stays the cause
        return self.end(vm_id, "stopped", 143, wanted.reason)

    async def freeze(self, vm_id: str, wanted: Freeze) -> SandboxState:
        self.reach()
        await self.may_freeze.wait()
        if wanted.reclaim:
            self.reclaimed.append(vm_id)
        return self._set_frozen(vm_id, True)

    async def thaw(self, vm_id: str) -> SandboxState:
        self.reach()
        self.thawed += 1
        return self._set_frozen(vm_id, False)

    def _set_frozen(self, vm_id: str, frozen: bool) -> SandboxState:
        if vm_id not in self.states:
            raise NotFound("no such sandbox")
        state = self.states[vm_id]
        if state.phase != "running":
            raise Conflict("not running")
        return state if state.frozen == frozen else self.tell(msgspec.structs.replace(state, frozen=frozen))

    def say(self, vm_id: str, text: bytes) -> None:
        """Output of the script; a follower of the log hears it."""
        records = self.logs[self.log_id(vm_id)]
        seq = (records[-1].seq if records else 0) + len(text)
        records.append(LogRecord(seq=seq, time_ns=now_ns(), source="stdout", data=text))

    def log_id(self, vm_id: str) -> str:
        return self.requests[vm_id].log or vm_id

    def written(self, log_id: str) -> bool:
        """Whether a sandbox's script still writes that log."""
        writers = [state for state in self.states.values() if state.script_ended_ns is None and state.phase != "ended"]
        return any(self.log_id(state.id) == log_id for state in writers)

    async def log(self, vm_id: str, after: int = 0, follow: bool = False) -> AsyncIterator[LogRecord]:
        self.reach()
        if vm_id not in self.logs:
            raise NotFound(f"there is no log of a sandbox {vm_id}")
        while True:
            for record in [one for one in self.logs[vm_id] if one.seq > after]:
                yield record
                after = record.seq
            if not follow or not self.written(vm_id):
                return
            await asyncio.sleep(0.002)
            self.reach()

    async def remove_log(self, vm_id: str) -> None:
        self.reach()
        if self.written(vm_id):
            raise Conflict("a sandbox still writes it")
        self.logs.pop(vm_id, None)

    async def dial(self, sandbox: str, port: int, host: str | None = None) -> socket.socket:
        """To the port of this machine that the test put into `doors`; `host` must be the sandbox's own or None."""
        self.reach()
        if sandbox not in self.states:
            raise NotFound("no such sandbox")
        state = self.states[sandbox]
        if state.phase != "running" or state.frozen:
            raise Conflict("not running, or frozen")
        own = host in (None, "127.0.0.1", "::1", state.ipv4, state.ipv6)
        made = socket.socket()
        made.setblocking(False)
        try:
            if not own or (sandbox, port) not in self.doors:
                raise ConnectionRefusedError
            await asyncio.get_running_loop().sock_connect(made, ("127.0.0.1", self.doors[sandbox, port]))
        except OSError:
            made.close()
            raise Refused(f"nothing listens on port {port}") from None
        except BaseException:
            made.close()
            raise
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made

    async def forget(self, vm_id: str) -> None:
        self.reach()
        if self.states.pop(vm_id, None) is None:
            raise NotFound("no such sandbox")

    async def events(self) -> AsyncIterator[Event]:
        self.reach()
        listener: asyncio.Queue[SandboxState | None] = asyncio.Queue()
        self.listeners.append(listener)
        for state in list(self.states.values()):
            yield Event(state=state)
        yield Event(snapshot=Snapshot(sandboxes=len(self.states)))
        while (state := await listener.get()) is not None:
            yield Event(state=state)
        self.listeners.remove(listener)
        raise NodeUnavailable("the node went away")

    async def save(self, vm_id: str, wanted: SaveRequest) -> Revision:
        self.reach()
        if not wanted.upload:
            raise Conflict("kept on this node, and saved when its job ends")
        await self.may_save.wait()
        return self.keep(vm_id, wanted)

    async def check(self, wanted: Check) -> Checked:
        self.reach()
        return Checked(problems=[f"revision {one} is damaged" for one in wanted.revisions if one in self.damaged])

    async def revision(self, revision: str, _account: int) -> Revision:
        self.reach()
        if revision not in self.saves:
            raise NotFound(f"there is no revision {revision}")
        return self.saves[revision].revision

    async def unsaved(self) -> list[Revision]:
        self.reach()
        return [saved.revision for saved in self.saves.values() if saved.revision.unsaved]

    async def recover(self, revision: str) -> Revision:
        saved = self.saves[(await self.revision(revision, 1)).id]
        if self.kept_raw and saved.revision.unsaved:
            raise Unsaved(f"the files of revision {revision} could not be saved: {self.kept_raw}; they are kept")
        saved.revision = msgspec.structs.replace(saved.revision, unsaved=None)
        return saved.revision

    async def collect(
        self, live: dict[int, list[str]], reserved: list[str], before_ns: int, images: list[str] | None = None
    ) -> Collected:
        self.reach()
        needed = {one for of_account in live.values() for one in of_account}
        assert needed <= set(self.saves), "what should be kept is not in the object store"
        needed |= set(reserved)
        needed |= {wanted.start_from for vm_id, wanted in self.requests.items() if vm_id in self.states}
        needed |= {state.revision.id for state in self.states.values() if state.revision}
        dead = [one for one in self.saves if one not in needed and self.saves[one].revision.created_ns < before_ns]
        freed = sum(self.saves.pop(one).revision.size for one in dead)
        return Collected(bytes_freed=freed, revisions_removed=len(dead))

    async def put_file(self, file_id: str, chunks: AsyncIterator[bytes], limit: int) -> int:
        self.reach()
        size, start = 0, b""
        async for chunk in chunks:
            self.largest_chunk = max(self.largest_chunk, len(chunk))
            size += len(chunk)
            start = (start + chunk)[:4096]  # enough for a test to know it by
            if size > limit:
                raise TooLarge("too large")
        self.uploads[file_id] = start
        return size

    async def remove_file(self, file_id: str) -> None:
        self.reach()
        self.uploads.pop(file_id, None)

    def place(self, where: str) -> Files:
        self.reach()
        if where in self.files and where in self.states:
            return self.files[where]
        if where in self.saves:
            return self.saves[where].files
        raise NotFound(f"there is no {where}")

    async def list_files(self, where: str, _account: int, path: str) -> AsyncIterator[Entry]:
        files = self.place(where)
        if path in files:
            yield Entry(name=b"", type="file", size=len(files[path]), mode=0o644, mtime_ns=7)
            return
        below = path + "/" if path else ""
        inside = sorted(name[len(below) :] for name in files if name.startswith(below))
        if not inside:
            raise NotFound(f"/{path}: there is no such file")
        yield Entry(name=b"", type="directory", size=0, mode=0o755, mtime_ns=7)
        for name in dict.fromkeys(one.partition("/")[0] for one in inside):
            encoded = name.encode("utf-8", "surrogateescape")
            if below + name in files:
                yield Entry(name=encoded, type="file", size=len(files[below + name]), mode=0o644, mtime_ns=10**18)
            else:
                yield Entry(name=encoded, type="directory", size=0, mode=0o755, mtime_ns=10**18)

    async def read_file(self, where: str, _account: int, path: str, start: int, end: int) -> AsyncIterator[bytes]:
        for at in range(start, end, 3):
            yield self.place(where)[path][at : min(at + 3, end)]

    async def tar(self, where: str, _account: int, path: str) -> AsyncIterator[bytes]:
        self.place(where)
        yield b"tar of " + path.encode()

    async def write_file(self, sandbox: str, path: str, chunks: AsyncIterator[bytes], mode: int) -> None:
        self.place(sandbox)[path] = b"".join([chunk async for chunk in chunks])

    async def delete_file(self, sandbox: str, path: str) -> None:
        if self.place(sandbox).pop(path, None) is None:
            raise NotFound(f"/{path}: there is no such file")

    async def edit(
        self, revision: str, save: SaveRequest, path: str, chunks: AsyncIterator[bytes] | None, mode: int = 0o644
    ) -> Revision:
        files = dict(self.place(revision))
        if any(path.startswith(f"{name}/") for name in files):
            raise Invalid(f"/{path}: leads through a file")
        if chunks is not None:
            files[path] = b"".join([chunk async for chunk in chunks])
        elif files.pop(path, None) is None:
            raise NotFound(f"/{path}: there is no such file")
        await self.may_save.wait()
        return self.make(save, revision, files)


def address_of(vm_id: str) -> str:
    """The IPv6 address that a sandbox of this node has."""
    return str(ipaddress.IPv6Address(f"fd00::{vm_id[:4]}:{vm_id[4:]}"))


Open = Callable[..., Any]


def opener(directory: Path, node: Node) -> Open:
    """Starts a control plane's jobs on the same files again and again, as restarts do."""

    @asynccontextmanager
    async def open_jobs(memory_mb: int = 4000) -> AsyncIterator[LiveJobs]:
        async with Database(directory / "roost.db") as database:
            await database.write(accounts.insert().prefix_with("OR IGNORE").values(id=1, name="a", created_ns=1))
            placement = SingleNode(Machine(2, memory_mb))
            key = secret.load(directory / "secret.key")
            async with LiveJobs(database, key, node, placement) as live:  # type: ignore[arg-type]
                live.database = database  # type: ignore[attr-defined]
                yield live

    return open_jobs


def order(script: str = "x", image: str = "standard", memory_mb: int = 100, **environment: str) -> Order:
    return Order(Work(script.encode(), environment), None, image, 1.0, memory_mb, 2, 300)


def keeping(*file_ids: str, **keeps: Any) -> Order:
    """A job with a workspace, a base or a sandbox that stays."""
    timeout = 0 if keeps.get("persistent") else 300
    return Order(Work(b"x", {}), None, "standard", 1.0, 100, 2, timeout, Keeping(**keeps), file_ids)


async def reread(live: LiveJobs, job: Job) -> Job:
    return await jobs.find(live.database, 1, job.request_id)  # type: ignore[attr-defined]


async def until(holds: Callable[[], bool | Awaitable[bool]]) -> None:
    """Waits for what other tasks bring about, at most eighty seconds: a busy machine is slow."""
    async with asyncio.timeout(80):
        while True:
            answer = holds()
            if answer if isinstance(answer, bool) else await answer:
                return
            await asyncio.sleep(0.002)


async def ended(live: LiveJobs, job: Job) -> Job:
    async def final() -> bool:
        return (await reread(live, job)).final

    await until(final)
    return await reread(live, job)
