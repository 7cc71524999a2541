"""All sandboxes of this node by id: what the protocol's calls mean, and what a restarted node does first.

Calls are keyed by id and may be repeated. `recover` takes over what an earlier node left: sandboxes whose guest init
still answers go on, with their output; those that are gone are reported as lost; everything else is removed.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from pathlib import Path

import msgspec
import structlog

from roost.clock import now_ns
from roost.errors import Conflict, Invalid, NotFound
from roost.node import log as logs
from roost.node import member as members
from roost.node.capacity import disk_is_full
from roost.node.guest.channel import GuestLost
from roost.node.images import Hold, ImageStore
from roost.node.member import Ground
from roost.node.pool import Pool
from roost.node.protocol import (
    Event,
    Exec,
    ExecResult,
    LogRecord,
    SandboxState,
    Snapshot,
    StartSandbox,
    StopSandbox,
)
from roost.node.record import Record, Records, boot_id
from roost.node.sandbox import Sandbox, initial_record

GUARD = 1.0  # seconds between looks at the disk that holds the guests' disks
DISK_FULL = "the node's disk was nearly full, and this sandbox used the most of it"
LOST = "the sandbox was gone when the node started again (a reboot or a crash), so its exit status is unknown"

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Sandboxes:
    def __init__(self, state_dir: Path, ground: Ground, images: ImageStore) -> None:
        self._ground = ground
        self._images = images
        self._records = Records(state_dir / "sandboxes")
        self._logs = state_dir / "logs"
        self._logs.mkdir(mode=0o700, exist_ok=True)
        self._disks = state_dir / "disks"
        self._sandboxes: dict[str, Sandbox] = {}
        self._over: dict[str, SandboxState] = {}  # ended before this node started; not yet forgotten
        self._starting: dict[str, asyncio.Task[None]] = {}
        self._listeners: set[asyncio.Queue[SandboxState]] = set()
        self._pool: Pool | None = None
        self._guard: asyncio.Task[None] | None = None

    # what the protocol asks

    async def start(self, id: str, request: StartSandbox) -> SandboxState:
        """Raises NotFound (image), NoCapacity, Invalid. A caller that goes away does not undo it."""
        if id in self._over:
            return self._over[id]
        if id not in self._sandboxes:
            hold = self._images.hold(request.image)
            record = initial_record(id, request.limits, hold.content)
            sandbox = Sandbox(record, self._records, self._its_pool, hold, self._log_path(id), self._tell)
            self._sandboxes[id] = sandbox
            self._starting[id] = asyncio.create_task(self._start(sandbox, request))
        if id in self._starting:
            await asyncio.shield(self._starting[id])
        return self.state(id)

    async def _start(self, sandbox: Sandbox, request: StartSandbox) -> None:
        try:
            await sandbox.start(request, self._ground.network.resolvers)
        except BaseException:
            del self._sandboxes[sandbox.id]
            await sandbox.let_go()
            sandbox.release()
            self._records.remove(sandbox.id)
            self._log_path(sandbox.id).unlink(missing_ok=True)
            raise
        finally:
            del self._starting[sandbox.id]

    def state(self, id: str) -> SandboxState:
        if id in self._over:
            return self._over[id]
        return self._known(id).state

    async def stop(self, id: str, request: StopSandbox) -> SandboxState:
        if id in self._over:
            return self._over[id]
        await self._known(id).stop(request)
        return self.state(id)

    def forget(self, id: str) -> None:
        """Of an ended sandbox all but the log. Raises Conflict for one that lives, NotFound."""
        if self.state(id).phase != "ended":
            raise Conflict(f"sandbox {id} is still there; stop it first")
        self._records.remove(id)
        self._over.pop(id, None)
        self._sandboxes.pop(id, None)

    async def execute(self, id: str, request: Exec) -> ExecResult:
        if id in self._over:
            raise Conflict(f"sandbox {id} has ended")
        return await self._known(id).execute(request)

    async def read_log(self, id: str, after: int, follow: bool) -> AsyncGenerator[list[LogRecord]]:
        """Batches; an ended sandbox's log is readable until it is removed. Raises NotFound, Invalid."""
        path = self._log_path(id)
        sandbox = self._sandboxes.get(id)
        if not path.exists():
            raise NotFound(f"there is no log of a sandbox {id}")
        async for batch in logs.follow(path, sandbox.log if sandbox and follow else None, after):
            yield batch

    def remove_log(self, id: str) -> None:
        if id in self._sandboxes and self._sandboxes[id].state.phase != "ended":
            raise Conflict(f"sandbox {id} still writes its log; stop it first")
        self._log_path(id).unlink(missing_ok=True)

    async def events(self) -> AsyncGenerator[Event]:
        """Every sandbox's state, `Snapshot`, then each change for as long as the reader reads."""
        queue: asyncio.Queue[SandboxState] = asyncio.Queue()
        self._listeners.add(queue)
        try:
            states = [*self._over.values(), *(sandbox.state for sandbox in self._sandboxes.values())]
            for state in states:
                yield Event(state=state)
            yield Event(snapshot=Snapshot(sandboxes=len(states)))
            while True:
                yield Event(state=await queue.get())
        finally:
            self._listeners.discard(queue)

    def _tell(self, state: SandboxState) -> None:
        log.info("sandbox.state", **{k: v for k, v in msgspec.structs.asdict(state).items() if v is not None})
        for queue in self._listeners:
            queue.put_nowait(state)

    def _known(self, id: str) -> Sandbox:
        try:
            return self._sandboxes[id]
        except KeyError:
            raise NotFound(f"this node has no sandbox {id}") from None

    def _log_path(self, id: str) -> Path:
        if not (id.isalnum() and id.isascii() and len(id) <= 64):
            raise Invalid(f"{id!r} is not a sandbox's id: up to 64 letters and digits")
        return self._logs / f"{id}.log"

    @property
    def _its_pool(self) -> Pool:
        assert self._pool
        return self._pool

    # after a restart

    async def recover(self, min_pool: int, max_pool: int) -> Pool:
        """Takes over or removes whatever an earlier node left; returns the pool, not yet opened."""
        adopted: dict[str, members.Member] = {}
        records = self._records.read_all()
        for record in records:
            if record.member is not None and record.boot == boot_id() and record.state.script_ended_ns is None:
                with contextlib.suppress(GuestLost):
                    adopted[record.state.id] = await members.adopt(self._ground, record.member, record.limits.disk_gb)
        keep = {member.number for member in adopted.values()}
        await self._sweep(keep)
        self._pool = Pool(self._ground, min_pool, max_pool, in_use=keep)
        for record in records:
            member = adopted.get(record.state.id)
            await self._settle(record, member)
        return self._pool

    async def _settle(self, record: Record, member: members.Member | None) -> None:
        id = record.state.id
        if record.state.phase == "ended":
            self._over[id] = record.state
        elif member:
            hold = self._hold_again(record.image_content)
            sandbox = Sandbox(record, self._records, self._its_pool, hold, self._log_path(id), self._tell)
            if sandbox.adopt(member):
                self._sandboxes[id] = sandbox
                return
            sandbox.release()
            await self._its_pool.used(member)
            self._discard(id)
        elif record.state.phase == "starting":
            self._discard(id)  # whoever asked for it asks again
        else:
            self._over[id] = self._lost(record)

    def _hold_again(self, content: str) -> Hold | None:
        """None when the image was removed while no node held it; the sandbox's mount keeps what it needs."""
        try:
            return self._images.hold_content(content)
        except NotFound:
            return None

    def _discard(self, id: str) -> None:
        self._records.remove(id)
        self._log_path(id).unlink(missing_ok=True)

    def _lost(self, record: Record) -> SandboxState:
        """Unless the script was over already: then its result is known."""
        state = msgspec.structs.replace(record.state, phase="ended", ended_ns=now_ns())
        if state.script_ended_ns is None:
            state = msgspec.structs.replace(state, cause="lost", reason=LOST)
            with contextlib.suppress(OSError):
                writer = logs.LogWriter(self._log_path(state.id))
                writer.remark(LOST)
                writer.close()
        self._records.write(msgspec.structs.replace(record, state=state, member=None))
        return state

    async def _sweep(self, keep: set[int]) -> None:
        """Removes every member but those in `keep`: directories, containers, mounts, links, groups, disks."""
        ground = self._ground
        directory = ground.runtime_dir / "members"
        numbers = {int(entry.name) for entry in directory.iterdir()} if directory.exists() else set[int]()
        numbers |= {int(id.rpartition("-")[2]) for id in ground.runtime.list()}
        for number in sorted(numbers - keep):
            await members.destroy(ground, number)
        await ground.network.sweep(keep)
        kept = {ground.site(number).container_id for number in keep}
        for image in self._disks.glob("roost-*.img"):
            if image.stem not in kept:
                image.unlink()

    # the machine's disk

    def open(self) -> None:
        self._guard = asyncio.create_task(self._watch_disk())

    async def _watch_disk(self) -> None:
        """Guests' disks are promises that the machine's disk may not keep: before it is full, the largest user goes."""
        while True:
            await asyncio.sleep(GUARD)
            if disk_is_full(self._disks):
                await self._end_largest()

    async def _end_largest(self) -> None:
        def used(sandbox: Sandbox) -> int:
            with contextlib.suppress(OSError):
                return sandbox.member.disk.image.stat().st_blocks if sandbox.member else 0
            return 0

        living = [s for s in self._sandboxes.values() if s.member and not s.state.script_ended_ns]
        if living:
            largest = max(living, key=used)
            log.error("disk.full", ended=largest.id, blocks=used(largest))
            await largest.stop(StopSandbox(grace_seconds=0, reason=DISK_FULL), cause="disk")

    async def close(self) -> None:
        """Sandboxes that live stay, for the node that comes next."""
        if self._guard:
            self._guard.cancel()
        await asyncio.gather(*self._starting.values(), return_exceptions=True)
        for sandbox in self._sandboxes.values():
            await sandbox.let_go()

    @property
    def living(self) -> set[int]:
        """Numbers of the members that sandboxes hold."""
        return {sandbox.member.number for sandbox in self._sandboxes.values() if sandbox.member}
