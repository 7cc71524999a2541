"""One sandbox on this node, from claim to end.

    start -> [claimed] -> running -> script over -> ended

`Sandboxes` (sandboxes.py) keeps them by id. What must hold: a state is on disk before anyone is told it; the exit
status comes from guest init's waitpid or is reported as lost; output is in the log before guest init may forget it.
"""

import asyncio
import contextlib
import errno
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec
import structlog

from roost import ids
from roost.clock import now_ns
from roost.errors import Conflict, MachineFault, NoCapacity, RoostError, condition_of, reason
from roost.node.ahead import copy_ahead, is_ahead
from roost.node.capture import Capture
from roost.node.disk import FLOOR, GIB, Disk
from roost.node.freezer import Freezer
from roost.node.guest.channel import Guest, GuestLost, GuestProcess, GuestRefused
from roost.node.guest.frames import HOSTNAME, STDERR, STDOUT, Command, Exited
from roost.node.images import Hold
from roost.node.images.config import Config
from roost.node.input import Input
from roost.node.log import LogWriter
from roost.node.member import Member
from roost.node.metering import Meter
from roost.node.pool import Pool
from roost.node.processes import KEPT, Processes
from roost.node.protocol import (
    DEFAULT_PATH,
    Cause,
    Exec,
    ExecResult,
    Freeze,
    Revision,
    SandboxState,
    SaveRequest,
    StartSandbox,
    StopSandbox,
    Taken,
    Usage,
)
from roost.node.record import Record, Records, Stop, boot_id
from roost.node.saver import Saver
from roost.node.tools import PLACE, microvm

SCRIPT = "/run/roost/script"  # on a small file system of guest init's own, so in no workspace
FIRST_PROCESS = 1  # guest init's number for the script
THE_SCRIPT = "the script"
KILL_WAIT = 3.0  # seconds that guest init may take to tell how a killed script ended
KEEP_AGAIN = 1.0  # seconds until files that could not be kept are kept
UNSAVED = "the files could not be saved ({});"
KEPT_AS = "they are kept on this node as revision {}, and saving them is tried again when they are needed"
# What the machine has run out of comes back: who starts a sandbox waits for it. 524: the kernel's memory for filters
EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOBUFS, errno.EUSERS, 524}
TRIES = 3  # members that may turn out dead before the script has been started
BASE_ENVIRONMENT = {
    "PATH": DEFAULT_PATH,
    "HOME": "/root",
    "USER": "root",
    "LOGNAME": "root",
    "SHELL": "/bin/sh",
    "LANG": "C.UTF-8",
}

log: structlog.stdlib.BoundLogger = structlog.get_logger()


def script_command(script: bytes, environment: dict[str, str], config: Config, stdin: bool = False) -> Command:
    """A script with a `#!` line is executed as it says; any other is the shell's. config: the image's."""
    arguments = [SCRIPT] if script.startswith(b"#!") else ["/bin/sh", SCRIPT]
    whole = BASE_ENVIRONMENT | config.environment | environment
    return Command(arguments, whole, directory=config.directory, uid=config.uid, gid=config.gid, stdin=stdin)


def doubts_about(script: bytes) -> str | None:
    """What a text from another system may break in; whether it does, only the script knows."""
    if script.startswith(b"\xef\xbb\xbf"):
        return "the script begins with a byte order mark (BOM), which no shell knows; save it as UTF-8 without BOM"
    if b"\r\n" in script[: script.find(b"\n") + 1]:
        return "the script has Windows line endings (CRLF), which a shell takes for part of its words; save it with LF"
    return None


def hosts_file(hostname: str) -> bytes:
    return f"127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n127.0.1.1 {hostname}\n".encode()


def resolver_file(resolvers: tuple[str, ...]) -> bytes:
    return "".join(f"nameserver {address}\n" for address in resolvers).encode()


class Lower(Protocol):
    """What a sandbox stands on: an image (`ImageLower`) or a revision's stack (`layers.Stack`)."""

    @property
    def lowers(self) -> list[Path]: ...

    @property
    def size(self) -> int:
        """Bytes above the image."""
        ...

    @property
    def largest(self) -> int:
        """Bytes of its largest file above the image."""
        ...

    @property
    def config(self) -> Config: ...

    def release(self) -> None: ...


class ImageLower:
    def __init__(self, hold: Hold) -> None:
        self.lowers = [hold.path]
        self.size = self.largest = 0
        self.config = hold.config
        self.release = hold.release


class Sandbox:
    def __init__(
        self,
        record: Record,
        records: Records,
        pool: Pool,
        lower: Lower | None,
        log_path: Path,
        changed: Callable[[SandboxState], None],
        saver: Saver,
        kept: Path,
    ) -> None:
        self.state = record.state
        self.limits = record.limits
        self.record = record
        self.log_path = log_path
        self.log: LogWriter | None = None
        self.member: Member | None = None
        self._records = records
        self._pool = pool
        self._lower = lower
        self._changed = changed
        self._saver = saver
        self.processes = Processes(kept, self.enter, self._count_processes, lambda: self.config)
        self._script: GuestProcess | None = None
        self._input = Input(THE_SCRIPT, closed=True)
        self._asked = False  # guest init was asked to start the script, so it is never started anew
        self._next_process = FIRST_PROCESS + 1
        self._stop: asyncio.Future[tuple[StopSandbox, Cause]] = asyncio.get_running_loop().create_future()
        self._asked_to_stop = record.stop
        self._stopped_before = record.stop is not None  # by an earlier node, which may have sent TERM already
        self._life: asyncio.Task[None] | None = None
        self._syncing: asyncio.Task[None] | None = None
        self._holding: asyncio.Task[None] | None = None
        self._saving = asyncio.Lock()
        self._end_save_begun = False
        self._freezer: Freezer | None = None
        self._meter: Meter | None = None
        self._last_usage: Usage | None = None  # its script is over, and nothing counts any more
        self.ended = asyncio.Event()

    @property
    def id(self) -> str:
        return self.state.id

    # beginning

    async def start(self, request: StartSandbox, resolvers: tuple[str, ...]) -> None:
        """Claims a member and starts the script. Raises NoCapacity, and then there is nothing of the sandbox."""
        self.log = _open_log(self.log_path)
        self.record = msgspec.structs.replace(self.record, log_begins=self.log.begins)
        for attempt in range(TRIES):
            member = await self._pool.take()
            try:
                try:
                    await self._begin(member, request, resolvers)
                except BaseException:
                    await self._held()
                    raise
                return
            except GuestRefused as refusal:
                if refusal.number in EXHAUSTED:
                    self.member = None
                    await self._pool.used(member)
                    raise NoCapacity(f"the sandbox could not be started now: {refusal}") from None
                await self._fail(f"the sandbox could not be started: {refusal}")
                return
            except GuestLost as lost:
                if not self._asked and attempt + 1 < TRIES:
                    log.warning("member.lost", number=member.number, why=str(lost))
                    self.member = None
                    await self._pool.used(member)
                    continue
                await self._fail(f"the sandbox died while it was being started: {lost}")
                return
            except (RoostError, OSError) as error:
                self.member = None
                await self._pool.used(member)
                if isinstance(error, OSError):
                    raise not_done("the sandbox could not be started", error) from error
                raise

    async def _begin(self, member: Member, request: StartSandbox, resolvers: tuple[str, ...]) -> None:
        self.member = member
        assert self._lower
        await member.mount(self._lower.lowers, self.limits)
        self._warn_of_little_room(self._lower.size)
        await self._saver.place(request, member, self._lower.lowers)
        held = await self._copied_ahead(member, self._lower)
        self._meter = Meter.begin(self.id, member.cgroup, member.site.interface, member.used)
        self._save(self.state)  # from here on a restarted node asks this member's guest init
        guest, hostname, started, self._asked = member.guest, request.hostname, now_ns(), True
        tools = await asyncio.to_thread(microvm) if request.tools else []
        config = self.config
        command = script_command(request.script, request.environment, config, request.input)
        if held:
            self._holding = asyncio.create_task(self._hold(member.disk, held))
        *_, self._script = await asyncio.gather(  # asked in this order, and obeyed in it
            guest.attach(hostname, member.sight, request.start_from is not None),
            guest.write_file(SCRIPT, 0o755 if config.uid else 0o700, request.script),
            guest.write_own("/etc/resolv.conf", 0o644, resolver_file(resolvers)),
            guest.write_own("/etc/hosts", 0o644, hosts_file(HOSTNAME)),
            guest.write_own("/etc/hostname", 0o644, f"{HOSTNAME}\n".encode()),
            *(guest.write_file(f"{PLACE}/{part.name}", part.mode, part.content) for part in tools),
            guest.start(FIRST_PROCESS, command, self._log_writer().write),
        )
        self._input = Input(THE_SCRIPT, closed=not request.input)
        self._input.process = self._script
        if doubts := doubts_about(request.script):
            self._remark(doubts)
        self._freezer = Freezer(member, False, self._write_frozen)
        ipv4, ipv6 = member.addresses
        self._become(phase="running", started_ns=started, ipv4=ipv4, ipv6=ipv6)
        self._life = asyncio.create_task(self._live())
        member.forget_mounts()

    async def _copied_ahead(self, member: Member, lower: Lower) -> int:
        """What the layers below hold without the files that were copied, since it could not change them otherwise."""
        room = member.disk.free - lower.size
        if room >= lower.size or room < FLOOR or room >= lower.largest:
            return lower.size
        first_id = member.site.first_id
        try:
            return lower.size - await asyncio.to_thread(copy_ahead, member.disk, lower.lowers[:-1], first_id, room)
        except OSError as error:  # then it can read and delete them
            log.error("disk.not_copied_ahead", id=self.id, error=str(error))
            return lower.size

    async def _hold(self, disk: Disk, held: int) -> None:
        """Beside the guest's own beginning, which takes as long; nobody waits for it."""
        try:
            await asyncio.to_thread(disk.hold, held)
        except OSError as error:  # it has more room than it should: no reason to end a script that runs
            log.error("disk.unheld", id=self.id, error=str(error))

    async def _held(self) -> None:
        """Before its disk is unmounted: what is below the mount point is the machine's."""
        if self._holding:
            await asyncio.gather(self._holding, return_exceptions=True)

    def _warn_of_little_room(self, held: int) -> None:
        if held > self.limits.disk_gb * GIB - FLOOR:
            self._remark(
                f"the workspace holds {held / GIB:.1f} GB, and the disk has {self.limits.disk_gb} GB: all of it can be "
                f"read and deleted, and {FLOOR // 2**20} MB be written; give it a larger disk_gb, or delete files"
            )

    def adopt(self, member: Member) -> bool:
        """After a restart of the node; False when guest init never got to start the script.

        The member is frozen where the record says so.
        """
        known = member.guest.known.get(FIRST_PROCESS)
        if known is None:
            return False
        self.member = member
        self._freezer = Freezer(member, self.state.frozen, self._write_frozen)
        if self._lower and self._lower.size and not (member.disk.ballast.exists() or is_ahead(member.disk)):
            self._holding = asyncio.create_task(self._hold(member.disk, self._lower.size))  # a kill was faster
        if self.record.metered:
            self._meter = Meter(member.cgroup, member.site.interface, self.record.metered)
            self._meter.look(self.state.frozen)
        self.log = LogWriter(self.log_path, begins=self.record.log_begins)
        self.log.taken(known.acknowledged)
        self._script = member.guest.adopt(FIRST_PROCESS, self.log.write, self.log.output)
        stdin = member.guest.known_stdin.get(FIRST_PROCESS)
        self._input = Input(THE_SCRIPT, stdin.received if stdin else 0, stdin is None or stdin.ended)
        self._input.adopt(self._script)
        if self.state.script_ended_ns is not None:
            self.log.close()
        self.processes.adopt(member.guest)
        self._next_process = 1 + max(id for id in member.guest.known if id < KEPT)
        for id in list(member.guest.known):
            if id != FIRST_PROCESS and not self.processes.has(id):  # its caller is gone with the old node
                abandoned = member.guest.adopt(id, lambda _: None, member.guest.known[id].acknowledged)
                abandoned.signal(signal.SIGKILL)
                abandoned.release()
        ipv4, ipv6 = member.addresses
        self.state = msgspec.structs.replace(self.state, ipv4=ipv4, ipv6=ipv6)
        if self.state.phase == "starting":
            self._become(phase="running", started_ns=now_ns())
        if self._asked_to_stop:
            self._stop.set_result((self._asked_to_stop.request, self._asked_to_stop.cause))
        self._life = asyncio.create_task(self._live())
        return True

    # life

    async def _live(self) -> None:
        if self.record.sync_seconds and self.record.save:
            self._syncing = asyncio.create_task(self._keep_synced())
        try:
            if self.record.linger and self.state.script_ended_ns is not None:
                await self._linger()
            else:
                await self._await_end()
        except Exception as error:
            log.exception("sandbox.fault", id=self.id)
            await self._fail(str(condition_of(error, "the sandbox could not be kept")))

    async def _await_end(self) -> None:
        assert self._script
        ending = asyncio.ensure_future(self._script.wait())
        try:
            async with asyncio.timeout(self._time_left()):
                await asyncio.wait({ending, self._stop}, return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            await self._kill_script(ending)
            limit = self.limits.timeout_seconds
            await self._over(ending, "timeout", f"timed out: the script ran longer than {limit} s and was killed")
            return
        if self._stop.done() and (self._stopped_before or not ending.done()):
            request, cause = self._stop.result()
            if not ending.done():
                await self._end_gently(ending, request)
            await self._over(ending, cause, request.reason)
            return
        await self._over(ending, "exited", None)

    async def _linger(self) -> None:
        """The script is over, the sandbox stays: until it is stopped, or ends by itself."""
        assert self.member
        guest = self.member.guest
        await asyncio.wait({self._stop, guest.lost}, return_when=asyncio.FIRST_COMPLETED)
        await self._rouse()
        if self._stop.done() and not guest.lost.done():
            request, _ = self._stop.result()
            guest.signal_everyone(signal.SIGTERM)
            deadline = asyncio.get_running_loop().time() + request.grace_seconds
            while len(self.member.cgroup.pids()) > 1 and asyncio.get_running_loop().time() < deadline:
                await asyncio.sleep(0.05)
        await self._remove()

    def _time_left(self) -> float | None:
        """Of the wall clock, which also runs while the node is down."""
        if not self.limits.timeout_seconds or self.state.started_ns is None:
            return None
        return max(0.0, self.limits.timeout_seconds - (now_ns() - self.state.started_ns) / 1e9)

    async def _end_gently(self, ending: asyncio.Future[Exited], request: StopSandbox) -> None:
        assert self.member
        await self._rouse()
        if request.grace_seconds > 0:
            if not self._stopped_before:
                self.member.guest.signal_everyone(signal.SIGTERM)
            await asyncio.wait({ending}, timeout=request.grace_seconds)
        if not ending.done():
            await self._kill_script(ending)

    async def _kill_script(self, ending: asyncio.Future[Exited]) -> None:
        """Through guest init, which then tells the status and the last output; what it does not tell is lost."""
        assert self.member
        await self._rouse()
        self.member.guest.signal_everyone(signal.SIGKILL)
        await asyncio.wait({ending}, timeout=KILL_WAIT)
        if not ending.done():
            self.member.guest.close()
            await asyncio.wait({ending})

    async def _over(self, ending: asyncio.Future[Exited], cause: Cause, reason: str | None) -> None:
        """The script has ended, one way or another: make that durable, tell it, then remove the sandbox."""
        assert self.member
        kills = self._oom_kills()
        exit_code: int | None = None
        try:
            exit = await ending
            exit_code = exit.exit_code
            if cause == "exited" and kills and exit.signal == signal.SIGKILL:
                cause = "oom"
        except GuestLost as lost:
            if cause == "exited":
                cause = "oom" if kills else "lost"
                reason = f"the sandbox ended by itself ({lost}), so the script's exit status is unknown"
        if cause == "oom":
            limit = f"out of memory: the sandbox may use {self.limits.memory_mb} MB"
            reason = f"{limit}; {reason}" if reason else limit
        if kills:
            remark = f"out of memory ({self.limits.memory_mb} MB): the kernel ended {kills} process(es)"
            self._remark(remark)
        await self._finish(cause, reason, exit_code)

    async def _fail(self, reason: str) -> None:
        await self._finish("failed", reason, None)

    async def _finish(self, cause: Cause, reason: str | None, exit_code: int | None) -> None:
        writer = self._log_writer()
        if writer.dropped:
            self._remark(f"{writer.dropped} bytes of output were dropped at the limit")
        stays = self.record.linger and cause == "exited" and not self._stop.done()
        if reason:
            self._remark(reason)
        elif stays and exit_code:
            self._remark(f"ended with exit status {exit_code}; the sandbox stays, with what was left running")
        await self._become_surely(script_ended_ns=now_ns(), exit_code=exit_code, cause=cause, reason=reason)
        writer.close()
        if self.record.linger and cause == "exited" and not self._stop.done():
            await self._linger()
        else:
            await self._remove()

    async def _remove(self) -> None:
        """Saves what is to be saved, then nothing is left but the record and the log."""
        if self._syncing:
            self._syncing.cancel()
            await asyncio.gather(self._syncing, return_exceptions=True)
        await self._leave_alone()
        await self._held()
        member = self.member
        if member and self.record.save and self.state.started_ns is not None:
            self._end_save_begun = True
            await self._save_end(member)
        await self.processes.end()
        self.member = None
        if member:
            await self._pool.used(member)
        self.release()
        await self._become_surely(phase="ended", ended_ns=now_ns(), ipv4=None, ipv6=None, usage=self._last_usage)
        self.ended.set()

    async def _leave_alone(self) -> None:
        """Nobody freezes it, or keeps its disk busy by looking at its files. A fault in that must lose nothing."""
        try:
            await self._rouse()
            await self._saver.release_files(self.id)
            self._last_usage = self.usage()  # while the kernel still counts
        except Exception:
            log.exception("sandbox.not_left_alone", id=self.id)

    # what it uses

    def usage(self) -> Usage | None:
        """Up to now; None for one that never began."""
        if self._last_usage or self.state.usage:
            return self._last_usage or self.state.usage
        if self._meter and self.member:
            return self._meter.look(self.state.frozen)
        return self.record.metered.usage if self.record.metered else None

    def keep_usage(self) -> None:
        """In its record, for a node that follows."""
        if self.member and self.usage():
            with contextlib.suppress(OSError):  # a full disk: the next time makes up for it
                self._save(self.state)

    # standing still

    async def freeze(self, request: Freeze) -> SandboxState:
        """Every process stands still, guest init too, until `thaw` or `stop`.

        Raises Conflict when it is not running, NoCapacity when its record cannot be written.
        """
        member, freezer = self.member, self._freezer
        if not member or not freezer or not self.usable:
            raise Conflict(f"sandbox {self.id} is not running, so it cannot be frozen")
        if await freezer.freeze():
            self._changed(self.state)
        if request.reclaim:
            await member.cgroup.reclaim()
        return self.state

    async def thaw(self) -> SandboxState:
        """Returns when its processes go on; a save may hold them a moment longer."""
        if not self._freezer or not self.usable:
            raise Conflict(f"sandbox {self.id} is not running, so it cannot be thawed")
        await self._rouse()
        await self._freezer.moves()
        return self.state

    async def _rouse(self) -> None:
        if self._freezer and await self._freezer.thaw():
            self._changed(self.state)

    def _write_frozen(self, frozen: bool) -> None:
        """A full disk keeps nobody frozen; it keeps one from being frozen."""
        if frozen and not self.usable:
            raise Conflict(f"sandbox {self.id} is not running, so it cannot be frozen")
        if self._meter and frozen:
            self._meter.look(False)
        elif self._meter:
            self._meter.tick(True)  # somebody waits for it to wake
        state = msgspec.structs.replace(self.state, frozen=frozen)
        if self.member:
            self.member.rest(frozen)
        try:
            self._save(state)
        except OSError as error:
            if frozen:
                raise not_done("the sandbox could not be frozen", error) from error
            log.warning("record.unwritten", id=self.id, error=str(error))
        self.state = state

    # saving

    async def _save_end(self, member: Member) -> None:
        try:
            await member.quiet()
        except Exception:  # one that does not die keeps its disk busy: then that is set aside, and saved later
            log.exception("sandbox.unquiet", id=self.id)
        await self.finish_saving(member.disk, member.site.first_id)

    async def finish_saving(self, disk: Disk, first_id: int) -> None:
        """The disk of a sandbox in which nothing runs any more becomes a revision's layer. Safe to repeat.

        Until its files are kept, whole or as they are, nothing of the sandbox is removed.
        """
        while True:
            try:
                revision = await self._saver.keep(self.record, disk, first_id, self._last_saved)
                break
            except Exception:
                log.exception("sandbox.unkept", id=self.id)
                await asyncio.sleep(KEEP_AGAIN)
        await self._become_surely(**saved(revision))

    async def conclude(self, disk: Disk, first_id: int, lost: str) -> None:
        """After a restart of the node that found its guest init gone and its disk still there: saved, then ended."""
        await self.processes.find_ended()
        await self.finish_saving(disk, first_id)
        if self.state.script_ended_ns is None:
            await self._become_surely(script_ended_ns=now_ns(), cause="lost", reason=lost)
        self.release()
        over = {"phase": "ended", "ended_ns": now_ns(), "frozen": False, "ipv4": None, "ipv6": None}
        await self._become_surely(**over, usage=self.usage())
        self.ended.set()

    @property
    def _last_saved(self) -> str | None:
        return self.state.revision.id if self.state.revision else None

    async def save(self, request: SaveRequest) -> Revision:
        """The files as they are now, in the object store. Raises Conflict when the sandbox is not running."""
        async with self._saving:
            if self.state.revision and self.state.revision.id == request.revision:
                return self.state.revision
            member = self.member
            if not member or not self._freezer or self.state.phase != "running" or self._stop.done():
                raise Conflict(f"sandbox {self.id} is not running; its end state is saved when it has ended")
            revision = await self._saver.snapshot(self.record, request, member, self._last_saved, self._freezer)
            await self._become_surely(revision=revision)
            return revision

    async def _keep_synced(self) -> None:
        """A frozen sandbox is saved once more; then nothing in it changes until it is thawed."""
        assert self.record.save and self._freezer
        saved: int | None = None
        while True:
            await asyncio.sleep(self.record.sync_seconds)
            if self.state.frozen and saved == self._freezer.thaws:
                continue
            request = msgspec.structs.replace(self.record.save, revision=ids.revision_id())
            frozen, thaws = self.state.frozen, self._freezer.thaws
            try:
                await self.save(request)
                saved = thaws if frozen else None
            except Conflict:
                return
            except (RoostError, OSError) as error:
                log.warning("sandbox.unsynced", id=self.id, error=str(error))

    def _oom_kills(self) -> int:
        assert self.member
        with contextlib.suppress(OSError):
            return self.member.cgroup.oom_kills()
        return 0

    async def stop(self, request: StopSandbox, cause: Cause = "stopped") -> None:
        """Returns when the sandbox is gone; what the first request says holds, also for a node that follows."""
        if not self._stop.done():
            self._asked_to_stop = Stop(request, cause)
            if request.save and not self._end_save_begun:
                self.record = msgspec.structs.replace(self.record, save=request.save)
            with contextlib.suppress(OSError):  # a full disk must not keep it running
                self._save(self.state)
            self._stop.set_result((request, cause))
        await self.ended.wait()

    async def end_at_once(self, request: StopSandbox, cause: Cause) -> None:
        """As `stop`, but all of its processes stand still and are killed from outside: it may be too busy to listen."""
        stopping = asyncio.create_task(self.stop(request, cause))
        await asyncio.sleep(0)  # what it is ended for is settled before the script's end can be seen
        if self.member:
            with contextlib.suppress(OSError):  # it is gone, or some do not die: stopping it goes on in any case
                await self.member.cgroup.kill_others(self.member.pid)
        await stopping

    @property
    def config(self) -> Config:
        """What its image says of processes."""
        config = self._lower.config if self._lower else Config()
        return config.as_root() if self.record.as_root else config

    def hold(self, lower: Lower | None) -> None:
        """What its disk stands on, until `release`."""
        self._lower = lower

    def release(self) -> None:
        """What it holds but its member: the layers and the image that it stands on."""
        if self._lower:
            self._lower.release()

    async def let_go(self) -> None:
        """The node goes, the sandbox stays for the next one."""
        for task in (self._life, self._syncing, self._holding):
            if task:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        await self.processes.let_go()
        if self.member:
            self.member.let_go()
        if self.log:
            self.log.close()

    @property
    def usable(self) -> bool:
        """Whether something can still be done in it."""
        over = self.state.script_ended_ns is not None and not self.record.linger
        return self.state.phase == "running" and not over and not self._stop.done()

    # commands beside the script

    def enter(self) -> Guest:
        """Guest init, for one more process. Raises Conflict with why nothing can be started."""
        if self.usable and self.member and not self.state.frozen:
            return self.member.guest
        if self.state.phase == "ended":
            raise Conflict(f"sandbox {self.id} has ended")
        if self.state.frozen and self.usable:
            raise Conflict(f"sandbox {self.id} is frozen; thaw it first")
        if self._stop.done():
            raise Conflict(f"sandbox {self.id} is being stopped, so nothing can be started in it")
        if self.state.script_ended_ns is not None:
            raise Conflict(f"the script of sandbox {self.id} has ended, and the sandbox with it")
        raise Conflict(f"sandbox {self.id} has not started its script yet; try again in a moment")

    def _count_processes(self, running: int) -> None:
        if running == self.state.processes:
            return
        try:
            self._become(processes=running)
        except OSError:  # a full disk: the next change writes it too
            self.state = msgspec.structs.replace(self.state, processes=running)
            self._changed(self.state)

    def next_number(self) -> int:
        """Guest init's for one more process that is not kept."""
        number, self._next_process = self._next_process, self._next_process + 1
        return number

    async def write_input(self, at: int, data: bytes, end: bool) -> Taken:
        """To the script. Raises Conflict (a gap, closed, ended, not running)."""
        guest = self.enter()
        try:
            taken = await self._input.write(guest, at, data)
            if end and taken.position == at + len(data):
                await self._input.close(guest)
        except GuestLost:
            raise Conflict("the sandbox has ended") from None
        return taken

    async def execute(self, request: Exec) -> ExecResult:
        """Raises Conflict when the sandbox is not running."""
        guest, id = self.enter(), self.next_number()
        output = Capture(request.output_limit)
        begun = now_ns()
        config = self.config
        command = Command(
            ["/bin/sh", "-c", request.command], environment=None, end_session=True,
            directory=config.directory, uid=config.uid, gid=config.gid,
        )  # fmt: skip
        try:
            process = await guest.start(id, command, output.take)
        except GuestRefused as refusal:
            raise Conflict(f"the sandbox could not start the command: {refusal}") from None
        except GuestLost as lost:
            raise Conflict(f"the sandbox ended before the command was started: {lost}") from None
        exited, timed_out = await _bounded(process, request.timeout_seconds)
        process.release()
        return ExecResult(
            exit_code=exited.exit_code if exited else None,
            stdout=output.of(STDOUT),
            stderr=output.of(STDERR),
            truncated=output.truncated,
            timed_out=timed_out,
            duration_ms=(now_ns() - begun) // 1_000_000,
            reason=_why_ended(exited, request.timeout_seconds if timed_out else None),
        )

    # state

    def _become(self, **changes: object) -> None:
        state = msgspec.structs.replace(self.state, **changes)
        self._save(state)
        self.state = state
        self._changed(state)

    async def _become_surely(self, **changes: object) -> None:
        """What happened cannot be taken back, so a full disk only delays telling it."""
        while True:
            try:
                self._become(**changes)
                return
            except OSError as error:
                log.warning("record.unwritten", id=self.id, error=str(error))
                await asyncio.sleep(0.5)

    def _save(self, state: SandboxState) -> None:
        number = self.member.number if self.member else self.record.member
        metered = self._meter.metered if self._meter else self.record.metered
        self.record = msgspec.structs.replace(
            self.record, state=state, boot=boot_id(), member=number, stop=self._asked_to_stop, metered=metered
        )
        self._records.write(self.record)

    def _log_writer(self) -> LogWriter:
        assert self.log
        return self.log

    def _remark(self, text: str) -> None:
        with contextlib.suppress(OSError):  # it is told by the state too
            self._log_writer().remark(text)


def _why_ended(exited: Exited | None, limit: float | None) -> str | None:
    """What a command's exit code does not tell. `limit`: the seconds that it was killed after."""
    if limit is not None:
        return f"the limit of {limit:g} s ended it; give a larger timeout"
    return None if exited else "the sandbox ended during the command, so its exit status is unknown"


async def _bounded(process: GuestProcess, timeout: float) -> tuple[Exited | None, bool]:
    """How the process ended (None: unknown), and whether it was killed for its time."""
    ending = asyncio.ensure_future(process.wait())
    try:
        await asyncio.wait({ending}, timeout=timeout)
        timed_out = not ending.done()
        if timed_out:
            process.signal(signal.SIGKILL)
            await asyncio.wait({ending}, timeout=KILL_WAIT)
        with contextlib.suppress(GuestLost):
            return (ending.result() if ending.done() else None), timed_out
        return None, timed_out
    finally:
        if not ending.done():  # the caller has gone, or the process does not die: nobody waits for it any more
            process.signal(signal.SIGKILL)
            process.release()
            ending.cancel()


def _open_log(path: Path) -> LogWriter:
    try:
        return LogWriter(path, begins=None)
    except OSError as error:
        raise not_done("the sandbox's log could not be opened", error) from error


def not_done(what: str, error: OSError) -> RoostError:
    """What has run out, or a disk that takes nothing, may pass; any other failure of the machine is a fault."""
    if error.errno in EXHAUSTED:
        return NoCapacity(f"{what} now: {reason(error)}")
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return MachineFault.of(what, error)
    return NoCapacity(f"the node's state directory cannot be written: {error.strerror}")


def saved(revision: Revision) -> dict[str, object]:
    """What a sandbox's state says of the save of its end."""
    error = revision.unsaved and f"{UNSAVED.format(revision.unsaved)} {KEPT_AS.format(revision.id)}"
    return {"revision": revision, "save_error": error}


def initial_state(id: str) -> SandboxState:
    return SandboxState(id=id, phase="starting")


def initial_record(id: str, request: StartSandbox, content: str) -> Record:
    return Record(
        state=initial_state(id),
        boot=boot_id(),
        member=None,
        image_content=content,
        limits=request.limits,
        account=request.account,
        linger=request.linger,
        start_from=request.start_from,
        save=request.save,
        sync_seconds=request.sync_seconds,
        log=request.log,
        as_root=bool(request.tools),
    )
