"""Bytes between an SSH channel and what lies behind it, with back-pressure both ways.

A channel's own window is as large as its client says, so it alone bounds nothing: `Outlet` waits for the connection's
socket too.
"""

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from roost.gateways.ssh.connection import Connection

HELD = 256 * 1024  # bytes from a client that wait here; then its channel is not read


class Inlet:
    """What the client sends. Fed by the channel's callbacks, read by one task."""

    def __init__(self) -> None:
        self.channel: Any = None
        self._parts: deque[bytes] = deque()
        self._size = 0
        self._ended = False
        self._paused = False
        self._more = asyncio.Event()

    def put(self, data: bytes) -> None:
        self._parts.append(data)
        self._size += len(data)
        self._more.set()
        if self._size > HELD and not self._paused and self.channel is not None:
            self._paused = True
            self.channel.pause_reading()

    def end(self) -> None:
        self._ended = True
        self._more.set()

    async def get(self) -> bytes:
        """The next bytes; none at the end."""
        while not self._parts:
            if self._ended:
                return b""
            self._more.clear()
            await self._more.wait()
        data = b"".join(self._parts)
        self._parts.clear()
        self._size = 0
        if self._paused:
            self._paused = False
            self.channel.resume_reading()
        return data


class Outlet:
    """What the client is sent."""

    def __init__(self, connection: "Connection") -> None:
        self.channel: Any = None
        self._connection = connection
        self._room = asyncio.Event()
        self._room.set()

    def pause(self) -> None:
        self._room.clear()

    def resume(self) -> None:
        self._room.set()

    async def write(self, data: bytes, datatype: int | None = None) -> None:
        """Returns when more may follow. What comes after the channel's end is dropped."""
        if not self.channel.is_closing():
            self.channel.write(data, datatype)
        await self._room.wait()
        await self._connection.flowing()
