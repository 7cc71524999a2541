"""A shell, a command or sftp in a sandbox: a process of the node's `session` behind an SSH channel."""

import asyncio
import contextlib
import re
import shlex
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, TypeAlias

import aiohttp
import asyncssh
import structlog
from asyncssh.constants import EXTENDED_DATA_STDERR
from asyncssh.packet import SSHPacket
from structlog.typing import FilteringBoundLogger

from roost.errors import Conflict, NodeUnavailable, NotFound, RoostError
from roost.gateways.ssh.older_clients import put_right
from roost.gateways.ssh.streams import Inlet, Outlet
from roost.gateways.ssh.visit import TRY_AGAIN, WAKE_WITHIN, Visit
from roost.node.protocol import DEFAULT_PATH, TERMINAL_NAME, ChangeProcess, SessionEnd, StartProcess, Terminal

if TYPE_CHECKING:
    from roost.gateways.ssh.connection import Connection
    from roost.node.client import NodeClient, Session

Tool: TypeAlias = Literal["sftp-server", "scp", "rsync"]

TOOLS = "/run/roost/tools"
SFTP = [f"{TOOLS}/ld.so", "--library-path", TOOLS, f"{TOOLS}/sftp-server.bin"]
# A PATH of the job's own comes before what /etc/profile sets in its place: a login shell that has read its profiles
# becomes an interactive one. Shells that do not speak sh are left to themselves.
_KEEP_PATH = (
    "o=$IFS; IFS=:; for d in $PATH; do case :$ROOST_PATH: in *:$d:*) ;; *) ROOST_PATH=$ROOST_PATH:$d;; esac; done;"
    ' IFS=$o; PATH=$ROOST_PATH; unset o d ROOST_PATH; exec "$SHELL" -i'
)
# The shell that the guest's own /etc/passwd gives root, found by a shell's own means: nothing else need be there.
LOGIN_SHELL = (
    "t=; [ -r /etc/passwd ] && while IFS=: read -r n p u g c h s; do"
    ' [ "$n" = root ] && t=$s && break; done </etc/passwd;'
    ' [ -x "$t" ] || t=/bin/sh; SHELL=$t; export SHELL; unset n p u g c h s;'
    f' case $PATH:$t in {DEFAULT_PATH}:*|*fish|*csh|*nu) exec "$t" -l;; esac;'
    f" ROOST_PATH=$PATH; export ROOST_PATH; exec \"$t\" -l -c '{_KEEP_PATH}'"
)
MICROVM = f"{TOOLS}/microvm"  # node/guest/microvm.c
COPIERS: dict[str, Tool] = {"scp": "scp", "rsync": "rsync"}  # commands that clients send by themselves
FAILED = 255  # what ssh itself ends with when it, and not the command, failed
LOST = "the exit status is unknown"
VARIABLE = re.compile(rb"[A-Za-z_][A-Za-z0-9_]{0,127}")
VARIABLES = 64
VARIABLE_BYTES = 32 * 1024  # all names and values together
MAX_COMMAND = 128 * 1024 - 256  # bytes; the kernel takes 128 KiB as one argument
MAX_TERMINAL = 4096  # rows or columns

log: FilteringBoundLogger = structlog.get_logger()


class Channel(asyncssh.SSHServerChannel[bytes]):
    """asyncssh's, with a bounded environment; a variable that is refused is told to the client as refused."""

    def __init__(self, connection: "Connection", window: int, packet: int) -> None:
        loop = asyncio.get_running_loop()
        connection._update_recv_pktlen(packet)  # pyright: ignore[reportPrivateUsage]
        super().__init__(connection, loop, True, False, False, 0, 0, None, "strict", window, packet)
        self.variables: dict[str, str] = {}
        self._variable_bytes = 0

    def _process_env_request(self, packet: SSHPacket) -> bool:
        name, value = packet.get_string(), packet.get_string()
        packet.check_end()
        self._variable_bytes += len(name) + len(value)
        if len(self.variables) >= VARIABLES or self._variable_bytes > VARIABLE_BYTES:
            return False
        if not VARIABLE.fullmatch(name) or b"\0" in value:
            return False
        with contextlib.suppress(UnicodeDecodeError):
            self.variables[name.decode()] = value.decode()
            return True
        return False


class SandboxSession(asyncssh.SSHServerSession[bytes]):
    """asyncssh's callbacks about one channel, and the task that serves it."""

    def __init__(
        self,
        connection: "Connection",
        visit: Visit,
        node: "NodeClient",
        closed: Callable[[], None],
        login: str | None = None,  # the user that it is; None: root
    ) -> None:
        self._connection = connection
        self._login = login
        self._visit = visit
        self._node = node
        self._closed = closed
        self._inlet = Inlet()
        self._outlet = Outlet(connection)
        self._channel: Channel | None = None
        self._term = ""
        self._terminal: Terminal | None = None
        self._arguments: list[str] = []
        self._tools: list[Tool] = []
        self._session: Session | None = None
        self._early: list[ChangeProcess] = []  # what was asked before the process had begun
        self._changes: asyncio.Queue[ChangeProcess] = asyncio.Queue(64)
        self._serving: asyncio.Task[None] | None = None

    # -- what the client asks ------------------------------------------------------------------------------

    def connection_made(self, chan: asyncssh.SSHServerChannel[bytes]) -> None:
        assert isinstance(chan, Channel)
        self._channel = self._inlet.channel = self._outlet.channel = chan

    def connection_lost(self, exc: Exception | None) -> None:
        if self._serving is not None:
            self._serving.cancel()
        self._inlet.end()
        self._outlet.resume()
        self._closed()

    def pty_requested(self, term_type: str, term_size: tuple[int, int, int, int], term_modes: object) -> bool:
        self._term = term_type[:128] if term_type.isprintable() else "dumb"
        self._terminal = terminal(term_size[0], term_size[1])
        return True

    def shell_requested(self) -> bool:
        self._arguments = ["/bin/sh", "-c", LOGIN_SHELL] if self._login is None else [MICROVM, "login", self._login]
        return True

    def exec_requested(self, command: str) -> bool:
        if "\0" in command or len(command.encode()) > MAX_COMMAND:
            return False
        first = command.split(None, 1)[0] if command.strip() else ""
        if tool := COPIERS.get(first):
            self._tools = [tool]
            command = f"PATH=$PATH:{TOOLS}; {command}"
        self._arguments = self._command(put_right(command))
        return True

    def subsystem_requested(self, subsystem: str) -> bool:
        if subsystem != "sftp":
            return False
        self._arguments = SFTP if self._login is None else self._command(f"exec {shlex.join(SFTP)}")
        self._tools = ["sftp-server"]
        return True

    def _command(self, command: str) -> list[str]:
        if self._login is None:
            return ["/bin/sh", "-c", command]
        return [MICROVM, "login", self._login, "-c", command]

    def session_started(self) -> None:
        self._serving = asyncio.create_task(self._serve())

    def data_received(self, data: bytes, datatype: object) -> None:
        self._inlet.put(data)

    def eof_received(self) -> bool:
        self._inlet.end()
        return True

    def terminal_size_changed(self, width: int, height: int, pixwidth: int, pixheight: int) -> None:
        if self._terminal is not None:
            self._change(ChangeProcess(terminal=terminal(width, height)))

    def signal_received(self, signal: str) -> None:
        if (number := signal_number(signal)) is not None:
            self._change(ChangeProcess(signal=number))

    def pause_writing(self) -> None:
        self._outlet.pause()

    def resume_writing(self) -> None:
        self._outlet.resume()

    def _change(self, change: ChangeProcess) -> None:
        with contextlib.suppress(asyncio.QueueFull):  # a client that resizes faster than anybody can
            self._changes.put_nowait(change)

    # -- serving it ----------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        try:
            self._end(await self._converse())
        except RoostError as error:
            self._fail(str(error))
        except Exception as error:
            log.error("ssh.session_fault", exc_info=error)
            self._fail("internal error")

    async def _converse(self) -> SessionEnd:
        """Starts the process, carries its streams, and returns how it ended after all of its output is on its way."""
        async with contextlib.AsyncExitStack() as entered:
            session = await self._enter(entered)
            tasks = [asyncio.create_task(self._feed(session)), asyncio.create_task(self._pass_changes(session))]
            try:
                async for source, data in session.output():
                    await self._outlet.write(data, EXTENDED_DATA_STDERR if source == "stderr" else None)
                return await session.end()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _enter(self, entered: contextlib.AsyncExitStack) -> "Session":
        """Tried again where nothing can have begun: the sandbox fell asleep just then, or the node was restarted."""
        deadline = time.monotonic() + WAKE_WITHIN
        while True:
            run = await self._visit.run()
            try:
                return await entered.enter_async_context(self._node.session(run.job.vm_id, self._process()))
            except NodeUnavailable as error:
                if not isinstance(error.__cause__, aiohttp.ClientConnectorError):
                    raise  # the node may have begun it
                await self._visit.node_back(error, deadline)
            except (Conflict, NotFound):
                if run.awake or run.done.is_set() or time.monotonic() > deadline:
                    raise
            await asyncio.sleep(TRY_AGAIN)

    def _process(self) -> StartProcess:
        assert self._channel
        environment = dict(self._channel.variables)
        peer, own = self._channel.get_extra_info("peername"), self._channel.get_extra_info("sockname")
        if peer and own:
            environment["SSH_CONNECTION"] = f"{peer[0]} {peer[1]} {own[0]} {own[1]}"
            environment["SSH_CLIENT"] = f"{peer[0]} {peer[1]} {own[1]}"
        if self._terminal is not None:
            environment |= {"TERM": self._term or "dumb", TERMINAL_NAME: ""}
        return StartProcess(
            arguments=self._arguments, environment=environment, terminal=self._terminal, tools=list(self._tools),
            root=True,
        )  # fmt: skip

    async def _feed(self, session: "Session") -> None:
        """Wakes a sandbox that was put to sleep meanwhile. A process that does not read, or is over, is no error."""
        with contextlib.suppress(RoostError):
            while data := await self._inlet.get():
                await self._visit.run()
                await session.write(data)
            await session.write_eof()

    async def _pass_changes(self, session: "Session") -> None:
        with contextlib.suppress(RoostError):
            while True:
                change = await self._changes.get()
                await self._visit.run()
                await session.change(change)

    def _end(self, end: SessionEnd) -> None:
        assert self._channel
        if self._channel.is_closing():
            return
        if end.signal is not None and (name := signal_name(end.signal)) is not None:
            self._channel.exit_with_signal(name)
        elif end.exit_code is not None:
            self._channel.exit(end.exit_code)
        else:
            self._fail(end.refused or end.reason or LOST)

    def _fail(self, why: str) -> None:
        assert self._channel
        if not self._channel.is_closing():
            line = "\r\n" if self._terminal else "\n"
            self._channel.write_stderr(f"roost: {why}{line}".encode())
            self._channel.exit(FAILED)


def terminal(columns: int, rows: int) -> Terminal:
    """Of what a client says; nothing, or nonsense, means the usual size."""
    return Terminal(
        rows=rows if 0 < rows <= MAX_TERMINAL else 24, columns=columns if 0 < columns <= MAX_TERMINAL else 80
    )


def signal_number(name: str) -> int | None:
    """Of a name as SSH has it, without SIG."""
    found = signal.Signals.__members__.get(f"SIG{name}")
    return None if found is None else found.value


def signal_name(number: int) -> str | None:
    try:
        return signal.Signals(number).name.removeprefix("SIG")
    except ValueError:
        return None
