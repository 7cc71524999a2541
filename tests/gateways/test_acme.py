"""Certificates by ACME from a real Pebble, which validates over HTTP against a server that answers as the gateway does.

What must hold whatever the authority does (limits, pauses, one order for a host) is shown with a source in memory.
"""

import asyncio
import contextlib
import datetime
import ssl
import stat
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvloop

from roost.errors import StateUnwritable
from roost.gateways.tls.acme import Authority
from roost.gateways.tls.challenges import Challenges
from roost.gateways.tls.gateway import Certificates
from roost.gateways.tls.issuing import FIRST_PAUSE, HOUR, ORDERS_PER_HOUR, Issuing, OrderFailed
from roost.gateways.tls.kept import Kept
from roost.settings import ServeSettings
from tests.gateways.pebble import Pebble, a_pebble
from tests.gateways.tls_world import DAY, NOW, Lab, ask, serving

HOST = "app.apps.localhost"


@pytest.fixture(scope="module")
def event_loop_policy() -> uvloop.EventLoopPolicy:
    return uvloop.EventLoopPolicy()


@pytest.fixture(scope="module")
def pebble(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pebble]:
    with a_pebble(tmp_path_factory.mktemp("pebble")) as running:
        yield running


@contextlib.asynccontextmanager
async def answering(port: int, challenges: Challenges) -> AsyncGenerator[list[str]]:
    """A plain HTTP server on 127.0.0.1 that answers challenges; the paths that it was asked for."""
    asked: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        path = head.split()[1]
        host = head.lower().partition("host: ")[2].split()[0].partition(":")[0]
        asked.append(path)
        body = challenges.answer(host, path.encode())
        status = "404 Not Found" if body is None else "200 OK"
        answer = f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {len(body or b'')}\r\n\r\n"
        writer.write(answer.encode() + (body or b""))
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", port):
        yield asked


def settings(pebble: Pebble, place: Path) -> ServeSettings:
    return ServeSettings(
        state_dir=place,
        node_socket=place / "node.sock",
        acme=pebble.directory,
        acme_email="operator@example.org",
        acme_ca=pebble.trust,
    )


@dataclass(frozen=True)
class Gateway:
    certificates: Certificates
    port: int
    asked: list[str]  # paths that the authority came for


@contextlib.asynccontextmanager
async def a_gateway(pebble: Pebble, place: Path, challenges: Challenges | None = None) -> AsyncGenerator[Gateway]:
    async with contextlib.AsyncExitStack() as stack:
        certificates = await stack.enter_async_context(Certificates(settings(pebble, place), ours))
        answers = answering(pebble.http_port, certificates.challenges if challenges is None else challenges)
        asked = await stack.enter_async_context(answers)
        yield Gateway(certificates, await stack.enter_async_context(serving(certificates.context)), asked)


async def ours(host: str) -> bool:
    return not host.startswith("stranger")


def client_of(pebble: Pebble, place: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(pebble.roots(place)))
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


# ---- with a real authority -----------------------------------------------------------------------------------


async def test_the_first_request_gets_a_certificate_and_a_restart_keeps_it(pebble: Pebble, tmp_path: Path) -> None:
    client, before, state = client_of(pebble, tmp_path), pebble.orders(), tmp_path / "state"
    async with a_gateway(pebble, state) as gateway:
        answers = await asyncio.gather(*(ask(gateway.port, HOST, client) for _ in range(20)))
        assert set(answers) == {b"nothing from 127.0.0.1"}
        assert gateway.asked
        assert gateway.certificates.challenges.answer(HOST, gateway.asked[0].encode()) is None  # over with the order
    assert pebble.orders() == before + 1
    async with a_gateway(pebble, state) as gateway:
        await ask(gateway.port, HOST, client)
    assert pebble.orders() == before + 1
    kept = [path for path in state.rglob("*") if path.is_file()]
    assert {path.name for path in kept} == {"account.json", f"{HOST}.pem"}
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in kept)
    assert all(stat.S_IMODE(path.parent.stat().st_mode) == 0o700 for path in kept)


async def test_a_stranger_causes_no_order(pebble: Pebble, tmp_path: Path) -> None:
    client, before = client_of(pebble, tmp_path), pebble.orders()
    async with a_gateway(pebble, tmp_path / "state") as gateway:
        for host in ("stranger.apps.localhost", "app.elsewhere.example", "a.b.apps.localhost", "apps.localhost"):
            with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized_name"):
                await ask(gateway.port, host, client)
    assert pebble.orders() == before
    assert not list((tmp_path / "state").rglob("*.json"))


async def test_a_host_that_cannot_be_validated_is_not_tried_again_at_once(pebble: Pebble, tmp_path: Path) -> None:
    client, before = client_of(pebble, tmp_path), pebble.orders()
    for _ in range(2):  # also after a restart
        async with a_gateway(pebble, tmp_path / "state", Challenges()) as gateway:
            for _ in range(3):
                with pytest.raises(ssl.SSLError):
                    await ask(gateway.port, HOST, client)
    assert pebble.orders() == before + 1
    (failed,) = (tmp_path / "state").rglob("*.failed")
    assert "could not confirm that the host is ours" in failed.read_text()


async def test_a_state_that_cannot_be_written_is_named(pebble: Pebble, tmp_path: Path) -> None:
    (tmp_path / "certificates").touch()
    with pytest.raises(StateUnwritable, match="certificates"):
        async with Certificates(settings(pebble, tmp_path), ours):
            pass


async def test_an_account_is_registered_once(pebble: Pebble, tmp_path: Path) -> None:
    kept = Kept(tmp_path / "kept")
    kept.prepare()
    accounts: set[bytes | None] = set()
    for host in ("one.apps.localhost", "two.apps.localhost"):
        authority = Authority(pebble.directory, None, pebble.trust, kept)
        async with answering(pebble.http_port, authority.challenges):
            key, chain = await authority.certificate(host)
        kept.keep(host, key, chain, 0)
        accounts.add(kept.account())
        authority.close()
    assert len(accounts) == 1


async def test_an_authority_that_refuses_most_nonces_is_asked_again(tmp_path: Path) -> None:
    with a_pebble(tmp_path / "pebble", PEBBLE_WFE_NONCEREJECT="30") as pebble:
        kept = Kept(tmp_path / "kept")
        kept.prepare()
        authority = Authority(pebble.directory, None, pebble.trust, kept)
        async with answering(pebble.http_port, authority.challenges):
            key, chain = await authority.certificate(HOST)
        authority.close()
        assert kept.keep(HOST, key, chain, 0).covers(HOST)


async def test_an_authority_that_is_not_there_is_named(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    authority = Authority("https://127.0.0.1:1/dir", None, None, kept)
    with pytest.raises(OrderFailed, match=r"https://127.0.0.1:1/dir cannot be reached"):
        await authority.certificate(HOST)
    authority.close()


async def test_an_authority_that_is_not_trusted_gets_nothing(pebble: Pebble, tmp_path: Path) -> None:
    other = Lab(tmp_path)
    authority = Authority(pebble.directory, None, other.root, Kept(tmp_path / "kept"))
    with pytest.raises(OrderFailed, match="certificate verify failed"):
        await authority.certificate(HOST)
    authority.close()


# ---- whatever the authority does -----------------------------------------------------------------------------


class Source:
    """An authority in memory. `gate` holds orders back; `failing` ends them."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.orders: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.failing: OrderFailed | None = None
        self.ends = NOW + 90 * DAY
        self.names: tuple[str, ...] = ()

    async def certificate(self, host: str) -> tuple[bytes, bytes]:
        self.orders.append(host)
        await self.gate.wait()
        if self.failing:
            raise self.failing
        chain, key = self.lab.issue(*(self.names or (host,)), ends=self.ends)
        return key, chain


class Clock:
    def __init__(self) -> None:
        self.now = NOW.timestamp() + 600  # after the instants of files that are written now

    def __call__(self) -> float:
        return self.now

    def move(self, by: datetime.timedelta) -> None:
        self.now += by.total_seconds()


@pytest.fixture
async def source(tmp_path: Path) -> AsyncIterator[Source]:
    yield Source(Lab(tmp_path))


def issuing(source: Source, clock: Clock, place: Path) -> Issuing:
    return Issuing(source, Kept(place / "kept"), ours, clock)


async def settled(source: Source, count: int) -> None:
    async with asyncio.timeout(10):
        while len(source.orders) < count:
            await asyncio.sleep(0.001)


async def test_many_requests_for_a_host_cause_one_order(source: Source, tmp_path: Path) -> None:
    async with issuing(source, Clock(), tmp_path) as certificates:
        found = await asyncio.gather(*(certificates.certificate(HOST, 10) for _ in range(50)))
        assert len(set(found)) == 1 and found[0] is not None
    assert source.orders == [HOST]


async def test_a_request_that_cannot_wait_leaves_the_order_to_the_next(source: Source, tmp_path: Path) -> None:
    source.gate.clear()
    async with issuing(source, Clock(), tmp_path) as certificates:
        assert await certificates.certificate(HOST, 0.01) is None
        source.gate.set()
        assert await certificates.certificate(HOST, 10) is not None
    assert source.orders == [HOST]


async def test_an_old_certificate_serves_while_its_successor_is_ordered(source: Source, tmp_path: Path) -> None:
    clock = Clock()
    async with issuing(source, clock, tmp_path) as certificates:
        first = await certificates.certificate(HOST, 10)
        clock.move(59 * DAY)
        assert await certificates.certificate(HOST, 10) is first
        assert source.orders == [HOST]
        clock.move(2 * DAY)
        source.gate.clear()
        source.ends = NOW + 180 * DAY
        assert await certificates.certificate(HOST, 10) is first
        await settled(source, 2)
        source.gate.set()
        async with asyncio.timeout(10):
            while await certificates.certificate(HOST, 10) is first:
                await asyncio.sleep(0.001)


async def test_certificates_are_renewed_without_a_visitor(source: Source, tmp_path: Path) -> None:
    clock = Clock()
    async with issuing(source, clock, tmp_path) as certificates:
        await certificates.certificate(HOST, 10)
    clock.move(61 * DAY)
    async with issuing(source, clock, tmp_path):
        await settled(source, 2)


async def test_what_leads_nowhere_is_not_renewed_and_forgotten_when_it_ends(source: Source, tmp_path: Path) -> None:
    clock, kept = Clock(), Kept(tmp_path / "kept")
    kept.prepare()
    chain, key = source.lab.issue("stranger.apps.localhost")
    kept.keep("stranger.apps.localhost", key, chain, 0)
    clock.move(80 * DAY)
    async with issuing(source, clock, tmp_path) as certificates:
        await certificates.renew_due()
        assert kept.load("stranger.apps.localhost") is not None
        clock.move(11 * DAY)
        await certificates.renew_due()
        assert kept.load("stranger.apps.localhost") is None
    assert source.orders == []


async def test_pauses_after_failures_grow_and_end_with_a_success(source: Source, tmp_path: Path) -> None:
    clock = Clock()
    source.failing = OrderFailed("no")
    async with issuing(source, clock, tmp_path) as certificates:
        for count in range(3):
            assert await certificates.certificate(HOST, 10) is None
            clock.move(datetime.timedelta(seconds=FIRST_PAUSE * 3**count - 1))
            assert await certificates.certificate(HOST, 10) is None
            assert len(source.orders) == count + 1
            clock.move(datetime.timedelta(seconds=2))
        source.failing = None
        assert await certificates.certificate(HOST, 10) is not None
    assert Kept(tmp_path / "kept").failures() == {}


async def test_an_authority_that_limits_us_is_left_alone_for_an_hour(source: Source, tmp_path: Path) -> None:
    clock = Clock()
    source.failing = OrderFailed("too many", rate_limited=True)
    async with issuing(source, clock, tmp_path) as certificates:
        assert await certificates.certificate(HOST, 10) is None
        clock.move(datetime.timedelta(seconds=HOUR - 1))
        assert await certificates.certificate(HOST, 10) is None
        assert source.orders == [HOST]


async def test_orders_of_an_hour_are_limited_also_across_a_restart(source: Source, tmp_path: Path) -> None:
    clock = Clock()
    hosts = [f"app-{number}.apps.localhost" for number in range(ORDERS_PER_HOUR + 5)]
    async with issuing(source, clock, tmp_path) as certificates:
        found = await asyncio.gather(*(certificates.certificate(host, 10) for host in hosts))
        assert len([one for one in found if one]) == ORDERS_PER_HOUR
    async with issuing(source, clock, tmp_path) as certificates:
        assert await certificates.certificate("late.apps.localhost", 10) is None
        clock.move(datetime.timedelta(seconds=HOUR + 60))
        assert await certificates.certificate("late.apps.localhost", 10) is not None


async def test_a_certificate_for_another_host_is_not_kept(source: Source, tmp_path: Path) -> None:
    source.names = ("other.apps.localhost",)
    async with issuing(source, Clock(), tmp_path) as certificates:
        assert await certificates.certificate(HOST, 10) is None
    assert Kept(tmp_path / "kept").load(HOST) is None


async def test_a_damaged_file_is_ordered_anew(source: Source, tmp_path: Path) -> None:
    async with issuing(source, Clock(), tmp_path) as certificates:
        await certificates.certificate(HOST, 10)
    (tmp_path / "kept" / f"{HOST}.pem").write_bytes(b"cut off")
    (tmp_path / "kept" / "x.pem.new").write_bytes(b"left by a crash")
    async with issuing(source, Clock(), tmp_path) as certificates:
        assert await certificates.certificate(HOST, 10) is not None
    assert source.orders == [HOST, HOST]
    assert not list((tmp_path / "kept").glob("*.new"))
