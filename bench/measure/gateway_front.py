"""The gateway's data path alone, as a program: host names that lead to one port on loopback, always awake.

gateway_front.py LISTEN-PORT BACKEND-PORT
"""

import asyncio
import contextlib
import socket
import sys
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

from roost.errors import NotFound, Refused
from roost.gateways.http.request import Request
from roost.gateways.http.routing import Passed
from roost.gateways.http.server import Gateway
from roost.settings import ServeSettings

HOST = "bench.apps.localhost"


@dataclass
class Sandbox:
    vm_id: str = "bench"
    startup_command: str | None = None
    wakes: int = 0
    started_ns: int | None = field(default_factory=time.time_ns)
    awake: bool = True
    uses: int = 0
    used: float = 0.0

    @property
    def job(self) -> "Sandbox":
        return self

    @property
    def state(self) -> "Sandbox":
        return self

    @contextlib.contextmanager
    def use(self) -> Generator[None]:
        yield

    def begin_use(self) -> None:
        self.uses += 1

    def end_use(self) -> None:
        self.uses -= 1
        self.used = time.monotonic()


@dataclass
class Route:
    port: int
    run: Sandbox
    key: str = HOST
    account_id: int = 1

    def admit(self, request: Request) -> Passed:
        return Passed(request.target, request.headers)


class Names:
    """Routes and dialer in one: connections go to loopback, as they do inside a sandbox."""

    def __init__(self, port: int) -> None:
        self._route = Route(port, Sandbox())

    def known(self, host: str) -> Route | None:
        return self._route if host == HOST else None

    async def find(self, host: str) -> Route:
        raise NotFound(host)

    async def awake(self, route: Route, within: float) -> Sandbox:
        return route.run

    async def dial(self, sandbox: str, port: int, host: str | None = None) -> socket.socket:
        connection = socket.socket()
        connection.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
        except OSError as error:
            connection.close()
            raise Refused(str(error)) from error
        return connection


async def main() -> None:
    listen, backend = int(sys.argv[1]), int(sys.argv[2])
    names = Names(backend)
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", listen))
    listener.setblocking(False)
    async with Gateway(names, names, ServeSettings(Path("/nonexistent"), Path("/nonexistent"))) as gateway:
        await gateway.listen(listener)
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
