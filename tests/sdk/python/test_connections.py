"""What happens to both clients when connections break, and where their credentials come from."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from roost import AsyncRoost, Roost
from roost.sdk import Invalid, MagsError, Unauthenticated, Unreachable

from .conftest import Awaited

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(text: str) -> bytes:
    return f"{len(text):x}\r\n{text}\r\n".encode()


LINE = 'id: {0}\ndata: {{"message": "{0}", "source": "stdout"}}\n\n'
END = 'event: end\ndata: {"status": "completed", "exit_code": 0}\n\n'


@contextmanager
def a_server(*answers: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """Gives each connection the next answer and closes it; its URL, and the heads of what it was asked."""
    heads = list[bytes]()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for answer in answers:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    heads.append(connection.recv(65536))
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", heads
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)


@pytest.fixture(params=["Roost", "AsyncRoost"])
def client(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Makes either client of a URL."""
    made = list[Any]()

    def make(url: str, **options: Any) -> Any:
        made.append(
            Roost("t", url, **options) if request.param == "Roost" else Awaited(AsyncRoost("t", url, **options))
        )
        return made[-1]

    yield make
    for one in made:
        one.close() if isinstance(one, Roost) else one.end()


def test_a_followed_log_goes_on_after_a_broken_connection(client: Callable[..., Any]) -> None:
    first = HEAD + chunk(LINE.format(1)) + chunk(LINE.format(2)) + chunk("id: 3\nda")
    second = HEAD + chunk(LINE.format(2)) + chunk(LINE.format(3)) + chunk(END) + b"0\r\n\r\n"
    with a_server(first, second) as (url, heads):
        lines = client(url).follow_logs("job")
        assert [line["message"] for line in lines] == ["1", "2", "3"]
        assert lines.end["exit_code"] == 0
    assert b"last-event-id: 2\r\n" in heads[1].lower()


def test_a_job_is_not_submitted_again_when_its_answer_is_lost(client: Callable[..., Any]) -> None:
    with a_server(b"", b"") as (url, heads):
        with pytest.raises(Unreachable) as error:
            client(url).run("x")
        assert (error.value.sent, len(heads)) == (True, 1)


def test_a_status_is_asked_for_again_when_its_answer_is_lost(client: Callable[..., Any]) -> None:
    answer = b'HTTP/1.1 200 OK\r\nContent-Length: 21\r\n\r\n{"status": "running"}'
    with a_server(b"", answer) as (url, heads):
        answered = client(url).status("job")
        assert (answered, len(heads)) == ({"status": "running"}, 2)


def test_nobody_listening_is_said_with_its_cure(client: Callable[..., Any]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(Unreachable, match="is Roost running") as error:
            client(url, retries=1).status("job")
    assert (error.value.sent, error.value.status_code) == (False, None)


def test_a_url_that_is_none_is_refused(client: Callable[..., Any]) -> None:
    with pytest.raises(Invalid, match="is no URL"):
        client("ftp://x", retries=0).status("job")


def test_credentials_come_from_arguments_the_environment_and_what_was_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in (
        "MAGS_API_TOKEN",
        "MAGS_TOKEN",
        "ROOST_API_TOKEN",
        "ROOST_TOKEN",
        "MAGS_API_URL",
        "ROOST_API_URL",
        "ROOST_URL",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    with pytest.raises(MagsError, match="API token required") as error:
        Roost(api_url="http://far")
    assert isinstance(error.value, Unauthenticated)
    kept = tmp_path / ".config" / "roost" / "config.json"
    kept.parent.mkdir(parents=True)
    kept.write_text('{"url": "http://kept", "token": "k"}')
    assert (Roost().api_url, Roost().api_token) == ("http://kept", "k")
    monkeypatch.setenv("MAGS_API_URL", "http://set/")
    monkeypatch.setenv("MAGS_TOKEN", "s")
    assert (AsyncRoost().api_url, AsyncRoost().api_token) == ("http://set", "s")
    assert (Roost("t", "http://given").api_url, Roost("t").api_token) == ("http://given", "t")


def test_importing_roost_imports_no_http_client() -> None:
    import subprocess
    import sys

    program = "import sys, roost; assert not [n for n in sys.modules if n.startswith(('httpx2', 'roost.sdk'))]"
    subprocess.run(
        [sys.executable, "-c", f"{program}; from roost import Roost; assert 'httpx2' in sys.modules"], check=True
    )
