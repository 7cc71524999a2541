"""The control plane: builds its parts in order, serves until it is told to stop, and takes them down in reverse.

It holds no privilege and refuses to; everything that needs one is asked of the node. `serve` is what the command
line calls. The events on standard error never hold scripts, environments or tokens.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import AsyncGenerator, Generator
from typing import TYPE_CHECKING, Any, cast

import structlog
import uvicorn
import uvloop
from structlog.typing import FilteringBoundLogger

from roost import listening
from roost.accounts.audit import Audit
from roost.accounts.default_images import DefaultImages
from roost.accounts.identity import identity_of
from roost.accounts.oidc import provider_of
from roost.accounts.quotas import Quotas, defaults
from roost.accounts.tokens import Tokens, ensure_account
from roost.api.app import build
from roost.api.connection import Connections
from roost.api.exec_stream import MAX_AHEAD
from roost.api.plane import ControlPlane
from roost.api.timing import Timed
from roost.api.traced import Traced
from roost.db import secret
from roost.db.database import Database
from roost.db.migrate import migrate
from roost.errors import Invalid, StateUnwritable
from roost.events import write_events
from roost.gateways.admission import Admission
from roost.gateways.hosts import hosts_of
from roost.gateways.http.server import Gateway
from roost.gateways.routes import SIGNED_LINKS, Routes
from roost.gateways.ssh.gateway import SshGateway
from roost.gateways.tls.gateway import https, require_certificates
from roost.jobs.idle import Patience
from roost.jobs.live import LiveJobs
from roost.jobs.microvms import MicroVMs
from roost.jobs.scheduler import Scheduler
from roost.outward import allowed
from roost.sandboxes.images import Images
from roost.sandboxes.placement import SingleNode
from roost.sandboxes.pulls import registries
from roost.settings import OIDC_SECRET_VARIABLE, ServeSettings
from roost.tracing import Tracer, tracing
from roost.webhooks.deliverer import Deliverer
from roost.workspaces.collection import Collection, Retention

if TYPE_CHECKING:
    from roost.node.client import NodeClient

EXPECTED = ("without completing handshake", "Invalid HTTP request received", "Unsupported upgrade request")
LAST_ANSWERS = 3  # seconds for requests that are under way when everything else has stopped
FIRST_TOKEN_LENGTH = 16  # characters, at least

log: FilteringBoundLogger = structlog.get_logger()


def serve(settings: ServeSettings, first_token: str) -> None:
    """Returns after an orderly end (SIGTERM, SIGINT); a RoostError says why it could not begin or go on."""
    uvloop.run(control_plane(settings, first_token))


def require_usable(settings: ServeSettings) -> None:
    """Raises Invalid for options that the control plane would refuse once it runs, without starting any of it."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    hosts_of(settings)
    registries(settings.registries)
    allowed(settings.allow_private)
    defaults(settings.default_quotas)
    provider_of(settings, os.environ.get(OIDC_SECRET_VARIABLE))
    if settings.gateway_tls:
        require_certificates(settings)


async def control_plane(settings: ServeSettings, first_token: str) -> None:
    if os.geteuid() == 0:
        raise Invalid("`roost serve` must not run as root; `roost up` starts it as an ordinary user")
    if len(first_token) < FIRST_TOKEN_LENGTH:
        raise Invalid("`roost serve` needs the first account's token on standard input; `roost up` gives it")
    hosts, known, outward = hosts_of(settings), registries(settings.registries), allowed(settings.allow_private)
    default_quotas = defaults(settings.default_quotas)
    write_events("serve", settings.log_format)
    with listening.listener("--listen", settings.listen, settings.inherited) as listener:
        _make_state_dir(settings)
        key = secret.load(settings.secret_key)
        await migrate(settings.database)
        async with (
            tracing(settings.otlp_endpoint) as tracer,
            Database(settings.database) as database,
            _node(settings) as node,
        ):
            await ensure_account(database, first_token)
            placement, quotas = SingleNode(), Quotas(database, default_quotas)
            patience = Patience(settings.idle_minutes * 60, settings.cold_after_minutes * 60)
            retention = Retention(settings.keep_revisions, settings.keep_days)
            async with (
                LiveJobs(database, key, node, placement, patience, known, quotas, tracer) as live,
                Collection(database, node, live.link, live.unrecorded, retention) as collection,
                SshGateway(settings, database, live, node) as ssh,
                Scheduler(database, key, live, node) as scheduler,
                Deliverer(database, key, outward) as webhooks,
                Audit(database, settings.audit_days) as audit,
                MicroVMs(database, key, live) as microvms,
            ):
                routes = Routes(database, live, hosts, Admission(key.derive(SIGNED_LINKS)))
                tokens, images = Tokens(database), Images(node)
                default_images = DefaultImages(database, settings.default_image)
                await default_images.load()
                identity = identity_of(database, tokens, key, settings)
                plane = ControlPlane(
                    database,
                    tokens,
                    identity,
                    live,
                    placement,
                    images,
                    node,
                    collection,
                    ssh,
                    routes,
                    key,
                    scheduler,
                    outward,
                    webhooks,
                    microvms,
                    quotas,
                    audit,
                    default_images,
                )
                async with http_gateway(routes, node, settings, tracer) as gateway:
                    await _run(plane, listener, gateway)


@contextlib.asynccontextmanager
async def http_gateway(
    routes: Routes, node: "NodeClient", settings: ServeSettings, tracer: Tracer
) -> AsyncGenerator[Gateway]:
    """Listens, also by TLS where that is set."""
    with contextlib.ExitStack() as sockets:
        inherited = settings.inherited
        plain = sockets.enter_context(listening.listener("--gateway", settings.gateway, inherited))
        async with contextlib.AsyncExitStack() as parts:
            gateway = await parts.enter_async_context(Gateway(routes, node, settings, tracer))
            if settings.gateway_tls:
                secure = listening.listener("--gateway-tls", settings.gateway_tls, inherited)
                await parts.enter_async_context(https(gateway, sockets.enter_context(secure), settings))
            await gateway.listen(plain)
            yield gateway


async def _run(plane: ControlPlane, listener: socket.socket, gateway: Gateway) -> None:
    app, tracer, connections = build(plane, gateway), plane.live.tracer, Connections()
    config = uvicorn.Config(
        Timed(Traced(app, tracer) if tracer.on else app, app.state.durations),
        loop="none",
        http=cast(Any, connections.protocol),
        ws="websockets-sansio",
        ws_max_size=MAX_AHEAD,
        ws_ping_timeout=60.0,  # seconds; a client that reads slowly answers pings late
        ws_per_message_deflate=False,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=listening.BACKLOG,
        timeout_graceful_shutdown=LAST_ANSWERS,
    )
    logging.getLogger("uvicorn.error").addFilter(_says_something)
    server = Server(config)
    told_to_stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told_to_stop.set)
    serving = asyncio.create_task(server.serve([listener]))
    watching = asyncio.create_task(connections.watch())
    stop = asyncio.create_task(told_to_stop.wait())
    host, port, *_ = listener.getsockname()
    log.info("serve.listening", host=host, port=port, pid=os.getpid())
    try:
        await asyncio.wait({serving, stop, plane.live.failure}, return_when=asyncio.FIRST_COMPLETED)
        await gateway.stop()
        await plane.live.shut_down()
    finally:
        stop.cancel()
        server.should_exit = True
        await serving
        watching.cancel()
    if plane.live.failure.done():
        plane.live.failure.result()
    log.info("serve.end")


def _says_something(record: logging.LogRecord) -> bool:
    """uvicorn complains of what any stranger can send, and of WebSockets that were refused, as they are meant to be."""
    return not any(one in record.getMessage() for one in EXPECTED)


class Server(uvicorn.Server):
    """Leaves signals to us: requests are answered until the sandboxes have stopped."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


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
