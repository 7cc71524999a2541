"""A proxy before an S3 server that does to chosen requests what networks and busy servers do."""

import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

_TEXT = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
SLOW_DOWN = b"HTTP/1.1 503 Slow Down\r\nContent-Length: %d\r\n\r\n%s" % (len(_TEXT), _TEXT)
INTERNAL = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"
TOO_MANY = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n"


@dataclass
class Message:
    first: bytes
    head: bytes
    body: bytes


@dataclass
class Proxy:
    """`fault(method, number)` names what happens to the number-th request of a method, or None.

    slow down, too many, error: answered without asking the server. refuse: closed before the request is passed on.
    lost: passed on, and closed instead of the answer. cut: half of the answer's body. slow: silent for `pause` seconds.
    """

    upstream: str
    fault: Callable[[str, int], str | None]
    pause: float = 3.0
    seen: list[tuple[str, str | None]] = field(default_factory=list)

    def __enter__(self) -> "Proxy":
        parts = urlsplit(self.upstream)
        self._to = (parts.hostname or "", parts.port or 80)
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}
        self._server = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.endpoint = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        with self._lock:
            for one in self._open:
                one.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            with self._lock:
                self._open.add(client)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            with client, client.makefile("rb") as stream:
                while request := read_message(stream):
                    if not self._one(client, request):
                        return
        except OSError:
            pass

    def _one(self, client: socket.socket, request: Message) -> bool:
        """False if the connection ends."""
        method = request.first.split()[0].decode()
        with self._lock:
            number = self._counts[method] = self._counts.get(method, -1) + 1
            what = self.fault(method, number)
            self.seen.append((method, what))
        canned = {"slow down": SLOW_DOWN, "error": INTERNAL, "too many": TOO_MANY}
        if what in canned:
            client.sendall(canned[what])
            return True
        if what == "refuse":
            return False
        if what == "slow":
            time.sleep(self.pause)
        with socket.create_connection(self._to) as server, server.makefile("rb") as stream:
            server.sendall(request.head + request.body)
            answer = read_message(stream, answer=True, head_only=method == "HEAD")
        if answer is None or what == "lost":
            return False
        if what == "cut":
            client.sendall(answer.head + answer.body[: len(answer.body) // 2])
            return False
        client.sendall(answer.head + answer.body)
        return True


def read_message(stream: Any, answer: bool = False, head_only: bool = False) -> Message | None:
    first = stream.readline()
    if not first:
        return None
    lines, length, chunked = [first], 0, False
    while (line := stream.readline()) not in (b"\r\n", b""):
        lines.append(line)
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
        chunked |= name.lower() == b"transfer-encoding" and b"chunked" in value
    head = b"".join(lines) + b"\r\n"
    if answer and (head_only or first.split()[1] in (b"204", b"304")):
        return Message(first, head, b"")
    return Message(first, head, _chunks(stream) if chunked else stream.read(length))


def _chunks(stream: Any) -> bytes:
    body = b""
    while True:
        line = stream.readline()
        size = int(line.split(b";")[0], 16)
        body += line + stream.read(size + 2)
        if size == 0:
            return body
