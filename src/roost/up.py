"""`roost up`: starts both programs of one instance, keeps them running, and stops them in order.

It alone decides their privileges: `roost node` stays root; `roost serve` becomes an ordinary user without
capabilities, in a view of the machine that holds only what it needs (`roost.view`). Neither outlives this
process, however it ends. It parses nothing from the network.
"""

import asyncio
import os
import pwd
import shlex
import shutil
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roost import doctor, handouts, instance, linux, view
from roost.errors import Conflict, Invalid, NoCapacity, SetupMissing
from roost.instance import Credentials, Instance
from roost.listening import address_of, bound
from roost.node import protocol
from roost.program import FIRST_KEPT, Program, environment, exit_status, launch, manner, roost, say
from roost.service import Systemd
from roost.settings import OIDC_SECRET_VARIABLE, STANDARD, LogFormat, ServeSettings
from roost.tracing import require_endpoint

Connect = Callable[..., Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]

HEALTH_SECONDS = 600  # a few are usual; an emulated machine takes minutes for a first start
STILL_SECONDS = 20  # after which it is said what is waited for
SERVE_STOP_SECONDS = 40  # it ends every sandbox first, and a script has 5 s after TERM
NODE_STOP_SECONDS = 60  # it destroys its idle members
MAX_HEALTH = 16384  # bytes of one answer about health
PLACES_NOT_SHOWN = (Path("/"), Path("/tmp"), Path("/proc"), Path("/dev"))  # the control plane has its own
# The control plane's options that it alone can judge
CHECKED = (
    *("gateway_tls", "gateway_url", "domains", "registries", "allow_private", "default_quotas"),
    *("oidc_issuer", "oidc_client_id", "oidc_client_secret", "oidc_domains", "oidc_emails"),
)
HELLO = "echo Hello from a sandbox of $(. /etc/os-release; echo $PRETTY_NAME)"


@dataclass(frozen=True)
class UpSettings:
    """What `roost up` was asked for. `listen` is HOST:PORT; port 0 takes a free one."""

    state: Path
    listen: str
    images: Path
    store: str | None
    store_options: Path | None
    layer_cache_gb: int
    prefix6: str | None
    runtime: str | None
    min_pool_size: int
    max_pool_size: int
    user: str
    hello: bool
    log_format: LogFormat
    serving: dict[str, Any]  # the control plane's own options, by the names of ServeSettings


def run(settings: UpSettings) -> None:
    """Returns when it was told to stop and everything has stopped; a RoostError says why it could not run."""
    if os.geteuid() != 0:
        raise SetupMissing("`roost up` needs root for mounts, namespaces and the firewall; start it with sudo")
    systemd = Systemd()
    account = _account(settings.user)
    certificate_places(settings.serving)
    require_endpoint(settings.serving.get("otlp_endpoint"))
    require_tls(settings.serving)
    require_image(settings.images, settings.serving.get("default_image", STANDARD))
    doctor.require(settings.images, settings.runtime)
    os.umask(0o022)
    fresh = not settings.state.exists()
    _make_state(settings, account)
    claimed = instance.claim(settings.state)
    doors: dict[str, socket.socket] = {}
    try:
        doors = open_doors(settings)
        host, port = _address(doors["listen"])
        credentials = instance.settle_credentials(settings.state, f"http://{_in_url(_reachable(host))}:{port}")
        claimed.announce(credentials.api_url)
        asyncio.run(_supervise(settings, claimed, account, doors, credentials, systemd))
    except (Conflict, Invalid):  # refused before anything started
        if fresh:
            shutil.rmtree(settings.state)
        raise
    finally:
        close_doors(doors)
        claimed.release()


def _account(user: str) -> pwd.struct_passwd:
    try:
        account = pwd.getpwnam(user)
    except KeyError:
        text = f"there is no user {user!r}; `make setup` makes it, as does `adduser --system --group {user}`"
        raise SetupMissing(text) from None
    if account.pw_uid == 0:
        raise Invalid("--user must not be root: the control plane reads what the network sends")
    return account


def _make_state(settings: UpSettings, account: pwd.struct_passwd) -> None:
    """Directories with their owners; what exists already keeps its mode, except the private ones."""
    try:
        if not settings.state.exists():
            settings.state.mkdir(mode=0o711, parents=True)
        settings.images.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, owner in (("serve", account.pw_uid), ("node", 0)):
            place = settings.state / name
            place.mkdir(mode=0o700, exist_ok=True)
            place.chmod(0o700)
            os.chown(place, owner, account.pw_gid if owner else 0)
    except OSError as error:
        text = f"cannot make {error.filename}: {error.strerror}; choose another directory with --state"
        raise SetupMissing(text) from error


def open_doors(settings: UpSettings) -> dict[str, socket.socket]:
    """By option, every listening socket of the control plane. Conflict where an address is taken."""
    wanted = {"listen": settings.listen}
    wanted |= {name.replace("_", "-"): settings.serving.get(name) for name in ("gateway", "gateway_tls", "ssh")}
    doors: dict[str, socket.socket] = {}
    try:
        for name, where in wanted.items():
            if where:
                doors[name] = bound(*address_of(where, f"--{name}"), f"--{name}")
    except (Conflict, Invalid):
        close_doors(doors)
        raise
    return doors


def close_doors(doors: dict[str, socket.socket]) -> None:
    for door in doors.values():
        door.close()


def _address(door: socket.socket) -> tuple[str, int]:
    host, port, *_ = door.getsockname()
    return str(host), int(port)


def _reachable(host: str) -> str:
    """Where a client on this machine reaches what listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


# ---- the two programs --------------------------------------------------------------------------------------


def node_command(settings: UpSettings, claimed: Instance) -> list[str]:
    group = settings.user
    command = [*roost(), "node", "--state", f"{settings.state / 'node'}", "--images", f"{settings.images}"]
    command += ["--runtime-dir", f"{claimed.runtime_dir}", "--instance", f"{claimed.number}", "--group", group]
    command += ["--min-pool-size", f"{settings.min_pool_size}", "--max-pool-size", f"{settings.max_pool_size}"]
    command += ["--layer-cache-gb", f"{settings.layer_cache_gb}", "--log-format", settings.log_format]
    command += ["--prefix6", settings.prefix6] if settings.prefix6 else []
    command += ["--store", settings.store] if settings.store else []
    command += ["--store-options", f"{settings.store_options.resolve()}"] if settings.store_options else []
    return [*command, "--runtime", settings.runtime] if settings.runtime else command


def serve_command(settings: UpSettings, claimed: Instance, doors: dict[str, socket.socket]) -> list[str]:
    """The doors are handed down as descriptors, in this order; their addresses are told as they really are."""
    command = [*roost(), "serve", "--state", f"{settings.state / 'serve'}", "--node-socket", f"{claimed.node_socket}"]
    options = dict(settings.serving)
    for name, door in doors.items():
        host, port = _address(door)
        options[name.replace("-", "_")] = f"{_in_url(host)}:{port}"
    for number, name in enumerate(doors, FIRST_KEPT):
        command += ["--inherited", f"{name}={number}"]
    return [*command, "--log-format", settings.log_format, *serve_options(options)]


REPEATED = {
    "default_quotas": "--default-quota",
    "domains": "--domain",
    "oidc_domains": "--oidc-domain",
    "oidc_emails": "--oidc-email",
    "registries": "--registry",
    "allow_private": "--allow-private",
}


def serve_options(options: dict[str, Any]) -> list[str]:
    """As `roost serve` reads them."""
    words: list[str] = []
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        if name in REPEATED:
            words += [word for one in value for word in (REPEATED[name], str(one))]
        elif isinstance(value, tuple):
            words += [option, f"{value[0]}-{value[1]}"]
        elif isinstance(value, Path):
            words += [option, f"{value.absolute()}"]  # links stay: a renewal may repoint them
        elif value is not None:
            words += [option, f"{value}"]
    return words


def require_tls(options: dict[str, Any]) -> None:
    """Raises Invalid where TLS lacks certificates, or certificates would be used by nothing."""
    given = [name for name in ("certificate", "certificate_key", "acme") if options.get(name)]
    if options.get("gateway_tls") and not given:
        raise Invalid("--gateway-tls needs certificates: give --certificate and --certificate-key, or --acme URL")
    if given and not options.get("gateway_tls"):
        option = f"--{given[0].replace('_', '-')}"
        raise Invalid(f"{option} is for TLS, which nothing listens for: give --gateway-tls HOST:PORT as well")


def require_image(images: Path, default: str) -> None:
    """Raises SetupMissing where there is nothing to start a sandbox from, or not what most are to start from."""
    try:
        names = {path.stem for path in (images / "names").glob("[!.]*.json")}
    except OSError as error:
        raise SetupMissing(f"{images} cannot be read: {error.strerror}") from error
    if names and default not in {*names, STANDARD}:
        raise SetupMissing(
            f"--default-image: there is no image {default!r} in {images}, only {', '.join(sorted(names))}. Start Roost "
            f"without the option and make it: `roost image pull REFERENCE --name {default}`"
        )
    if not names:
        raise SetupMissing(
            f"there is no image in {images}, so no job could start; `make setup` builds one, as does "
            f"`roost node-image ensure standard --images {shlex.quote(str(images))}` as root"
        )


def certificate_places(options: dict[str, Any]) -> list[Path]:
    """Directories that the control plane must see, so that files which are replaced there are seen as well.

    Raises Invalid for a file in a directory that cannot be shown whole.
    """
    places: dict[Path, None] = {}
    for name in ("certificate", "certificate_key", "acme_ca", "oidc_client_secret"):
        path = options.get(name)
        if path is None:
            continue
        option = f"--{name.replace('_', '-')}"
        if not path.is_file():
            raise Invalid(f"{option} {path}: there is no such file")
        for place in (path.absolute().parent, path.resolve().parent):
            if place in PLACES_NOT_SHOWN:
                raise Invalid(f"{option} {path}: put the file into a directory of its own, not into {place} itself")
            places[place] = None
    return list(places)


def _launch_node(command: list[str]) -> int:
    return launch(command, environment(*os.environ), None, lambda: None)


def _launch_serve(
    command: list[str], token: str, seen: view.View, account: pwd.struct_passwd, doors: dict[str, socket.socket]
) -> int:
    """The token goes in on standard input, where no list of processes shows it."""

    def drop() -> None:
        view.enter(seen)
        linux.become(account.pw_uid, account.pw_gid)
        os.umask(0o077)

    reading, writing = os.pipe()
    try:
        traces = [name for name in os.environ if name.startswith("OTEL_")]
        variables = environment(
            "LANG", "LC_ALL", "TZ", "TERM", "NO_COLOR", "JOURNAL_STREAM", OIDC_SECRET_VARIABLE, *traces
        ) | {
            "HOME": "/tmp",
            "PYTHONUNBUFFERED": "1",
        }
        pid = launch(command, variables, reading, drop, [door.fileno() for door in doors.values()])
        os.write(writing, token.encode() + b"\n")
        return pid
    finally:
        os.close(reading)
        os.close(writing)


# ---- running them ------------------------------------------------------------------------------------------


async def _supervise(
    settings: UpSettings,
    claimed: Instance,
    account: pwd.struct_passwd,
    doors: dict[str, socket.socket],
    credentials: Credentials,
    systemd: Systemd,
) -> None:
    stop, hasten = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, _on_signal, stop, hasten)

    shallow = [claimed.runtime_dir, *certificate_places(settings.serving)]
    seen = view.view_of(
        [*view.interpreter_paths(), handouts.GUIDES], writable=[settings.state / "serve"], shallow=shallow
    )
    for_node = node_command(settings, claimed)
    for_serve, address = serve_command(settings, claimed, doors), _address(doors["listen"])
    node = Program("node", lambda: _launch_node(for_node))
    serve = Program("serve", lambda: _launch_serve(for_serve, credentials.api_token, seen, account, doors))

    if _needs_check(settings.serving):
        await _check(lambda: _launch_serve([*for_serve, "--check"], credentials.api_token, seen, account, doors))
    keep_node = asyncio.create_task(node.keep())
    keep_serve = asyncio.create_task(serve.keep())
    welcome = asyncio.create_task(_welcome(settings, claimed, address, credentials, (node, serve), systemd))
    stopped = asyncio.create_task(stop.wait())
    ends = {keep_node, keep_serve, stopped}
    try:
        await asyncio.wait(ends | {welcome}, return_when=asyncio.FIRST_COMPLETED)
        if welcome.done() and not welcome.exception():
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopped.cancel()
        welcome.cancel()
        await asyncio.wait([welcome])
        systemd.tell("STOPPING=1")
        say("stopping: first the control plane with its sandboxes, then the node")
        close_doors(doors)  # nobody comes after it
        await serve.stop(keep_serve, SERVE_STOP_SECONDS, hasten)
        await node.stop(keep_node, NODE_STOP_SECONDS, hasten)
    for task in (keep_node, keep_serve, welcome):
        if not task.cancelled() and (failure := task.exception()):
            raise failure


def _needs_check(serving: dict[str, Any]) -> bool:
    """Whether there are options that can be wrong; most people give none, and need not wait for a check."""
    usual = ServeSettings(Path(), Path())
    return any(serving.get(name, getattr(usual, name)) != getattr(usual, name) for name in CHECKED)


async def _check(launch_check: Callable[[], int]) -> None:
    """Raises Invalid where the control plane would refuse its options, before the node has begun anything."""
    status = await exit_status(launch_check())
    if status != 0:
        raise Invalid(f"the control plane cannot use these options ({manner(status)}); its message above says why")


def _on_signal(stop: asyncio.Event, hasten: asyncio.Event) -> None:
    (hasten if stop.is_set() else stop).set()


async def _welcome(
    settings: UpSettings,
    claimed: Instance,
    address: tuple[str, int],
    credentials: Credentials,
    programs: tuple[Program, Program],
    systemd: Systemd,
) -> None:
    """Waits until both programs answer, then says how to use them."""
    say(f"starting Roost (instance {claimed.number}, state in {settings.state})")
    await _health(claimed.node_socket, (_reachable(address[0]), address[1]))
    for program in programs:
        program.healthy = True
    if settings.hello:
        await _hello(settings.state)
    print(welcome(settings.state, credentials), flush=True)
    systemd.tell("READY=1")


def welcome(state: Path, credentials: Credentials) -> str:
    """What a newcomer needs next."""
    program = Path(sys.executable).with_name("roost")  # whole: the other terminal may be in another directory
    which = "" if state == instance.DEFAULT_STATE else f" --state {shlex.quote(str(state))}"
    return "\n".join(
        (
            f"Roost is ready: {credentials.api_url}",
            f"  try          {program} run{which} 'echo hello'",
            f"  credentials  {instance.credentials_path(state)}",
            "  stop         Ctrl-C here, or SIGTERM to this process",
        )
    )


async def _health(node_socket: Path, address: tuple[str, int]) -> None:
    """Waits for each of them to answer. NoCapacity when that takes too long."""
    node = _until_answered(b"200", asyncio.open_unix_connection, str(node_socket), path="/v1/node")
    await _patiently("node", node)
    ready = b'"node":"ready"'
    await _patiently("serve", _until_answered(ready, asyncio.open_connection, *address, path="/api/v1/health"))


async def _patiently(program: str, answered: Coroutine[Any, Any, None]) -> None:
    waiting = asyncio.ensure_future(answered)
    try:
        for waited in range(0, HEALTH_SECONDS, STILL_SECONDS):
            if waited:
                say(f"`roost {program}` has not answered for {waited} s; still waiting")
            await asyncio.wait({waiting}, timeout=STILL_SECONDS)
            if waiting.done():
                return waiting.result()
    finally:
        waiting.cancel()
    raise NoCapacity(f"`roost {program}` has not answered within {HEALTH_SECONDS} s; the messages above say why")


async def _until_answered(words: bytes, connect: Connect, *where: str | int, path: str) -> None:
    while words not in await _answer(connect, *where, path=path):
        await asyncio.sleep(0.02)


async def _answer(connect: Connect, *where: str | int, path: str) -> bytes:
    """What an HTTP server there says to a GET, head and body, cut at a limit; nothing when there is none."""
    head = ("Host: roost", f"{protocol.HEADER}: {protocol.VERSION}", "Connection: close")
    request = "\r\n".join((f"GET {path} HTTP/1.1", *head, "", ""))
    answer = b""
    try:
        async with asyncio.timeout(10):
            reader, writer = await connect(*where)
            try:
                writer.write(request.encode())
                while len(answer) < MAX_HEALTH and (more := await reader.read(MAX_HEALTH)):
                    answer += more
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return b""
    return answer


async def _hello(state: Path) -> None:
    """A first job by the same command that a user types, through the HTTP API."""
    print(f"$ roost run '{HELLO}'", flush=True)
    command = [*roost(), "run", "--state", str(state), HELLO]
    pid = launch(command, environment(*os.environ), None, lambda: None)
    status = await exit_status(pid)
    if status != 0:
        say(f"the first job failed ({manner(status)}); `roost doctor` says what this machine lacks")
