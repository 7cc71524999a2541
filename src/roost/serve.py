"""The control plane: builds its parts in order, serves until it is told to stop, and takes them down in reverse.

It holds no privilege and refuses to; everything that needs one is asked of the node. `serve` is what the command
line calls. The events on standard error are JSON lines and never hold scripts, environments or tokens.
"""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Generator
from typing import TYPE_CHECKING

import structlog
import uvicorn
import uvloop
from structlog.typing import FilteringBoundLogger

from roost.accounts.tokens import Tokens, ensure_account
from roost.api.app import build
from roost.api.plane import ControlPlane
from roost.db import secret
from roost.db.database import Database
from roost.db.migrate import migrate
from roost.errors import Conflict, Invalid, StateUnwritable
from roost.events import write_events
from roost.jobs.live import LiveJobs
from roost.sandboxes.images import Images
from roost.sandboxes.placement import SingleNode
from roost.settings import ServeSettings
from roost.workspaces.collection import Collection, Retention

if TYPE_CHECKING:
    from roost.node.client import NodeClient

BACKLOG = 1024  # connections; a burst of submissions must not be refused
LAST_ANSWERS = 3  # seconds for requests that are under way when everything else has stopped
FIRST_TOKEN_LENGTH = 16  # characters, at least

log: FilteringBoundLogger = structlog.get_logger()


def serve(settings: ServeSettings, first_token: str) -> None:
    """Returns after an orderly end (SIGTERM, SIGINT); a RoostError says why it could not begin or go on."""
    uvloop.run(control_plane(settings, first_token))


async def control_plane(settings: ServeSettings, first_token: str) -> None:
    if os.geteuid() == 0:
        raise Invalid("`roost serve` must not run as root; `roost up` starts it as an ordinary user")
    if len(first_token) < FIRST_TOKEN_LENGTH:
        raise Invalid("`roost serve` needs the first account's token on standard input; `roost up` gives it")
    write_events("serve")
    with listening(settings.host, settings.port) as listener:
        _make_state_dir(settings)
        key = secret.load(settings.secret_key)
        await migrate(settings.database)
        async with Database(settings.database) as database, _node(settings) as node:
            await ensure_account(database, first_token)
            placement = SingleNode()
            retention = Retention(settings.keep_revisions, settings.keep_days)
            async with (
                LiveJobs(database, key, node, placement) as live,
                Collection(database, node, live.link, live.unrecorded, retention) as collection,
            ):
                plane = ControlPlane(database, Tokens(database), live, placement, Images(node), node, collection)
                await _run(plane, listener)


async def _run(plane: ControlPlane, listener: socket.socket) -> None:
    config = uvicorn.Config(
        build(plane),
        loop="none",
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=LAST_ANSWERS,
    )
    server = Server(config)
    told_to_stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told_to_stop.set)
    serving = asyncio.create_task(server.serve([listener]))
    stop = asyncio.create_task(told_to_stop.wait())
    host, port, *_ = listener.getsockname()
    log.info("serve.listening", host=host, port=port, pid=os.getpid())
    try:
        await asyncio.wait({serving, stop, plane.live.failure}, return_when=asyncio.FIRST_COMPLETED)
        await plane.live.shut_down()
    finally:
        stop.cancel()
        server.should_exit = True
        await serving
    if plane.live.failure.done():
        plane.live.failure.result()
    log.info("serve.end")


class Server(uvicorn.Server):
    """Leaves signals to us: requests are answered until the sandboxes have stopped."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


@contextlib.contextmanager
def listening(host: str, port: int) -> Generator[socket.socket]:
    """A bound socket. Raises Conflict when the port is taken."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        raise Conflict(
            f"cannot listen on {host}:{port}: {error.strerror}; stop what uses it, or choose another address "
            "with --listen HOST:PORT"
        ) from error
    with listener:
        listener.setblocking(False)
        yield listener


def _make_state_dir(settings: ServeSettings) -> None:
    try:
        settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(settings.state_dir, os.W_OK):
            raise StateUnwritable(f"{settings.state_dir} cannot be written; give it to the user that serves")
    except OSError as error:
        raise StateUnwritable(f"{settings.state_dir} cannot be made: {error.strerror}") from error


def _node(settings: ServeSettings) -> "NodeClient":
    from roost.node.client import NodeClient

    return NodeClient(settings.node_socket)
