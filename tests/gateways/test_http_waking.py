"""A request for a sandbox that sleeps is held and then served, by that sandbox and no other."""

import asyncio
import contextlib
import json
import socket
import struct
from dataclasses import replace

import aiohttp
import pytest

from roost.errors import Asleep, Busy, Conflict, NoCapacity, NodeUnavailable
from roost.gateways.http import pool, reaching
from roost.gateways.http.routing import Denial, Passed
from tests.gateways.backends import OK, Received, backend
from tests.gateways.wire import get, post, wire
from tests.gateways.world import SETTINGS, Name, Sandbox, front

pytestmark = pytest.mark.timeout(60)
BROWSER = ("Accept: text/html,application/xhtml+xml,*/*;q=0.8", "Sec-Fetch-Mode: navigate")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


async def test_a_hundred_requests_wake_a_sandbox_once_and_all_are_served() -> None:
    async with (
        front() as here,
        backend() as app,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
    ):
        name = here.world.add("app", app.port)
        assert name.run is not None
        name.run.frozen = True
        here.world.wake_seconds = 0.2

        async def one() -> str:
            async with session.get(f"http://127.0.0.1:{here.port}/", headers={"Host": name.key}) as response:
                assert response.status == 200
                return await response.text()

        assert await asyncio.gather(*(one() for _ in range(100))) == ["ok"] * 100
        assert here.world.wakes == [name.key]
        assert name.run.users == 0


async def test_an_upload_during_a_sleep_is_held_and_arrives_whole() -> None:
    async with front() as here, backend() as app, wire(here) as client:
        name = here.world.add("app", app.port)
        name.run = None

        async def wake(name: Name) -> Sandbox:
            return Sandbox("app-2", app.port)

        here.world.wake, here.world.wake_seconds = wake, 0.3
        client.send(post("app", bytes(3_000_000)))
        assert (await client.answer()).body == b"ok"
        assert app.requests[0].body == bytes(3_000_000)
        assert here.world.dials == [("app-2", app.port)]


async def test_a_browser_that_waits_gets_a_page_that_reloads_and_then_the_application() -> None:
    async with front() as here, backend() as app, wire(here) as client:
        name = here.world.add("app", app.port)
        assert name.run is not None
        name.run.frozen = True
        here.world.wake_seconds = 3.0
        client.send(get("app", "/", *BROWSER))
        answer = await client.answer()
        assert answer.status == 503
        assert b"Starting your application" in answer.body
        assert b"Your VM is waking up" in answer.body
        assert b'http-equiv="refresh"' in answer.body
        assert answer.headers["connection"] == "close"
        assert answer.headers["cache-control"] == "no-store"
        assert int(answer.headers["retry-after"]) > 0
        assert await client.rest() == b""
        async with asyncio.timeout(10):
            while name.run.frozen:
                await asyncio.sleep(0.02)
        async with wire(here) as again:
            again.send(get("app", "/", *BROWSER))
            assert (await again.answer()).body == b"ok"
        assert here.world.wakes == [name.key]


async def test_an_application_that_starts_to_listen_late_is_waited_for() -> None:
    port = free_port()
    async with front() as here, aiohttp.ClientSession() as session:
        name = here.world.add("app", port)
        calls = [
            asyncio.create_task(session.get(f"http://127.0.0.1:{here.port}/", headers={"Host": name.key}))
            for _ in range(20)
        ]
        await asyncio.sleep(0.5)
        dials = len(here.world.dials)
        assert dials < 20 + 40  # one tries for all
        async with backend(port=port):
            for call in calls:
                assert (await call).status == 200


async def test_a_busy_application_is_dialled_a_few_at_a_time_and_everybody_has_his_turn() -> None:
    """Each of its connections serves one request, and its queue is full most of the time."""
    at_once = most = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\n\r\nok")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with front() as here, aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        name = here.world.add("app", server.sockets[0].getsockname()[1])
        assert name.run is not None
        dial = here.world.dial

        async def crowded(sandbox: str, port: int, host: str | None = None) -> socket.socket:
            nonlocal at_once, most
            at_once += 1
            most = max(most, at_once)
            try:
                await asyncio.sleep(0.001)
                if at_once > 5:
                    raise Busy("its queue is full")
                return await dial(sandbox, port, host)
            finally:
                at_once -= 1

        here.world.dial = crowded

        async def one() -> str:
            async with session.get(f"http://127.0.0.1:{here.port}/", headers={"Host": name.key}) as response:
                return await response.text()

        assert await asyncio.gather(*(one() for _ in range(300))) == ["ok"] * 300
        assert most <= pool.MOST_DIALS
        assert name.run.users == 0
    server.close()


async def test_who_waits_for_a_connection_gets_the_one_that_another_has_done_with() -> None:
    """A server with one thread that keeps connections takes no second one while the first is open."""
    held = asyncio.Event()
    async with front() as here, backend() as app, aiohttp.ClientSession() as session:
        name = here.world.add("app", app.port)
        dial = here.world.dial

        async def once(sandbox: str, port: int, host: str | None = None) -> socket.socket:
            if here.world.dials:
                await held.wait()
            return await dial(sandbox, port, host)

        here.world.dial = once
        url, headers = f"http://127.0.0.1:{here.port}/", {"Host": name.key}
        calls = [asyncio.create_task(session.get(url, headers=headers)) for _ in range(pool.MOST_DIALS + 20)]
        async with asyncio.timeout(20):
            while sum(call.done() for call in calls) < 20:  # all but those whose dial is under way
                await asyncio.sleep(0.01)
        held.set()
        for call in calls:
            assert (await call).status == 200


async def test_who_leaves_the_line_is_not_waited_for() -> None:
    held = asyncio.Event()
    async with front() as here, backend() as app:
        name = here.world.add("app", app.port)
        dial = here.world.dial

        async def later(sandbox: str, port: int, host: str | None = None) -> socket.socket:
            await held.wait()
            return await dial(sandbox, port, host)

        here.world.dial = later
        async with contextlib.AsyncExitStack() as entered:
            clients = [await entered.enter_async_context(wire(here)) for _ in range(pool.MOST_DIALS * 2)]
            for client in clients:
                client.send(get("app"))
            async with asyncio.timeout(10):
                while here.gateway.requests < len(clients):
                    await asyncio.sleep(0.01)
            for client in clients:
                raw = client.writer.get_extra_info("socket")
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
        async with asyncio.timeout(10):
            while here.gateway.exchanges:
                await asyncio.sleep(0.01)
        held.set()
        async with wire(here) as client:
            client.send(get("app"))
            assert (await client.answer()).body == b"ok"
        async with asyncio.timeout(10):
            while name.run and name.run.users:
                await asyncio.sleep(0.01)
        assert len(app.requests) == 1


async def test_a_port_on_which_nothing_listens_is_a_502_that_says_so() -> None:
    async with front() as here, wire(here) as client:
        name = here.world.add("app", free_port())
        assert name.run is not None
        name.run.until = 0
        client.send(get("app") + get("app", "/", "Accept: text/html"))
        answer = await client.answer()
        assert answer.status == 502
        error = json.loads(answer.body)["error"]
        assert f"nothing listens on port {name.port} of 127.0.0.1, ::1" in error
        assert "Start a server" in error
        page = await client.answer()
        assert page.headers["content-type"].startswith("text/html")
        assert b"nothing listens on port" in page.body


async def test_pages_show_what_they_are_given_as_text() -> None:
    async with front() as here, wire(here) as client:
        client.send(get("nowhere", "/", "Accept: text/html"))
        answer = await client.answer()
        assert answer.status == 404
        assert b"&lt;nowhere.apps.localhost&gt;" in answer.body


@pytest.mark.parametrize(
    ("error", "status"),
    [(Conflict("ended"), 409), (NoCapacity("full"), 503), (NodeUnavailable("away"), 503), (Asleep("slow"), 504)],
)
async def test_a_sandbox_that_cannot_wake_is_an_error_with_its_reason(
    error: Exception, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reaching, "NODE_RESTART", 0.1)
    async with front() as here, wire(here) as client:
        name = here.world.add("app", 1)
        name.run = None
        here.world.fails = error  # type: ignore[assignment]
        client.send(get("app"))
        answer = await client.answer()
        assert answer.status == status
        assert json.loads(answer.body)["error"] == str(error)


async def test_a_connection_into_one_sandbox_never_serves_the_next() -> None:
    async with front() as here, backend() as old, backend(OK.replace(b"ok", b"no")) as new, wire(here) as client:
        name = here.world.add("app", old.port)
        client.send(get("app"))
        assert (await client.answer()).body == b"ok"
        assert name.run is not None
        name.run.gone = True  # it went cold; its processes are not there any more, though this one is

        async def wake(name: Name) -> Sandbox:
            name.port = new.port
            name.run = Sandbox("app-2", new.port)
            return name.run

        here.world.wake = wake
        client.send(get("app"))
        answer = await client.answer()
        if answer.status != 200:
            print(answer)
        assert [len(old.requests), len(new.requests)] == [1, 1]
        assert answer.body == b"no"


async def test_a_sandbox_that_sleeps_again_while_it_is_dialled_is_resolved_anew() -> None:
    async with front() as here, backend() as app, wire(here) as client:
        name = here.world.add("app", app.port)
        dial, first = here.world.dial, name.run
        assert first is not None

        async def slow(sandbox: str, port: int, host: str | None = None) -> socket.socket:
            connection = await dial(sandbox, port, host)
            if sandbox == first.vm_id:
                first.gone, name.run = True, Sandbox("app-2", app.port)
            return connection

        here.world.dial = slow  # type: ignore[method-assign]
        client.send(get("app"))
        assert (await client.answer()).body == b"ok"
        assert [sandbox for sandbox, _ in here.world.dials] == ["app-1", "app-2"]
        assert len(app.requests) == 1


async def test_a_request_on_a_connection_that_died_is_sent_again_if_that_is_safe() -> None:
    def once_each(request: Received) -> bytes | None:
        first = sum(one.connection == request.connection for one in app.requests) == 1
        return OK if first else None  # the second request on a connection is never answered

    async with front() as here, backend(once_each) as app, wire(here) as client:
        here.world.add("app", app.port)
        client.send(get("app"))
        assert (await client.answer()).body == b"ok"
        client.send(get("app"))
        assert (await client.answer()).body == b"ok"
        client.send(post("app", b"body").replace(b"POST", b"PUT"))
        assert (await client.answer()).body == b"ok"
        assert [request.body for request in app.requests[-2:]] == [b"body", b"body"]
        before = len(app.requests)
        client.send(post("app", b"body"))
        assert (await client.answer()).status == 502
        assert len(app.requests) == before + 1  # it was sent once


async def test_a_post_does_not_go_on_a_connection_that_was_idle_for_long() -> None:
    async with front() as here, backend() as app, wire(here) as client:
        here.world.add("app", app.port)
        client.send(get("app"))
        await client.answer()
        await asyncio.sleep(1.2)
        client.send(post("app", b"x"))
        await client.answer()
        assert [request.connection for request in app.requests] == [1, 2]


async def test_a_node_that_is_away_for_a_moment_is_a_delay() -> None:
    async with front() as here, backend() as app, wire(here) as client:
        here.world.add("app", app.port)
        dial, away = here.world.dial, [NodeUnavailable("it restarts"), NodeUnavailable("it restarts")]

        async def restarting(sandbox: str, port: int, host: str | None = None) -> socket.socket:
            if away:
                raise away.pop()
            return await dial(sandbox, port, host)

        here.world.dial = restarting  # type: ignore[method-assign]
        client.send(post("app", b"body"))
        assert (await client.answer()).body == b"ok"
        assert len(app.requests) == 1


async def test_a_reset_before_any_answer_is_a_delay_for_what_may_be_sent_again() -> None:
    seen: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        if len(seen) == 1:
            raw = writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        else:
            writer.write(OK)
            await reader.read()
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, front() as here, wire(here) as client:
        here.world.add("app", server.sockets[0].getsockname()[1])
        client.send(get("app"))
        assert (await client.answer()).body == b"ok"
        assert len(seen) == 2


async def test_routes_that_are_not_known_are_looked_up() -> None:
    async with front() as here, backend() as app, wire(here) as client:
        here.world.add("app", app.port)
        here.world.forgetful = True
        for number in range(3):
            client.send(post("app", b"x" * number))
            assert (await client.answer()).body == b"ok"
        assert [request.body for request in app.requests] == [b"", b"x", b"xx"]


async def test_who_is_not_admitted_wakes_nothing() -> None:
    async with front() as here, backend() as app, wire(here) as client:
        name = here.world.add("app", app.port)
        name.run = None
        name.admits = lambda request: Denial(401, "this address wants its token", ((b"WWW-Authenticate", b"Bearer"),))
        client.send(get("app"))
        answer = await client.answer()
        assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert json.loads(answer.body) == {"error": "this address wants its token"}
        name.admits = lambda request: Denial(302, headers=((b"Location", b"/x"), (b"Set-Cookie", b"a=b")))
        client.send(get("app"))
        answer = await client.answer()
        assert (answer.status, answer.headers["location"], answer.headers["set-cookie"]) == (302, "/x", "a=b")
        assert here.world.wakes == here.world.dials == []


async def test_what_admits_a_visitor_does_not_reach_the_sandbox() -> None:
    async with front() as here, backend() as app, wire(here) as client:
        name = here.world.add("app", app.port)
        name.admits = lambda request: Passed(b"/clean", [field for field in request.headers if field[0] != b"x-token"])
        client.send(get("app", "/?secret=1", "X-Token: secret", "X-Other: 1"))
        assert (await client.answer()).status == 200
        assert app.requests[0].line == "GET /clean HTTP/1.1"
        assert (app.requests[0].header("x-token"), app.requests[0].header("x-other")) == (None, "1")


async def test_a_route_has_a_rate() -> None:
    async with front(replace(SETTINGS, route_rate=3)) as here, backend() as app, wire(here) as client:
        here.world.add("app", app.port)
        here.world.add("other", app.port)
        client.send(get("app") * 10 + get("other"))
        answers = [await client.answer() for _ in range(11)]
        refused = [answer for answer in answers if answer.status == 429]
        assert len(refused) >= 4
        assert refused[0].headers["retry-after"] == "1"
        assert answers[-1].status == 200


async def test_an_account_has_a_rate_for_all_of_its_hosts() -> None:
    async with front(replace(SETTINGS, account_rate=3)) as here, backend() as app, wire(here) as client:
        here.world.add("one", app.port)
        here.world.add("two", app.port)
        here.world.add("theirs", app.port, account=2)
        client.send((get("one") + get("two")) * 5 + get("theirs"))
        answers = [(await client.answer()).status for _ in range(11)]
        assert answers.count(429) >= 4
        assert answers[-1] == 200


async def test_a_route_serves_so_many_requests_at_a_time() -> None:
    waiting = asyncio.Event()

    async def wait(request: Received) -> bytes:
        await waiting.wait()
        return OK

    async with front(replace(SETTINGS, route_connections=2)) as here, backend(wait) as app:
        here.world.add("app", app.port)
        async with wire(here) as one, wire(here) as two, wire(here) as three:
            one.send(get("app"))
            two.send(get("app"))
            async with asyncio.timeout(10):
                while len(app.requests) < 2:
                    await asyncio.sleep(0.01)
            three.send(get("app"))
            assert (await three.answer()).status == 429
            waiting.set()
            assert (await one.answer()).status == (await two.answer()).status == 200
            three.send(get("app"))
            assert (await three.answer()).status == 200


async def test_connections_beyond_all_room_are_refused_politely() -> None:
    async with front() as here, backend() as app, wire(here) as client:
        here.world.add("app", app.port)
        client.send(get("app"))
        assert (await client.answer()).status == 200
        here.gateway._most = 2  # type: ignore[attr-defined]
        async with wire(here) as other:
            assert (await other.answer()).status == 503
        client.send(get("app"))
        assert (await client.answer()).status == 200


async def test_a_head_that_does_not_come_and_a_connection_that_is_not_used_are_ended() -> None:
    async with front() as here, backend() as app, wire(here) as slow, wire(here) as idle, wire(here) as silent:
        here.world.add("app", app.port)
        slow.send(b"GET / HT")
        idle.send(get("app"))
        await idle.answer()
        async with asyncio.timeout(10):
            while len(here.gateway.connections) < 3:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        for connection in here.gateway.connections:
            connection.deadline -= 80  # as if that time had passed
        assert (await slow.answer()).status == 408
        assert await idle.rest() == b""
        assert await silent.rest() == b""


async def test_a_gateway_that_stops_finishes_what_is_under_way() -> None:
    async def late(_: Received) -> bytes:
        await asyncio.sleep(0.5)
        return OK

    async with front() as here, backend(late) as app, wire(here) as client, wire(here) as idle:
        here.world.add("app", app.port)
        client.send(get("app"))
        async with asyncio.timeout(10):
            while not app.requests:
                await asyncio.sleep(0.01)
        await here.gateway.stop()
        answer = await client.answer()
        assert (answer.body, answer.headers["connection"]) == (b"ok", "close")
        assert await client.rest() == b""
        assert await idle.rest() == b""
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", here.port)


async def test_a_fault_of_ours_is_an_internal_error_without_detail() -> None:
    async with front() as here, wire(here) as client:
        here.world.add("app", 1)

        async def broken(*_: object) -> socket.socket:
            raise ZeroDivisionError("secret detail")

        here.world.dial = broken  # type: ignore[method-assign]
        client.send(get("app"))
        answer = await client.answer()
        assert (answer.status, json.loads(answer.body)) == (500, {"error": "internal error"})
