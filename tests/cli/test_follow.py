"""A job's output as it comes, over connections that break: a live server on a free port speaks the wire."""

import base64
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from roost.cli.connection import Api
from roost.cli.follow import Ending, follow
from roost.errors import NotFound, RoostError, Unauthenticated
from roost.instance import Credentials

Answer = Callable[[BaseHTTPRequestHandler], None]
Serve = Callable[..., tuple[Api, list[str | None]]]


def record(seq: int, data: bytes, source: str = "stdout") -> bytes:
    values = {"timestamp": "2026-01-01T00:00:00Z", "source": source, "seq": seq}
    body = json.dumps({**values, "data": base64.b64encode(data).decode()})
    return f"id: {seq}\ndata: {body}\n\n".encode()


def end(status: str = "completed", exit_code: int | None = 0, error: str | None = None) -> bytes:
    values = {"status": status, "exit_code": exit_code, "error": error}
    return f"event: end\ndata: {json.dumps(values)}\n\n".encode()


def events(*parts: bytes) -> Answer:
    """Send these in chunks; an unfinished answer (no last chunk) is a cut connection."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Type", "text/event-stream")
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        for part in parts:
            request.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
        request.close_connection = True

    return answer


def refusal(status: int, text: str) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        body = json.dumps({"error": text}).encode()
        request.send_response(status)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    return answer


@pytest.fixture
def serve() -> Iterator[Serve]:
    """`serve(answer, …)` gives each answer to one request, and the Last-Event-ID that each request had."""
    servers: list[ThreadingHTTPServer] = []

    def start(*answers: Answer) -> tuple[Api, list[str | None]]:
        rest, seen = list(answers), list[str | None]()

        class Requests(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                seen.append(self.headers["Last-Event-ID"])
                rest.pop(0)(self)

            def log_message(self, *_: object) -> None: ...

        server = ThreadingHTTPServer(("127.0.0.1", 0), Requests)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return Api(Credentials(f"http://127.0.0.1:{server.server_port}", "t")), seen

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def output_of(api: Api) -> tuple[Ending, list[tuple[str, bytes]]]:
    shown: list[tuple[str, bytes]] = []
    ending = follow(api, "/job/logs", lambda source, data: shown.append((source, data)))
    return ending, shown


def test_bytes_arrive_unchanged_on_their_streams(serve: Serve) -> None:
    every_byte = bytes(range(256))
    api, _ = serve(events(record(1, every_byte), record(2, b"e\n", "stderr"), record(3, b"r", "system"), end()))
    ending, shown = output_of(api)
    assert shown == [("stdout", every_byte), ("stderr", b"e\n"), ("stderr", b"r")]
    assert ending == Ending("completed", 0, None)


def test_a_cut_connection_is_resumed_without_loss_or_repetition(serve: Serve) -> None:
    api, seen = serve(
        events(record(1, b"a"), record(2, b"b")[:-7]),
        events(),
        refusal(503, "restarting"),
        events(record(1, b"a"), record(2, b"b"), record(3, b"c"), end("error", 7)),
    )
    ending, shown = output_of(api)
    assert [data for _, data in shown] == [b"a", b"b", b"c"]
    assert seen == [None, "1", "1", "1"]
    assert ending.exit_code == 7


def test_comments_and_unknown_fields_are_passed_over(serve: Serve) -> None:
    api, _ = serve(events(b": alive\n\n", b"retry: 5\n", record(1, b"a"), b": alive\n\n", end()))
    assert output_of(api)[1] == [("stdout", b"a")]


def test_an_event_may_come_in_any_pieces(serve: Serve) -> None:
    whole = record(1, b"hello") + end()
    api, _ = serve(events(*(whole[i : i + 1] for i in range(len(whole)))))
    assert output_of(api)[1] == [("stdout", b"hello")]


def test_a_lost_exit_status_is_an_error(serve: Serve) -> None:
    api, _ = serve(events(end("error", None)))
    ending, _ = output_of(api)
    assert ending.exit_code is None
    assert ending.error == "the script's exit status was lost"


def test_a_refusal_is_not_tried_again(serve: Serve) -> None:
    api, seen = serve(refusal(404, "no such job"))
    with pytest.raises(NotFound, match="no such job"):
        output_of(api)
    assert len(seen) == 1


def test_a_wrong_token_names_the_cure(serve: Serve) -> None:
    api, _ = serve(refusal(401, "unknown token"))
    with pytest.raises(Unauthenticated, match="MAGS_API_TOKEN"):
        output_of(api)


@pytest.mark.parametrize("garbage", [b"data: {}\n\n", b"data: \xff\n\n", b"data: [1]\n\n", b"data: x\n\n"])
def test_events_of_another_kind_end_with_an_error(serve: Serve, garbage: bytes) -> None:
    api, _ = serve(events(garbage))
    with pytest.raises(RoostError, match="not understood"):
        output_of(api)
