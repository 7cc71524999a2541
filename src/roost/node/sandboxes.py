"""All sandboxes of this node by id: what the protocol's calls mean, and what a restarted node does first.

Calls are keyed by id and may be repeated. `recover` takes over what an earlier node left: sandboxes whose guest init
still answers go on, with their output; those that are gone are reported as lost; everything else is removed.
"""

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncGenerator
from pathlib import Path

import msgspec
import structlog

from roost.clock import now_ns
from roost.errors import Conflict, Damaged, Invalid, NotFound, RoostError
from roost.node import log as logs
from roost.node import member as members
from roost.node.capacity import disk_is_full
from roost.node.depot import Depot
from roost.node.disk import Disk
from roost.node.excess import Excess
from roost.node.guest.channel import GuestLost
from roost.node.images import ImageStore
from roost.node.images.config import Config
from roost.node.layers import Layers
from roost.node.member import Ground
from roost.node.pool import Pool
from roost.node.processes import Processes
from roost.node.protocol import (
    Collect,
    Collected,
    Event,
    Exec,
    ExecResult,
    Freeze,
    LogRecord,
    Revision,
    SandboxState,
    SaveRequest,
    Snapshot,
    StartSandbox,
    StopSandbox,
    Usage,
)
from roost.node.record import Record, Records, boot_id
from roost.node.room import Room
from roost.node.runtimes import RuntimeFailed
from roost.node.sandbox import ImageLower, Lower, Sandbox, initial_record, not_done, saved
from roost.node.saver import Saver

LOOK = 10.0  # seconds between looks at what each sandbox uses
KEEP = 60.0  # seconds between writes of it
AT_ONCE = 16  # sandboxes looked at before anybody else gets a turn: about a millisecond
SWEEPING = 15.0  # seconds for the end of a member that an earlier node left; then it goes on beside the start
CONCLUDING = 30.0  # seconds for saves that an earlier node left, at the end of this one; the next one repeats them
GUARD = 1.0  # seconds between looks at the disk that holds the guests' disks
DISK_FULL = "the node's disk was nearly full, and this sandbox used the most of it"
LOST = "the sandbox was gone when the node started again (a reboot or a crash), so its exit status is unknown"

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Sandboxes:
    def __init__(self, state_dir: Path, ground: Ground, images: ImageStore, layers: Layers, saver: Saver) -> None:
        self._ground = ground
        self._images = images
        self._layers = layers
        self._saver = saver
        self._records = Records(state_dir / "sandboxes")
        self._logs = state_dir / "logs"
        self._logs.mkdir(mode=0o700, exist_ok=True)
        self._kept = state_dir / "processes"
        self._disks = state_dir / "disks"
        self._sandboxes: dict[str, Sandbox] = {}
        self._over: dict[str, SandboxState] = {}  # ended before this node started; not yet forgotten
        self._processes_over: dict[str, Processes] = {}  # theirs
        self._starting: dict[str, asyncio.Task[None]] = {}
        self._concluding: set[asyncio.Task[None]] = set()
        self._listeners: set[asyncio.Queue[SandboxState]] = set()
        self._pool: Pool | None = None
        self._loops: list[asyncio.Task[None]] = []

    # what the protocol asks

    async def start(self, id: str, request: StartSandbox) -> SandboxState:
        """Raises NotFound (image), NoCapacity, Invalid. A caller that goes away does not undo it."""
        if id in self._over:
            return self._over[id]
        if id not in self._sandboxes and id not in self._starting:
            self._starting[id] = asyncio.create_task(self._start(id, request))
        if id in self._starting:
            await asyncio.shield(self._starting[id])
        return self.state(id)

    async def _start(self, id: str, request: StartSandbox) -> None:
        try:
            self._log_path(request.log or id)  # before anything is held
            lower, content = await self._lower(request)
            record = initial_record(id, request, content)
            sandbox = self._sandbox(record, lower)
            try:
                self._unwritten(record.log_id)
            except Conflict:
                sandbox.release()
                raise
            self._sandboxes[id] = sandbox
            try:
                await sandbox.start(request, self._ground.network.resolvers)
            except BaseException:
                del self._sandboxes[id]
                await sandbox.let_go()
                sandbox.release()
                self._discard(record)
                raise
        except OSError as error:
            raise not_done("the sandbox could not be started", error) from error
        finally:
            del self._starting[id]

    async def _lower(self, request: StartSandbox) -> tuple[Lower, str]:
        if request.start_from is None:
            hold = self._images.hold(request.image)
            return ImageLower(hold), hold.content
        stack = await self._layers.stack(request.account, request.start_from)
        return stack, stack.image

    def _sandbox(self, record: Record, lower: Lower | None) -> Sandbox:
        path = self._log_path(record.log_id)
        kept = self._kept / record.state.id
        return Sandbox(record, self._records, self._its_pool, lower, path, self._tell, self._saver, kept)

    def state(self, id: str) -> SandboxState:
        if id in self._over:
            return self._over[id]
        return self._known(id).state

    async def stop(self, id: str, request: StopSandbox) -> SandboxState:
        if id in self._over:
            return self._over[id]
        await self._known(id).stop(request)
        return self.state(id)

    async def usage(self) -> list[Usage]:
        """Of all that exist, and of those that have ended until they are forgotten."""
        told = [state.usage for state in self._over.values()]
        for at, sandbox in enumerate(list(self._sandboxes.values())):
            if at % AT_ONCE == AT_ONCE - 1:
                await asyncio.sleep(0)
            told.append(sandbox.usage())
        return [usage for usage in told if usage]

    async def _watch_usage(self) -> None:
        kept = 0.0
        while True:
            await asyncio.sleep(LOOK)
            await self.usage()
            if (now := asyncio.get_running_loop().time()) - kept >= KEEP - LOOK / 2:
                kept = now
                for sandbox in list(self._sandboxes.values()):
                    sandbox.keep_usage()
                    await asyncio.sleep(0)

    def forget(self, id: str) -> None:
        """Of an ended sandbox all but the log. Raises Conflict for one that lives, NotFound."""
        if self.state(id).phase != "ended":
            raise Conflict(f"sandbox {id} is still there; stop it first")
        self.processes(id).remove_all()
        self._records.remove(id)
        self._over.pop(id, None)
        self._processes_over.pop(id, None)
        self._sandboxes.pop(id, None)
        self._saver.forget(id)

    async def save(self, id: str, request: SaveRequest) -> Revision:
        """Raises Conflict when it is not running, NotFound."""
        over = self._over.get(id)
        sandbox = None if over else self._known(id)
        known = over.revision if over else sandbox and sandbox.state.revision
        if known and known.id == request.revision:
            return known
        if sandbox is None:
            raise Conflict(f"sandbox {id} has ended; its end state is the last revision")
        return await sandbox.save(request)

    async def freeze(self, id: str, request: Freeze) -> SandboxState:
        """Raises Conflict when it is not running, NotFound."""
        return await self.running(id).freeze(request)

    async def thaw(self, id: str) -> SandboxState:
        """Raises Conflict when it is not running, NotFound."""
        return await self.running(id).thaw()

    async def execute(self, id: str, request: Exec) -> ExecResult:
        return await self.running(id).execute(request)

    def processes(self, id: str) -> Processes:
        """The kept ones, also of a sandbox that has ended, until it is forgotten. Raises NotFound."""
        return self._processes_over[id] if id in self._over else self._known(id).processes

    async def read_log(self, id: str, after: int, follow: bool) -> AsyncGenerator[list[LogRecord]]:
        """Batches; an ended sandbox's log is readable until it is removed. Raises NotFound, Invalid.

        With `follow`, for as long as a sandbox writes it; one that continues it later is not waited for.
        """
        path = self._log_path(id)
        if not path.exists():
            raise NotFound(f"there is no log of a sandbox {id}")
        while True:
            writer = self._writer(id) if follow else None
            async for batch in logs.follow(path, writer, after):
                yield batch
                after = batch[-1].seq
            if self._writer(id) in (None, writer) or not follow:
                return

    def _writer(self, log_id: str) -> logs.LogWriter | None:
        """Of this log, while a sandbox writes it."""
        for sandbox in self._sandboxes.values():
            if sandbox.record.log_id == log_id and sandbox.log and not sandbox.log.closed:
                return sandbox.log
        return None

    def _unwritten(self, log_id: str) -> None:
        """Raises Conflict while a sandbox writes this log: it can have one writer."""
        if self._writer(log_id):
            raise Conflict(f"a sandbox still writes the log of sandbox {log_id}; stop that one first")

    def remove_log(self, id: str) -> None:
        users = [one for one in self._sandboxes.values() if one.record.log_id == id and one.state.phase != "ended"]
        if users:
            raise Conflict(f"sandbox {users[0].id} still writes the log of {id}; stop it first")
        logs.remove(self._log_path(id))

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
        unsaved: set[int] = set()
        records = self._records.read_all()
        for at, record in enumerate(records):
            if record.member is None or record.boot != boot_id() or record.state.phase == "ended":
                continue
            if record.state.script_ended_ns is None or record.linger:
                with contextlib.suppress(GuestLost):
                    adopted[record.state.id] = await members.adopt(self._ground, record.member, record.limits.disk_gb)
                if record.state.id in adopted and record.state.frozen:
                    records[at] = await self._freeze_again(record, adopted[record.state.id])
            if record.state.id not in adopted and record.save and record.state.started_ns is not None:
                unsaved.add(record.member)
        keep = {member.number for member in adopted.values()}
        undying = await self._sweep(keep | unsaved)
        self._layers.sweep()
        self._pool = Pool(self._ground, min_pool, max_pool, in_use=keep | unsaved | undying)
        for number in undying:
            self._concluding.add(asyncio.create_task(self._pool.destroyed(number)))
        for record in records:
            await self._settle(record, adopted.get(record.state.id), record.member in unsaved)
        return self._pool

    async def _freeze_again(self, record: Record, member: members.Member) -> Record:
        """At once, so that it is awake for the moment of its adoption only."""
        try:
            await member.cgroup.freeze()
            return record
        except OSError as error:
            log.error("sandbox.unfrozen", id=record.state.id, error=str(error))
            return msgspec.structs.replace(record, state=msgspec.structs.replace(record.state, frozen=False))

    async def _settle(self, record: Record, member: members.Member | None, unsaved: bool) -> None:
        id = record.state.id
        if record.state.phase == "ended":
            await self._put_over(record.state)
        elif member:
            sandbox = self._sandbox(record, await self._hold_again(record))
            if sandbox.adopt(member):
                self._sandboxes[id] = sandbox
                return
            sandbox.release()
            await self._its_pool.used(member)
            self._discard(record)
        elif unsaved and record.member is not None:
            self._sandboxes[id] = sandbox = self._sandbox(record, None)
            self._concluding.add(asyncio.create_task(self._conclude(sandbox, record.member)))
        elif record.state.phase == "starting":
            self._discard(record)  # whoever asked for it asks again
        else:
            await self._put_over(self._lost(record))

    async def _put_over(self, state: SandboxState) -> None:
        processes = Processes(self._kept / state.id, lambda: self.running(state.id).enter(), lambda _: None, Config)
        await processes.find_ended()
        self._over[state.id] = msgspec.structs.replace(state, processes=0)
        self._processes_over[state.id] = processes

    async def _conclude(self, sandbox: Sandbox, number: int) -> None:
        """Its processes are gone, its disk is here: what it wrote is saved before its end is told."""
        sandbox.hold(await self._hold_again(sandbox.record))
        site = self._ground.site(number)
        try:
            await members.end(self._ground, site)
        except (RuntimeFailed, OSError) as error:  # TimeoutError is one; a disk that stays busy is set aside
            log.error("member.undying", number=number, error=str(error))
        disk = Disk(self._disks / f"{site.container_id}.img", site.disk, sandbox.limits.disk_gb)
        await sandbox.conclude(disk, site.first_id, LOST)
        await self._its_pool.destroyed(number)

    async def _hold_again(self, record: Record) -> Lower | None:
        """None when it was removed while no node held it; the sandbox's mount keeps what it needs."""
        try:
            if record.start_from is not None:
                return self._layers.hold(record.start_from)
            return ImageLower(self._images.hold_content(record.image_content))
        except RoostError as error:
            log.warning("sandbox.unheld", id=record.state.id, error=str(error))
            return None

    def _discard(self, record: Record) -> None:
        """It never began. An earlier sandbox's log, which it was to continue, stays as it was."""
        id = record.state.id
        self._records.remove(id)
        if record.log is None:
            logs.remove(self._log_path(id))
        shutil.rmtree(self._kept / id, ignore_errors=True)

    def _lost(self, record: Record) -> SandboxState:
        """Unless the script was over already: then its result is known."""
        state = msgspec.structs.replace(
            record.state, phase="ended", ended_ns=now_ns(), frozen=False, ipv4=None, ipv6=None,
            usage=record.metered.usage if record.metered else None,
        )  # fmt: skip
        if record.save and self._layers.has(record.save.revision):  # its disk was kept before the machine ended
            state = msgspec.structs.replace(state, **saved(self._layers.find(record.save.revision)))
        if state.script_ended_ns is None:
            state = msgspec.structs.replace(state, cause="lost", reason=LOST)
            with contextlib.suppress(OSError):
                writer = logs.LogWriter(self._log_path(record.log_id))
                writer.remark(LOST)
                writer.close()
        self._records.write(msgspec.structs.replace(record, state=state, member=None))
        return state

    async def _sweep(self, keep: set[int]) -> set[int]:
        """Removes every member but those in `keep`: directories, containers, mounts, links, groups, disks.

        Returns the numbers of those whose processes do not die.
        """
        ground = self._ground
        directory = ground.runtime_dir / "members"
        numbers = {int(entry.name) for entry in directory.iterdir()} if directory.exists() else set[int]()
        numbers |= {int(id.rpartition("-")[2]) for id in ground.runtime.list()}
        turn = asyncio.Semaphore(os.cpu_count() or 1)
        swept = await asyncio.gather(*(self._destroy(number, turn) for number in sorted(numbers - keep)))
        undying = {number for number in swept if number is not None}
        await ground.network.sweep(keep)
        kept = {ground.site(number).container_id for number in keep | undying}
        for image in self._disks.glob("*.img"):
            if image.stem not in kept:
                image.unlink()
        return undying

    async def _destroy(self, number: int, turn: asyncio.Semaphore) -> int | None:
        """The number, if something of the member is left."""
        try:
            async with turn, asyncio.timeout(SWEEPING):
                await members.destroy(self._ground, number)
            return None
        except (RuntimeFailed, OSError) as error:  # TimeoutError is one
            log.error("member.undying", number=number, error=str(error))
            return number

    def running(self, id: str) -> Sandbox:
        """One that may be entered; it says itself whether it can. Raises NotFound, Conflict for one that has ended."""
        if id in self._over:
            raise Conflict(f"sandbox {id} has ended")
        return self._known(id)

    def member_of(self, id: str) -> members.Member:
        """Of a sandbox in which something can be done. Raises NotFound, Conflict."""
        sandbox = None if id in self._over else self._known(id)
        if sandbox is None or sandbox.member is None or not sandbox.usable:
            raise Conflict(f"sandbox {id} is not running")
        return sandbox.member

    def awake(self, id: str) -> members.Member:
        """Of a sandbox that can be connected to. Raises NotFound, Conflict."""
        sandbox = self.running(id)
        sandbox.enter()
        assert sandbox.member
        return sandbox.member

    def account_of(self, id: str) -> int:
        """Raises NotFound, Conflict for one that has ended."""
        if id in self._over:
            raise Conflict(f"sandbox {id} is not running")
        return self._known(id).record.account

    # revisions

    async def collect(self, request: Collect, depot: Depot) -> Collected:
        """What nobody lists goes, here and in the store, unless a sandbox needs it or it is newer than the list."""
        spared = self.pinned() | self._layers.made_since(request.before_ns) | set(request.reserved)
        listed = {id for ids in request.live.values() for id in ids} | spared
        removed, freed = await asyncio.to_thread(self._layers.collect, listed)
        if request.images is not None:
            living = {sandbox.record.image_content for sandbox in self._sandboxes.values() if sandbox.record.save}
            self._images.keep_only({*request.images, *self._layers.images(), *living})
        refused: dict[int, str] = {}
        for account, ids in request.live.items():
            heads = [id for id in ids if not self._layers.has(id) or self._layers.find(id).stored]
            try:
                freed += await depot.collect(account, heads, sorted(spared))
            except Damaged as error:  # nothing of this account goes; the others' does
                log.error("collection.refused", account=account, error=str(error))
                refused[account] = str(error)
        return Collected(bytes_freed=freed, revisions_removed=removed, refused=refused)

    def pinned(self) -> set[str]:
        """Revisions that sandboxes which are known here began with or have saved."""
        states = [*self._over.values(), *(sandbox.state for sandbox in self._sandboxes.values())]
        began = {sandbox.record.start_from for sandbox in self._sandboxes.values() if sandbox.record.start_from}
        return began | {state.revision.id for state in states if state.revision}

    # the machine's disk

    def open(self) -> None:
        room = Room(self._layers, lambda: list(self._sandboxes.values()))
        excess = Excess(lambda: list(self._sandboxes.values()))
        loops = (self._watch_disk(), self._watch_usage(), room.watch(), excess.watch())
        self._loops = [asyncio.create_task(loop) for loop in loops]

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

        living = [s for s in self._sandboxes.values() if s.member and (s.record.linger or not s.state.script_ended_ns)]
        if living:
            largest = max(living, key=used)
            log.error("disk.full", ended=largest.id, blocks=used(largest))
            await largest.stop(StopSandbox(grace_seconds=0, reason=DISK_FULL), cause="disk")

    async def close(self) -> None:
        """Sandboxes that live stay, for the node that comes next."""
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._starting.values(), return_exceptions=True)
        await _bounded(self._concluding, CONCLUDING)
        for sandbox in self._sandboxes.values():
            sandbox.keep_usage()
            await sandbox.let_go()

    @property
    def living(self) -> set[int]:
        """Numbers of the members that sandboxes hold."""
        return {sandbox.member.number for sandbox in self._sandboxes.values() if sandbox.member}


async def _bounded(tasks: set[asyncio.Task[None]], seconds: float) -> None:
    if tasks:
        _, undone = await asyncio.wait(tasks, timeout=seconds)
        for task in undone:
            task.cancel()
        await asyncio.gather(*undone, return_exceptions=True)
