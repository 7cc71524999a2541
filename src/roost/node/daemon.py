"""The node daemon: builds the node in order, answers the protocol on its Unix socket, and leaves in order.

All that is privileged on a machine happens in this process. It trusts the control plane to be itself (the socket's
group) but not to be sane: bodies are bounded and typed. On SIGTERM, sandboxes that still live are left to the next
node; without any, nothing of this node remains.
"""

import asyncio
import grp
import os
import shutil
import signal
import socket
from base64 import b64decode
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import msgspec
import structlog
import uvloop
from aiohttp import web

from roost import __version__, errors, linux
from roost.errors import condition_of
from roost.events import write_events
from roost.node import capacity, cgroup, delegation, kernel_limits
from roost.node.arrears import Arrears
from roost.node.bodies import answer, message, read
from roost.node.cgroup import Hierarchies
from roost.node.depot import Depot, StoreSettings
from roost.node.dial import DialServer
from roost.node.disk import GIB, Disks, unmount
from roost.node.file_calls import FileCalls
from roost.node.guest import build
from roost.node.images import ImageStore
from roost.node.layers import Layers
from roost.node.member import Ground
from roost.node.network import Network, load_prefix6, parse_prefix6
from roost.node.outside import read_resolvers
from roost.node.places import NodePlaces
from roost.node.pool import Pool
from roost.node.process_calls import ProcessCalls
from roost.node.protocol import (
    HEADER,
    MAX_BODY,
    VERSION,
    BuildImage,
    Check,
    Checked,
    Collect,
    Exec,
    Fault,
    Freeze,
    Image,
    NodeInfo,
    Progress,
    PullImage,
    SaveRequest,
    StartSandbox,
    StopSandbox,
    Wire,
)
from roost.node.runtimes.oci import Machine, OciRuntime, choose
from roost.node.sandboxes import Sandboxes
from roost.node.saver import Saver
from roost.node.sessions import Sessions
from roost.node.sync import Options, open_store
from roost.node.uploads import Uploads
from roost.settings import NodeSettings

SWEEPING = 5.0  # seconds that a member has to die at the very end, after all that it had before
MAX_EXEC_OUTPUT = 16 * 1024 * 1024  # bytes that an exec may ask to have kept

log: structlog.stdlib.BoundLogger = structlog.get_logger()
_encode = msgspec.msgpack.Encoder().encode

_STATUS: list[tuple[type[errors.RoostError], int]] = [
    (errors.Invalid, 400),
    (errors.NotFound, 404),
    (errors.Conflict, 409),
    (errors.TooLarge, 413),
    (errors.Refused, 502),
    (errors.NoCapacity, 503),
    (errors.StoreUnavailable, 503),
    (errors.RoostError, 500),
]


class Node:
    """The protocol's calls, each: read, do, answer."""

    def __init__(
        self,
        ground: Ground,
        sandboxes: Sandboxes,
        images: ImageStore,
        pool: Pool,
        layers: Layers,
        depot: Depot,
        saver: Saver,
    ) -> None:
        self._layers = layers
        self._saver = saver
        self._depot = depot
        self._ground = ground
        self._sandboxes = sandboxes
        self._images = images
        self._pool = pool
        self._leaving = asyncio.Event()

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/v1/node", self.info),
            web.put("/v1/sandboxes/{id}", self.start),
            web.get("/v1/sandboxes/{id}", self.state),
            web.post("/v1/sandboxes/{id}/stop", self.stop),
            web.delete("/v1/sandboxes/{id}", self.forget),
            web.post("/v1/sandboxes/{id}/exec", self.execute),
            web.post("/v1/sandboxes/{id}/freeze", self.freeze),
            web.post("/v1/sandboxes/{id}/thaw", self.thaw),
            web.get("/v1/sandboxes/{id}/log", self.log),
            web.delete("/v1/sandboxes/{id}/log", self.remove_log),
            web.get("/v1/events", self.events),
            web.get("/v1/usage", self.usage),
            web.get("/v1/images", self.images),
            web.post("/v1/images/{name}/pull", self.pull_image),
            web.post("/v1/images/{name}/build", self.build_image),
            web.post("/v1/images/{name}/import", self.import_image),
            web.delete("/v1/images/{name}", self.remove_image),
            web.post("/v1/sandboxes/{id}/save", self.save),
            web.get("/v1/revisions/{id}", self.revision),
            web.get("/v1/unsaved", self.unsaved),
            web.post("/v1/revisions/{id:[0-9a-f]{16}}/recover", self.recover),
            web.post("/v1/revisions/collect", self.collect),
            web.post("/v1/revisions/check", self.check),
        ]

    async def info(self, request: web.Request) -> web.Response:
        total, available = capacity.memory_mb()
        return answer(
            NodeInfo(
                version=__version__,
                protocol=VERSION,
                runtime=self._ground.runtime.name,
                cgroup=self._ground.hierarchies.version,
                cpus=os.cpu_count() or 1,
                memory_mb=total,
                memory_available_mb=available,
                pool=self._pool.status(),
            )
        )

    async def start(self, request: web.Request) -> web.Response:
        body = await read(request, StartSandbox)
        return answer(await self._sandboxes.start(request.match_info["id"], body))

    async def state(self, request: web.Request) -> web.Response:
        return answer(self._sandboxes.state(request.match_info["id"]))

    async def stop(self, request: web.Request) -> web.Response:
        body = await read(request, StopSandbox)
        return answer(await self._sandboxes.stop(request.match_info["id"], body))

    async def forget(self, request: web.Request) -> web.Response:
        self._sandboxes.forget(request.match_info["id"])
        return answer(None)

    async def execute(self, request: web.Request) -> web.Response:
        body = await read(request, Exec)
        if body.output_limit > MAX_EXEC_OUTPUT:
            raise errors.Invalid(f"output_limit may be at most {MAX_EXEC_OUTPUT} bytes")
        return answer(await self._sandboxes.execute(request.match_info["id"], body))

    async def freeze(self, request: web.Request) -> web.Response:
        body = await read(request, Freeze)
        return answer(await self._sandboxes.freeze(request.match_info["id"], body))

    async def thaw(self, request: web.Request) -> web.Response:
        return answer(await self._sandboxes.thaw(request.match_info["id"]))

    async def log(self, request: web.Request) -> web.StreamResponse:
        try:
            after, follow = int(request.query.get("after", "0")), request.query.get("follow") == "1"
        except ValueError:
            raise errors.Invalid("`after` is a position of the log: a whole number") from None
        batches = self._sandboxes.read_log(request.match_info["id"], after, follow)
        return await self.stream(request, batches)

    async def remove_log(self, request: web.Request) -> web.Response:
        self._sandboxes.remove_log(request.match_info["id"])
        return answer(None)

    async def events(self, request: web.Request) -> web.StreamResponse:
        return await self.stream(request, ([event] async for event in self._sandboxes.events()))

    async def usage(self, request: web.Request) -> web.Response:
        return answer(await self._sandboxes.usage())

    async def images(self, request: web.Request) -> web.Response:
        return answer(await asyncio.to_thread(self._images.list))

    async def pull_image(self, request: web.Request) -> web.StreamResponse:
        body = await read(request, PullImage)
        return await self._make_image(request, lambda name, say: self._images.pull(name, body, say))

    async def build_image(self, request: web.Request) -> web.StreamResponse:
        body = await read(request, BuildImage)
        return await self._make_image(request, lambda name, say: self._images.build(name, body, say))

    async def import_image(self, request: web.Request) -> web.StreamResponse:
        chunks = request.content.iter_chunked(256 * 1024)
        return await self._make_image(request, lambda name, say: self._images.import_archive(name, chunks, say))

    async def remove_image(self, request: web.Request) -> web.Response:
        await self._images.remove(request.match_info["name"], request.query.get("unlisted", ""))
        return answer(None)

    async def save(self, request: web.Request) -> web.Response:
        body = await read(request, SaveRequest)
        return answer(await self._sandboxes.save(request.match_info["id"], body))

    async def revision(self, request: web.Request) -> web.Response:
        id, account = request.match_info["id"], request.query.get("account", "0")
        if self._layers.has(id):
            return answer(self._layers.find(id))
        return answer(await self._depot.find(int(account), id))

    async def unsaved(self, request: web.Request) -> web.Response:
        return answer(await asyncio.to_thread(self._layers.unsaved))

    async def recover(self, request: web.Request) -> web.Response:
        return answer(await self._saver.recover(request.match_info["id"]))

    async def collect(self, request: web.Request) -> web.Response:
        body = await read(request, Collect)
        return answer(await self._sandboxes.collect(body, self._depot))

    async def check(self, request: web.Request) -> web.Response:
        body = await read(request, Check)
        return answer(Checked(problems=await self._depot.check(body.account, body.revisions, body.read_data)))

    async def _make_image(
        self, request: web.Request, make: Callable[[str, Callable[[str], None]], Awaitable[Image]]
    ) -> web.StreamResponse:
        lines: asyncio.Queue[Progress | None] = asyncio.Queue()

        async def run() -> None:
            try:
                image = await make(request.match_info["name"], lambda text: lines.put_nowait(Progress(message=text)))
                lines.put_nowait(Progress(message=f"image {image.name} is ready", done=image))
            except errors.RoostError as error:
                lines.put_nowait(Progress(message="failed", error=str(error)))
            except Exception as error:
                log.exception("image.fault", name=request.match_info["name"])
                lines.put_nowait(Progress(message="failed", error=str(condition_of(error, "the image was not made"))))
            finally:
                lines.put_nowait(None)

        async def batches() -> AsyncGenerator[list[Progress]]:
            while (line := await lines.get()) is not None:
                yield [line]

        making = asyncio.create_task(run())
        try:
            return await self.stream(request, batches())
        finally:
            making.cancel()
            await asyncio.gather(making, return_exceptions=True)

    async def stream(self, request: web.Request, batches: AsyncGenerator[Sequence[Wire]]) -> web.StreamResponse:
        """The first batch comes before the headers, so that what is refused is refused with a status."""
        response = web.StreamResponse()
        left = asyncio.ensure_future(self._leaving.wait())
        coming = asyncio.ensure_future(anext(batches, None))
        try:
            while True:
                await asyncio.wait({coming, left}, return_when=asyncio.FIRST_COMPLETED)
                batch = coming.result() if coming.done() else None
                if not response.prepared:
                    await response.prepare(request)
                if batch is None:
                    await response.write_eof()
                    return response
                await response.write(b"".join(map(message, batch)))
                coming = asyncio.ensure_future(anext(batches, None))
        finally:
            for waiting in (coming, left):
                waiting.cancel()
            await asyncio.gather(coming, left, return_exceptions=True)
            await batches.aclose()

    def leave(self) -> None:
        """Ends every stream, so that the server can close."""
        self._leaving.set()


@web.middleware
async def speak_plainly(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Checks the protocol's version, and turns conditions into faults with a status."""
    try:
        if request.headers.get(HEADER) != str(VERSION):
            raise errors.Conflict(f"this node speaks protocol {VERSION}, the caller {request.headers.get(HEADER)}")
        return await handler(request)
    except errors.RoostError as error:
        status = next(status for kind, status in _STATUS if isinstance(error, kind))
        return _fault(status, type(error).__name__, str(error))
    except web.HTTPException as error:
        return _fault(error.status, "RoostError", error.reason)
    except (ConnectionError, asyncio.CancelledError):
        raise
    except Exception as error:
        log.exception("node.fault", path=request.path)
        condition = condition_of(error, "the node could not do it")
        return _fault(500, type(condition).__name__, str(condition))


def _fault(status: int, kind: str, message: str) -> web.Response:
    body = _encode(Fault(kind=kind, message=message))
    return web.Response(status=status, body=body, content_type="application/msgpack")


def lay_guest_root(directory: Path, init: Path) -> None:
    """The members' first root: guest init and empty mount points, read-only. /run itself may forbid execution."""
    unmount(directory)
    directory.mkdir(mode=0o755, exist_ok=True)
    linux.mount("roost", directory, "tmpfs", linux.MS_NODEV | linux.MS_NOSUID, "size=2m,mode=0755")
    for name in ("proc", "dev", "sys", "slot"):
        (directory / name).mkdir(mode=0o755)
    shutil.copyfile(init, directory / "init")
    (directory / "init").chmod(0o755)
    linux.mount(None, directory, None, linux.MS_REMOUNT | linux.MS_RDONLY | linux.MS_NODEV | linux.MS_NOSUID)


def listening_socket(path: Path, group: str, kind: int = socket.SOCK_STREAM) -> socket.socket:
    path.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX, kind)
    listening.bind(str(path))
    os.chown(path, 0, grp.getgrnam(group).gr_gid)
    path.chmod(0o660)
    return listening


def build_ground(settings: NodeSettings) -> Ground:
    """Raises SetupMissing with what to install."""
    hierarchies = Hierarchies.here()
    program = choose(settings.runtime, hierarchies.version)
    for directory in (settings.state / "disks", settings.runtime_dir / "members"):
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o700)  # files of guests lie and are mounted below, also where an older Roost has made it
    prefix6 = parse_prefix6(settings.prefix6) if settings.prefix6 else load_prefix6(settings.state / "prefix6")
    return Ground(
        instance=settings.instance,
        runtime_dir=settings.runtime_dir,
        runtime=OciRuntime(program, settings.runtime_dir / "oci"),
        machine=Machine.here(),
        hierarchies=hierarchies,
        parent=delegation.parent(hierarchies, settings.instance, settings.runtime_dir),
        network=Network(settings.instance, prefix6, read_resolvers()),
        disks=Disks(settings.state / "disks"),
    )


class StoreFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `--store-options` names: how to reach the store, and base64 of the 32 bytes to encrypt with, if so."""

    options: Options = Options()
    key: str | None = None


def load_store(settings: NodeSettings) -> StoreSettings:
    """Raises Invalid for options that cannot be read."""
    url = settings.store or (settings.state / "store").as_uri()
    try:
        text = settings.store_options.read_bytes() if settings.store_options else b"{}"
        told = msgspec.json.decode(text, type=StoreFile)
        return StoreSettings(url, told.options, b64decode(told.key, validate=True) if told.key else None)
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        raise errors.Invalid(f"{settings.store_options} does not hold options of an object store: {error}") from error


def run(settings: NodeSettings) -> None:
    """Until SIGTERM or SIGINT. Raises SetupMissing when this machine lacks something."""
    write_events("node", settings.log_format)
    uvloop.run(_run(settings))


async def _run(settings: NodeSettings) -> None:
    asked_to_stop = _asked_to_stop()  # from now on: a stop during the start must leave nothing behind either
    with _telling():
        settings.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        store = load_store(settings)
        ground = build_ground(settings)
    async with _building(ground):
        await asyncio.to_thread(kernel_limits.raise_limits)
        await asyncio.to_thread(delegation.settle, ground.hierarchies, ground.parent)
        lay_guest_root(settings.runtime_dir / "guest", build.build())
        build.build("microvm")
        await ground.network.open()
        images = ImageStore(settings.images, keeper=settings.state)
        depot = Depot(store, settings.state / "indexes")
        uploads = Uploads(await asyncio.to_thread(open_store, store.url, store.options))
        layers = Layers(settings.state / "layers", ground.disks, images, depot, settings.layer_cache_gb * GIB)
        layers.keep_images()
        await images.sweep()
        saver = Saver(layers, depot, uploads, settings.state / "looks")
        sandboxes = Sandboxes(settings.state, ground, images, layers, saver)
        pool = await sandboxes.recover(settings.min_pool_size, settings.max_pool_size)
        places = NodePlaces(settings.state / "views", sandboxes, layers, saver, ground.disks)
        files = FileCalls(places, uploads)
        saver.release_files = files.release
        arrears = Arrears(layers, saver)
        saver.behind = arrears.grown
        pool.open()
        sandboxes.open()
        arrears.open()
        node = Node(ground, sandboxes, images, pool, layers, depot, saver)
        sessions = Sessions(sandboxes.running)
        processes = ProcessCalls(sandboxes.processes, sandboxes.running, node.stream)
        routes = [*node.routes(), *files.routes(), *sessions.routes(), *processes.routes()]
        dial_socket = listening_socket(settings.runtime_dir / "dial.sock", settings.group, socket.SOCK_SEQPACKET)
        dials = DialServer(dial_socket, sandboxes.awake)
        dials.open()
        runner = await _serve(routes, settings)
    log.info("node.ready", runtime=ground.runtime.name, cgroup=ground.hierarchies.version)
    await asked_to_stop.wait()
    node.leave()
    await dials.close()
    await sessions.close()
    await arrears.close()
    await files.close()
    await sandboxes.close()
    await runner.cleanup()
    uploads.close()
    places.close()
    layers.close()
    await pool.close()
    if not sandboxes.living:
        await leave_nothing(ground)
    log.info("node.stopped", sandboxes_left=len(sandboxes.living))


@asynccontextmanager
async def _building(ground: Ground) -> AsyncGenerator[None]:
    """A start that fails leaves nothing, unless there are members that an earlier node has left, for the next one."""
    try:
        with _telling():
            yield
    except BaseException:
        if not any((ground.runtime_dir / "members").iterdir()):
            with suppress(Exception):  # why it failed is what counts
                await leave_nothing(ground)
        raise


@contextmanager
def _telling() -> Generator[None]:
    """What the machine refuses meanwhile is told as what it lacks."""
    try:
        yield
    except OSError as error:
        text = f"the node cannot start on this machine: {errors.reason(error)}; `sudo roost doctor` names the cure"
        raise errors.SetupMissing(text) from error


async def _serve(routes: list[web.RouteDef], settings: NodeSettings) -> web.AppRunner:
    app = web.Application(middlewares=[speak_plainly], client_max_size=MAX_BODY)
    app.add_routes(routes)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=5, handler_cancellation=True)
    await runner.setup()
    await web.SockSite(runner, listening_socket(settings.runtime_dir / "node.sock", settings.group)).start()
    return runner


def _asked_to_stop() -> asyncio.Event:
    """Set by SIGTERM and SIGINT."""
    loop, asked = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.set)
    return asked


async def leave_nothing(ground: Ground) -> None:
    """Of a node without sandboxes. What does not die stays, with what the next node needs to remove it."""
    try:
        await ground.network.close()
    finally:
        await _leave_no_files(ground)


async def _leave_no_files(ground: Ground) -> None:
    undying = await cgroup.sweep(ground.hierarchies, ground.parent, keep=set(), timeout=SWEEPING)
    if undying:
        log.error(
            "members.left", containers=sorted(undying), cure="the next start removes them once the kernel lets go"
        )
    unmount(ground.runtime_dir / "guest")
    for place in (ground.runtime_dir / "members").glob("*"):
        for mountpoint in ground.site(int(place.name)).mountpoints:
            unmount(mountpoint)
    needed = {"state", "members", "oci"} if undying else {"state"}  # `state`: `roost up`'s claim on the number
    for entry in ground.runtime_dir.iterdir():
        if entry.name not in needed:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    for template in ground.disks.directory.glob("template-*"):
        template.unlink()
