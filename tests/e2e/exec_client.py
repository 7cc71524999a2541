"""A client of an exec's WebSocket that keeps to its rules, and can lose its connection."""

import json
import struct
from dataclasses import dataclass, field
from typing import Any

from websockets.sync.client import ClientConnection, connect

from tests.e2e.instance import Api

HEAD = struct.Struct(">BQ")
WITHIN = 60.0  # seconds


def start(api: Api, job: str, command: str, **fields: object) -> str:
    status, answer = api.ask("POST", f"/mags-jobs/{job}/execs", {"command": command, **fields}, timeout=100)
    assert status == 201, answer
    return answer["exec_id"]


def show(api: Api, job: str, exec: str) -> dict[str, Any]:
    return api.call("GET", f"/mags-jobs/{job}/execs/{exec}")


@dataclass
class Stream:
    """`output` holds what came of each source, over all connections."""

    api: Api
    job: str
    exec: str
    output: dict[int, bytearray] = field(default_factory=lambda: {0: bytearray(), 1: bytearray(), 2: bytearray()})
    seq: int = 0
    taken: int = 0
    state: dict[str, Any] = field(default_factory=dict[str, Any])
    end: dict[str, Any] | None = None
    errors: list[str] = field(default_factory=list[str])
    connection: ClientConnection | None = None

    def open(self) -> "Stream":
        url = self.api.url.replace("http", "ws", 1)
        self.connection = connect(
            f"{url}/api/v1/mags-jobs/{self.job}/execs/{self.exec}/stream?after={self.seq}",
            additional_headers={"Authorization": f"Bearer {self.api.token}"},
            compression=None,
            open_timeout=100,
            close_timeout=1,
            max_size=None,
            legacy=True,  # not left where it was opened
        )
        while not self.hear().get("status"):
            pass
        return self

    def cut(self) -> None:
        """The connection breaks, without a word."""
        assert self.connection
        self.connection.socket.close()
        self.connection = None

    def hear(self) -> dict[str, Any]:
        """The next message, taken in; that of output is empty."""
        assert self.connection
        message = self.connection.recv(WITHIN)
        if isinstance(message, bytes):
            source, seq = HEAD.unpack_from(message)
            assert seq > self.seq
            self.seq = seq
            self.output[source] += message[HEAD.size :]
            return {}
        told: dict[str, Any] = json.loads(message)
        if told["type"] == "state":
            self.state, self.taken = told, told["input_taken"]
        elif told["type"] == "input":
            self.taken = told["taken"]
        elif told["type"] == "error":
            self.errors.append(told["error"])
        else:
            self.end = told
        return told

    def send(self, at: int, data: bytes) -> None:
        assert self.connection
        self.connection.send(struct.pack(">Q", at) + data)

    def order(self, type: str, **fields: object) -> None:
        assert self.connection
        self.connection.send(json.dumps({"type": type, **fields}))

    def until(self, words: bytes) -> bytes:
        while words not in self.output[1]:
            assert self.end is None, (self.end, self.output)
            self.hear()
        return bytes(self.output[1])

    def to_the_end(self) -> dict[str, Any]:
        while self.end is None:
            self.hear()
        return self.end
