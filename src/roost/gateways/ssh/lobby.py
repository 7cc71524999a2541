"""`ssh roost@HOST`: which sandboxes the account has and how to enter them."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import asyncssh
import structlog
from structlog.typing import FilteringBoundLogger

from roost.jobs import job as jobs

if TYPE_CHECKING:
    from roost.gateways.ssh.gateway import SshGateway

SHOWN = 100  # sandboxes
LOOKED_AT = 500  # of the newest jobs
USAGE = "roost: this is a list, not a shell; `ssh roost@HOST list`, or enter a sandbox with `ssh NAME@HOST`"


log: FilteringBoundLogger = structlog.get_logger()


class LobbySession(asyncssh.SSHServerSession[bytes]):
    """Answers one question and closes."""

    def __init__(self, gateway: "SshGateway", account_id: int, closed: Callable[[], None]) -> None:
        self._gateway = gateway
        self._account_id = account_id
        self._closed = closed
        self._known = True
        self._line = "\n"
        self._channel: Any = None
        self._answering: asyncio.Task[None] | None = None

    def connection_made(self, chan: asyncssh.SSHServerChannel[bytes]) -> None:
        self._channel = chan

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answering is not None:
            self._answering.cancel()
        self._closed()

    def pty_requested(self, term_type: str, term_size: object, term_modes: object) -> bool:
        self._line = "\r\n"
        return True

    def shell_requested(self) -> bool:
        return True

    def exec_requested(self, command: str) -> bool:
        self._known = command.strip() in ("list", "ls")
        return True

    def session_started(self) -> None:
        self._answering = asyncio.create_task(self._answer())

    def eof_received(self) -> bool:
        return True  # it goes on being written to

    async def _answer(self) -> None:
        try:
            await self._say()
        except Exception as error:
            log.error("ssh.lobby_fault", exc_info=error)
            self._channel.close()

    async def _say(self) -> None:
        if not self._known:
            self._channel.write_stderr((USAGE + self._line).encode())
            return self._channel.exit(2)
        text = await listing(self._gateway, self._account_id)
        self._channel.write(text.replace("\n", self._line).encode())
        return self._channel.exit(0)


async def listing(gateway: "SshGateway", account_id: int) -> str:
    page = await jobs.newest(gateway.database, account_id, 1, LOOKED_AT)
    open_ones = [job for job in (gateway.live.as_now(job) for job in page.jobs) if not job.final and job.persistent]
    if not open_ones:
        return "You have no sandbox to enter. Make one: roost ssh NAME\n"
    names = [job.workspace or job.name for job in open_ones[:SHOWN]]
    width = max(len(name) for name in names)
    lines = [f"{name:<{width}}  {job.status}" for name, job in zip(names, open_ones, strict=False)]
    more = [f"and {len(open_ones) - SHOWN} more"] if len(open_ones) > SHOWN else []
    return "\n".join([*lines, *more, "", f"Enter one: ssh {names[0]}@HOST (with the port that you used here)", ""])
