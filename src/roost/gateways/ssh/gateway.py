"""The SSH gateway's doors: where it listens, how many may knock, and who is inside.

It holds no SSH itself. `connection.py` does, and with it asyncssh, which takes 70 ms and 10 MB: both are loaded with
the first connection, or with the first key that is made for a job, because somebody is about to come.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

import structlog
from structlog.typing import FilteringBoundLogger

from roost.db.database import Database
from roost.errors import Conflict
from roost.gateways.ssh import host_key, keys, ports
from roost.gateways.ssh.host_key import HostKey
from roost.jobs.job import Job
from roost.listening import address_of, bound, listener
from roost.settings import ServeSettings

if TYPE_CHECKING:
    from roost.gateways.ssh.connection import Login
    from roost.jobs.live import LiveJobs
    from roost.node.client import NodeClient

STRANGERS = 200  # connections that have not logged in yet; more are closed unheard
CONNECTIONS_OF_ACCOUNT = 500
SWEEP_PORTS = 2.0  # seconds between looks for jobs that have ended, while any has a port of its own
SWEEP_KEYS = 3600.0  # seconds between removals of ended jobs' keys

log: FilteringBoundLogger = structlog.get_logger()


class SshGateway:
    """Listens from `async with` on; leaving closes every connection. Raises Conflict when its port is taken."""

    def __init__(self, settings: ServeSettings, database: Database, live: "LiveJobs", node: "NodeClient") -> None:
        self.settings = settings
        self.database = database
        self.live = live
        self.node = node
        self.key = HostKey()
        self.port = 0
        self._host, _ = address_of(settings.ssh, "--ssh")
        self._doors: dict[int, Door] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._opening = asyncio.Lock()
        self._strangers: set[Login] = set()
        self._inside: dict[Login, str] = {}  # -> the id of the key that opened
        self._connect: Callable[[SshGateway, int | None], Login] | None = None

    async def __aenter__(self) -> Self:
        self.key = host_key.load(self.settings.ssh_host_key)
        door = Door(self, listener("--ssh", self.settings.ssh, self.settings.inherited), None)
        self._doors[0], self.port = door, door.port
        try:
            await ports.free_those_of_ended_jobs(self.database)
            for port, job_seq in (await ports.assigned(self.database)).items():
                self._open_again(port, job_seq)
        except BaseException:
            await self._close_doors()
            raise
        for work in (self._sweep_ports(), self._sweep_keys()):
            self.own(asyncio.create_task(work))
        log.info("ssh.listening", host=self._host, port=self.port, jobs=len(self._doors) - 1)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._close_doors()
        for login in [*self._strangers, *self._inside]:
            login.leave("Roost is stopping")
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def own(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("ssh.gateway_fault", exc_info=error)

    # -- doors ---------------------------------------------------------------------------------------------

    async def door_of(self, job: Job) -> int:
        """The port that leads to this job alone; it stays until the job ends. Raises Invalid, NoCapacity."""
        busy: set[int] = set()
        async with self._opening:
            while True:
                port = await ports.port_of(self.database, job.seq, self.settings.ssh_ports, frozenset(busy))
                if port in self._doors:
                    return port
                try:
                    self._doors[port] = Door(self, bound(self._host, port, "--ssh-ports"), job.seq)
                except Conflict:
                    busy.add(port)

    def _open_again(self, port: int, job_seq: int) -> None:
        try:
            self._doors[port] = Door(self, bound(self._host, port, "--ssh-ports"), job_seq)
        except Conflict as error:  # its next `access` moves it
            log.warning("ssh.port_taken", port=port, error=str(error))

    async def _sweep_ports(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_PORTS)
            if len(self._doors) == 1:
                continue
            async with self._opening:
                held = await ports.assigned(self.database)
                for port in [port for port in self._doors if port and port not in held]:
                    await self._doors.pop(port).close()
            await ports.free_those_of_ended_jobs(self.database)

    async def _sweep_keys(self) -> None:
        while True:
            keys.forget_of_ended_jobs(self.database)
            await asyncio.sleep(SWEEP_KEYS)

    async def _close_doors(self) -> None:
        for door in self._doors.values():
            await door.close()
        self._doors.clear()

    # -- connections ---------------------------------------------------------------------------------------

    async def prepare(self) -> None:
        """Loads what the first connection needs, beside the loop."""
        if self._connect is None:
            self._connect = await asyncio.to_thread(_load)

    def expect(self) -> None:
        """Somebody will come soon."""
        if self._connect is None:
            self.own(asyncio.create_task(self.prepare()))

    async def welcome(self, connection: socket.socket, job_seq: int | None) -> None:
        """Hands an accepted connection to SSH, or closes it when too many have not logged in."""
        try:
            if len(self._strangers) >= STRANGERS:
                log.warning("ssh.too_many", limit=STRANGERS)
                return connection.close()
            await self.prepare()
            assert self._connect
            login = self._connect(self, job_seq)
            self._strangers.add(login)
            loop = asyncio.get_running_loop()
            await loop.connect_accepted_socket(login.protocol, connection)
        except OSError:
            connection.close()

    def admit(self, login: "Login", account_id: int, key_id: str) -> bool:
        """Whether the account may have one more connection."""
        self._strangers.discard(login)
        if sum(one.account_id == account_id for one in self._inside) >= CONNECTIONS_OF_ACCOUNT:
            return False
        self._inside[login] = key_id
        return True

    def left(self, login: "Login") -> None:
        self._strangers.discard(login)
        self._inside.pop(login, None)

    def revoke(self, key_id: str) -> None:
        """Closes what a removed key has opened."""
        for login in [login for login, key in self._inside.items() if key == key_id]:
            login.leave("the key was removed")


class Door:
    """One listening port; with `job_seq` it leads to that job alone."""

    def __init__(self, gateway: SshGateway, listener: socket.socket, job_seq: int | None) -> None:
        self._gateway = gateway
        self._listener = listener
        self._job_seq = job_seq
        self._accepting = asyncio.create_task(self._accept())

    @property
    def port(self) -> int:
        return self._listener.getsockname()[1]

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._listener)
            except OSError as error:  # out of descriptors: others may close theirs
                log.warning("ssh.accept_failed", error=str(error))
                await asyncio.sleep(0.2)
                continue
            connection.setblocking(False)
            self._gateway.own(asyncio.create_task(self._gateway.welcome(connection, self._job_seq)))

    async def close(self) -> None:
        self._accepting.cancel()
        await asyncio.gather(self._accepting, return_exceptions=True)
        self._listener.close()


def _load() -> "Callable[[SshGateway, int | None], Login]":
    from roost.gateways.ssh.connection import Login, Terms

    terms: Terms | None = None

    def connect(gateway: SshGateway, job_seq: int | None) -> Login:
        nonlocal terms
        terms = terms or Terms(gateway.key.private)
        return Login(gateway, terms, job_seq)

    return connect
