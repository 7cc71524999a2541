"""No request gets past the gateway that it did not see: each trick is refused, and the application saw nothing."""

import pytest

from tests.gateways.backends import backend
from tests.gateways.wire import get, wire
from tests.gateways.world import front

HIDDEN = b"GET /hidden HTTP/1.1\r\nHost: app.apps.localhost\r\n\r\n"
HOST = b"Host: app.apps.localhost\r\n"
POST = b"POST / HTTP/1.1\r\n" + HOST

TRICKS = {
    "both lengths": POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "both lengths, the other way": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + HIDDEN,
    "two lengths": POST + b"Content-Length: 5\r\nContent-Length: 0\r\n\r\n" + HIDDEN,
    "one length twice": POST + b"Content-Length: 0\r\nContent-Length: 0\r\n\r\n" + HIDDEN,
    "a list of lengths": POST + b"Content-Length: 0, 0\r\n\r\n" + HIDDEN,
    "a length with a sign": POST + b"Content-Length: +0\r\n\r\n" + HIDDEN,
    "a negative length": POST + b"Content-Length: -1\r\n\r\n" + HIDDEN,
    "a hexadecimal length": POST + b"Content-Length: 0x0\r\n\r\n" + HIDDEN,
    "an empty length": POST + b"Content-Length: \r\n\r\n" + HIDDEN,
    "a length beyond all numbers": POST + b"Content-Length: 99999999999999999999999\r\n\r\n" + HIDDEN,
    "another coding": POST + b"Transfer-Encoding: gzip\r\n\r\n" + HIDDEN,
    "a coding before chunked": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "chunked twice": POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "chunked in two lines": POST
    + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    + HIDDEN,
    "identity": POST + b"Transfer-Encoding: identity\r\n\r\n" + HIDDEN,
    "xchunked": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "chunked behind a control character": POST + b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "chunked in HTTP/1.0": b"POST / HTTP/1.0\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "a blank before the colon": POST + b"Content-Length : 5\r\n\r\n" + HIDDEN,
    "a blank before the name": POST + b" Content-Length: 5\r\n\r\n" + HIDDEN,
    "a folded line": POST + b"X: 1\r\n Content-Length: 5\r\n\r\n" + HIDDEN,
    "a folded coding": POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "a bare LF": POST + b"X: 1\nContent-Length: 5\r\n\r\n" + HIDDEN,
    "bare LFs only": b"GET / HTTP/1.1\nHost: app.apps.localhost\n\n" + HIDDEN,
    "a bare CR": POST + b"X: 1\rContent-Length: 5\r\n\r\n" + HIDDEN,
    "NUL in a value": POST + b"X: a\0b\r\n\r\n" + HIDDEN,
    "NUL in a name": POST + b"X\0: a\r\n\r\n" + HIDDEN,
    "a line without colon": POST + b"Content-Length\r\n\r\n" + HIDDEN,
    "no name": POST + b": 5\r\n\r\n" + HIDDEN,
    "two hosts": b"GET / HTTP/1.1\r\n" + HOST + b"Host: other.apps.localhost\r\n\r\n",
    "one host twice": b"GET / HTTP/1.1\r\n" + HOST + HOST + b"\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "an odd host": b"GET / HTTP/1.1\r\nHost: app.apps.localhost/x\r\n\r\n",
    "a host with a user": b"GET / HTTP/1.1\r\nHost: a@app.apps.localhost\r\n\r\n",
    "another authority": b"GET http://other.apps.localhost/ HTTP/1.1\r\n" + HOST + b"\r\n",
    "another scheme": b"GET ftp://app.apps.localhost/ HTTP/1.1\r\n" + HOST + b"\r\n",
    "no path": b"GET app HTTP/1.1\r\n" + HOST + b"\r\n",
    "HTTP/2's preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/1.2": b"GET / HTTP/1.2\r\n" + HOST + b"\r\n",
    "HTTP/0.9": b"GET / HTTP/0.9\r\n" + HOST + b"\r\n",
    "a tunnel": b"CONNECT app.apps.localhost:80 HTTP/1.1\r\n" + HOST + b"\r\n",
    "garbage": b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\r\n\r\n",
}

BODIES = {
    "a size that is none": b"x\r\n\r\n",
    "an empty size": b"\r\n0\r\n\r\n",
    "a size with a sign": b"+1\r\na\r\n0\r\n\r\n",
    "a size with 0x": b"0x1\r\na\r\n0\r\n\r\n",
    "a size of 17 digits": b"10000000000000001\r\na\r\n",
    "a chunk that goes on": b"1\r\nabc\r\n0\r\n\r\n",
    "LF behind a size": b"1\na\r\n0\r\n\r\n" + b" " * 300,
    "LF behind a chunk": b"1\r\na\n0\r\n\r\n",
    "CR LF in an extension": b"1;a=\nb\r\na\r\n0\r\n\r\n",
    "an endless extension": b"1;" + b"a" * 5000,
    "a length as trailer": b"0\r\nContent-Length: 5\r\n\r\n",
    "a length with underscore as trailer": b"0\r\nContent_Length: 5\r\n\r\n",
    "a malformed trailer": b"0\r\nX : 1\r\n\r\n",
    "a trailer with LF": b"0\r\nX: 1\nY: 2\r\n\r\n",
    "endless trailers": b"0\r\n" + b"X: 1\r\n" * 100 + b"\r\n",
}


@pytest.mark.parametrize("trick", TRICKS)
async def test_a_head_that_can_be_read_in_two_ways_is_refused(trick: str) -> None:
    async with front() as here, backend() as app, wire(here) as client:
        here.world.add("app", app.port)
        here.world.add("other", app.port)
        client.send(TRICKS[trick])
        answer = await client.answer()
        assert answer.status in (400, 405, 431, 505)
        assert answer.headers["connection"] == "close"
        assert await client.rest() == b""
        assert app.requests == []


@pytest.mark.parametrize("trick", BODIES)
async def test_a_chunked_body_that_can_be_read_in_two_ways_ends_the_request(trick: str) -> None:
    async with front() as here, backend() as app, wire(here) as client:
        here.world.add("app", app.port)
        client.send(POST + b"Transfer-Encoding: chunked\r\n\r\n" + BODIES[trick])
        client.send(HIDDEN)
        answer = await client.answer()
        assert answer.status == 400
        assert await client.rest() == b""
        assert app.requests == []


@pytest.mark.parametrize("name", ["Content_Length", "Transfer_Encoding", "X_Forwarded_For", "Host_"])
async def test_names_that_a_server_may_take_for_others_are_not_passed_on(name: str) -> None:
    async with front() as here, backend() as app, wire(here) as client:
        here.world.add("app", app.port)
        client.send(get("app", "/", f"{name}: 5"))
        assert (await client.answer()).status == 200
        assert app.requests[0].header(name.lower()) == (None if name != "Host_" else "5")


async def test_a_head_over_64_kib_is_refused() -> None:
    async with front() as here, backend() as app:
        here.world.add("app", app.port)
        for head in (get("app", "/", "X: " + "a" * 66_000), b"GET /" + b"a" * 70_000):
            async with wire(here) as client:
                client.send(head)
                assert (await client.answer()).status == 431
                assert await client.rest() == b""
        assert app.requests == []


async def test_more_than_200_header_lines_are_refused() -> None:
    async with front() as here, backend() as app, wire(here) as client:
        here.world.add("app", app.port)
        client.send(get("app", "/", *(f"X-{number}: 1" for number in range(199))))
        assert (await client.answer()).status == 200
        client.send(get("app", "/", *(f"X-{number}: 1" for number in range(200))))
        assert (await client.answer()).status == 431


async def test_a_head_that_comes_byte_by_byte_is_read() -> None:
    async with front() as here, backend() as app, wire(here) as client:
        here.world.add("app", app.port)
        for byte in POST + b"Transfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nX-T: 1\r\n\r\n":
            client.send(bytes((byte,)))
            await client.writer.drain()
        assert (await client.answer()).status == 200
        assert app.requests[0].body == b"abc|X-T: 1"


EVIL = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
ANSWERS = {
    "another answer behind it": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok" + EVIL,
    "another answer behind chunks": CHUNKED + b"2\r\nok\r\n0\r\n\r\n" + EVIL,
    "a body behind 204": b"HTTP/1.1 204 No Content\r\nContent-Length: 4\r\n\r\nevil",
}


@pytest.mark.parametrize("trick", ANSWERS)
async def test_what_an_application_sends_behind_its_answer_goes_nowhere(trick: str) -> None:
    async with front() as here, backend(ANSWERS[trick]) as app, backend() as good, wire(here) as client:
        here.world.add("app", app.port)
        here.world.add("good", good.port)
        client.send(get("app"))
        assert (await client.answer()).status in (200, 204)
        client.send(get("good"))
        assert (await client.answer()).body == b"ok"
        client.send(get("app"))
        assert b"evil" not in (await client.answer()).body
        assert app.connections == 2


BAD = {
    "both lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
    "a folded line": b"HTTP/1.1 200 OK\r\nX: 1\r\n Content-Length: 2\r\n\r\nok",
    "another coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nok",
    "a bare CR": b"HTTP/1.1 200 OK\r\nX: 1\rContent-Length: 2\r\n\r\nok",
    "no HTTP": b"220 smtp.example.org ESMTP\r\n\r\n",
    "an upgrade that nobody wanted": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n",
    "an endless head": b"HTTP/1.1 200 OK\r\nX: " + b"a" * 200_000,
    "an endless row of interim answers": b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100,
    "nothing": None,
}


@pytest.mark.parametrize("trick", BAD)
async def test_an_answer_that_can_be_read_in_two_ways_is_a_502(trick: str) -> None:
    async with front() as here, backend(BAD[trick]) as app, wire(here) as client:
        here.world.add("app", app.port)
        client.send(get("app"))
        answer = await client.answer()
        while answer.status == 103:
            answer = await client.answer()
        assert answer.status == 502
        assert b'{"error": "the application on port' in answer.body
