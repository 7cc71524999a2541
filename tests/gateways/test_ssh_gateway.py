"""The SSH gateway's doors: what it offers, whom it refuses, and how much of a stranger it bears."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import asyncssh
import pytest

from roost.db.migrate import migrate
from roost.errors import Conflict, Invalid
from roost.gateways.ssh import connection, gateway, keys
from roost.gateways.ssh.gateway import SshGateway
from roost.gateways.ssh.visit import Visit
from roost.jobs.live import LiveJobs
from roost.settings import ServeSettings
from tests.jobs.memory_node import Node, keeping, opener, until


@dataclass
class Open:
    """A gateway that listens, and what it stands on."""

    gateway: SshGateway
    live: LiveJobs
    node: Node
    key: asyncssh.SSHKey  # the account's

    async def connect(self, user: str = "roost", **more: object) -> asyncssh.SSHClientConnection:
        options = {"client_keys": [self.key], "known_hosts": None, "config": None} | more
        return await asyncssh.connect("127.0.0.1", self.gateway.port, username=user, **options)  # type: ignore[arg-type]


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Open]:
    node = Node()
    settings = ServeSettings(tmp_path, tmp_path / "none", ssh="127.0.0.1:0", ssh_ports=_two_ports())
    await migrate(tmp_path / "roost.db")
    async with opener(tmp_path, node)() as live:
        database = live.database  # type: ignore[attr-defined]
        key = asyncssh.generate_private_key("ssh-ed25519")
        await keys.add(database, 1, "mine", key.export_public_key().decode())
        async with SshGateway(settings, database, live, node) as gate:  # type: ignore[arg-type]
            yield Open(gate, live, node, key)


def _two_ports() -> tuple[int, int]:
    while True:
        with socket.socket() as first, socket.socket() as second, contextlib.suppress(OSError, OverflowError):
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            second.bind(("127.0.0.1", port + 1))
            return port, port + 1


async def test_the_lobby_lists_what_there_is(opened: Open) -> None:
    async with await opened.connect() as client:
        assert "no sandbox" in (await client.run("list")).stdout  # type: ignore[operator]
    await opened.live.submit(1, keeping(workspace="garden", persistent=True))
    async with await opened.connect() as client:
        done = await client.run("list")
        assert (done.exit_status, "garden" in done.stdout) == (0, True)  # type: ignore[operator]


@pytest.mark.parametrize(
    "weak",
    [
        {"kex_algs": ["diffie-hellman-group14-sha1"]},
        {"kex_algs": ["diffie-hellman-group14-sha256"]},
        {"encryption_algs": ["aes128-cbc"]},
        {"encryption_algs": ["aes128-ctr"], "mac_algs": ["hmac-sha1"]},
    ],
    ids=str,
)
async def test_old_algorithms_are_not_offered(opened: Open, weak: dict[str, object]) -> None:
    with pytest.raises(asyncssh.KeyExchangeFailed):
        await opened.connect(**weak)


@pytest.mark.parametrize("cipher", connection.CIPHERS)
async def test_every_cipher_that_is_offered_works(opened: Open, cipher: str) -> None:
    async with await opened.connect(encryption_algs=[cipher]) as client:
        assert (await client.run("list")).exit_status == 0


async def test_a_signature_by_sha1_is_refused(opened: Open) -> None:
    key = asyncssh.generate_private_key("ssh-rsa")
    await keys.add(opened.gateway.database, 1, "rsa", key.export_public_key().decode())
    async with await opened.connect(client_keys=[key]) as client:
        assert (await client.run("list")).exit_status == 0
    with pytest.raises(asyncssh.PermissionDenied):
        await opened.connect(client_keys=[key], signature_algs=["ssh-rsa"])


async def test_only_keys_count(opened: Open) -> None:
    methods = await asyncssh.get_server_auth_methods("127.0.0.1", opened.gateway.port, config=None)
    assert list(methods) == ["publickey"]
    with pytest.raises(asyncssh.PermissionDenied):
        await opened.connect(client_keys=None, password="guess")
    with pytest.raises(asyncssh.PermissionDenied):
        await opened.connect(client_keys=[asyncssh.generate_private_key("ssh-ed25519")])


async def test_tries_are_limited(opened: Open) -> None:
    unknown = [asyncssh.generate_private_key("ssh-ed25519") for _ in range(connection.TRIES + 5)]
    with pytest.raises(asyncssh.DisconnectError, match="too many tries"):
        await opened.connect(client_keys=[*unknown, opened.key])


async def test_whoever_does_not_log_in_is_put_out(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "LOGIN_GRACE", 0.3)
    reader, writer = await asyncio.open_connection("127.0.0.1", opened.gateway.port)
    async with asyncio.timeout(10):
        assert b"SSH-2.0" in await reader.read()
    writer.close()


async def test_strangers_are_limited_and_make_room_again(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "STRANGERS", 3)
    silent = [await asyncio.open_connection("127.0.0.1", opened.gateway.port) for _ in range(3)]
    for reader, _ in silent:
        assert await reader.readline()
    with pytest.raises((OSError, asyncssh.ConnectionLost)):
        await opened.connect()
    for _, writer in silent:
        writer.close()

    async def admitted() -> bool:
        try:
            async with await opened.connect():
                return True
        except (OSError, asyncssh.Error):
            return False

    await until(admitted)


async def test_nonsense_ends_its_own_connection_alone(opened: Open) -> None:
    async with await opened.connect() as client:
        for nonsense in (b"GET / HTTP/1.1\r\n\r\n", b"\0" * 100_000, b"SSH-2.0-x\r\n" + b"\xff" * 70_000):
            reader, writer = await asyncio.open_connection("127.0.0.1", opened.gateway.port)
            writer.write(nonsense)
            async with asyncio.timeout(10):
                try:
                    while await reader.read(65536):
                        pass
                except ConnectionError:
                    pass
            writer.close()
        assert (await client.run("list")).exit_status == 0


async def test_connections_of_an_account_are_limited(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "CONNECTIONS_OF_ACCOUNT", 1)
    async with await opened.connect():
        client = await opened.connect()
        async with asyncio.timeout(10):
            await client.wait_closed()


async def test_channels_of_a_connection_are_limited(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "CHANNELS", 0)
    async with await opened.connect() as client:
        with pytest.raises(asyncssh.ChannelOpenError, match="at most 0 channels"):
            await client.run("list")


async def test_a_removed_key_closes_what_it_has_opened(opened: Open) -> None:
    client = await opened.connect()
    (key,) = await keys.listed(opened.gateway.database, 1, None)
    await keys.remove(opened.gateway.database, 1, None, key.id)
    opened.gateway.revoke(key.id)
    async with asyncio.timeout(10):
        await client.wait_closed()


async def test_a_use_is_counted_while_the_login_lasts(opened: Open) -> None:
    job = await opened.live.submit(1, keeping(workspace="garden", persistent=True))

    def running() -> bool:
        run = opened.live.run_of(job)
        return run is not None and run.awake

    await until(running)
    visit = Visit(opened.gateway.database, opened.live, 1, "garden", None)
    run = await visit.run()
    assert run.uses == 1
    assert await visit.run() is run
    assert run.uses == 1
    visit.close()
    assert run.uses == 0


async def test_a_job_keeps_its_own_port_across_restarts_until_it_ends(opened: Open, tmp_path: Path) -> None:
    job = await opened.live.submit(1, keeping(workspace="garden", persistent=True))
    gate = opened.gateway
    port = await gate.door_of(job)
    assert await gate.door_of(job) == port
    await gate.__aexit__()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)
    async with SshGateway(gate.settings, gate.database, opened.live, opened.node):  # type: ignore[arg-type]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await reader.readline()
        writer.close()


async def test_a_port_that_another_program_took_is_passed_over(opened: Open) -> None:
    job = await opened.live.submit(1, keeping(workspace="garden", persistent=True))
    ports = opened.gateway.settings.ssh_ports
    assert ports
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", ports[0]))
        other.listen()
        assert await opened.gateway.door_of(job) == ports[1]


async def test_a_taken_port_and_an_address_that_is_none_are_said(opened: Open, tmp_path: Path) -> None:
    taken = ServeSettings(tmp_path, tmp_path / "none", ssh=f"127.0.0.1:{opened.gateway.port}")
    with pytest.raises(Conflict, match="--ssh HOST:PORT"):
        async with SshGateway(taken, opened.gateway.database, opened.live, opened.node):  # type: ignore[arg-type]
            pass
    with pytest.raises(Invalid, match="not HOST:PORT"):
        SshGateway(
            ServeSettings(tmp_path, tmp_path / "none", ssh="nowhere"),
            opened.gateway.database,
            opened.live,
            opened.node,  # type: ignore[arg-type]
        )
