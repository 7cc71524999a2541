"""A gateway before real servers on loopback: sandboxes that are awake or asleep as a test says, dialled for real."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from dataclasses import dataclass, field, replace
from pathlib import Path

from roost.errors import Asleep, Conflict, NotFound, Refused, RoostError
from roost.gateways.http.request import Request
from roost.gateways.http.routing import Denial, Passed
from roost.gateways.http.server import Gateway
from roost.settings import ServeSettings

SETTINGS = ServeSettings(Path("/nonexistent"), Path("/nonexistent"))
DOMAIN = "apps.localhost"


@dataclass
class Sandbox:
    """Of a job, as `jobs/run.py:Run` shows it."""

    vm_id: str
    port: int
    frozen: bool = False
    gone: bool = False
    failed: str | None = None
    until: float = field(default_factory=lambda: time.time() + 10)  # when what it runs has to listen
    users: int = 0

    @property
    def job(self) -> "Sandbox":
        return self

    @property
    def awake(self) -> bool:
        return not self.frozen and not self.gone

    @contextlib.contextmanager
    def use(self) -> Generator[None]:
        self.begin_use()
        try:
            yield
        finally:
            self.end_use()

    def listens_by(self) -> float:
        return 0.0 if self.failed else self.until

    def begin_use(self) -> None:
        self.users += 1

    def end_use(self) -> None:
        self.users -= 1


@dataclass
class Name:
    """A host name, and what it means now."""

    key: str
    port: int
    run: Sandbox | None
    account_id: int = 1
    admits: Callable[[Request], Passed | Denial] | None = None

    def admit(self, request: Request) -> Passed | Denial:
        return self.admits(request) if self.admits else Passed(request.target, request.headers)


@dataclass
class World:
    """What the gateway is told of hosts and sandboxes; the number of a sandbox's port is that of a real server."""

    names: dict[str, Name] = field(default_factory=dict)
    forgetful: bool = False  # no route is known without asking
    wakes: list[str] = field(default_factory=list)
    wake_seconds: float = 0.0
    wake: Callable[[Name], Awaitable[Sandbox]] | None = None
    dials: list[tuple[str, int]] = field(default_factory=list)
    waking: dict[str, asyncio.Task[Sandbox]] = field(default_factory=dict)
    fails: RoostError | None = None

    def add(self, label: str, port: int, account: int = 1) -> Name:
        host = f"{label}.{DOMAIN}"
        self.names[host] = Name(host, port, Sandbox(f"{label}-1", port), account)
        return self.names[host]

    def known(self, host: str) -> Name | None:
        return None if self.forgetful else self.names.get(host)

    async def find(self, host: str) -> Name:
        if host not in self.names:
            raise NotFound(f"there is no sandbox at <{host}>")
        return replace(self.names[host])

    async def awake(self, route: Name, within: float) -> Sandbox:
        if self.fails:
            raise self.fails
        task = self.waking.get(route.key)
        if task is None or task.done():
            task = self.waking[route.key] = asyncio.create_task(self._wake(self.names[route.key]))
        try:
            return await asyncio.wait_for(asyncio.shield(task), within)
        except TimeoutError:
            raise Asleep("it did not wake in time") from None

    async def _wake(self, name: Name) -> Sandbox:
        self.wakes.append(name.key)
        await asyncio.sleep(self.wake_seconds)
        if self.wake:
            name.run = await self.wake(name)
        assert name.run is not None
        name.run.frozen = False
        return name.run

    async def dial(self, sandbox: str, port: int, host: str | None = None) -> socket.socket:
        self.dials.append((sandbox, port))
        owner = next((name.run for name in self.names.values() if name.run and name.run.vm_id == sandbox), None)
        if owner is None or owner.gone:
            raise NotFound(f"there is no sandbox {sandbox}")
        if owner.frozen:
            raise Conflict(f"sandbox {sandbox} stands still")
        connection = socket.socket()
        connection.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
        except OSError as error:
            connection.close()
            raise Refused(f"nothing listens on port {port} of 127.0.0.1, ::1") from error
        return connection


@dataclass
class Front:
    """A running gateway."""

    gateway: Gateway
    world: World
    port: int

    def url(self, label: str, path: str = "/") -> str:
        return f"http://{label}.{DOMAIN}:{self.port}{path}"


@contextlib.asynccontextmanager
async def front(settings: ServeSettings = SETTINGS) -> AsyncIterator[Front]:
    world = World()
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.setblocking(False)
    async with Gateway(world, world, settings) as gateway:
        await gateway.listen(listener)
        yield Front(gateway, world, listener.getsockname()[1])
