"""What a client says first on a TLS connection: the name it wants and the protocols it speaks (RFC 8446, 4.1.2).

The gateway looks at it before TLS begins, since a certificate may have to be ordered first, which may take seconds.
A bounded reader of hostile bytes: it takes nothing that does not fit and decides nothing about trust.
"""

from dataclasses import dataclass

MAX_HELLO = 16 * 1024  # bytes; a browser's has 0.5 to 2 KB, one with post-quantum keys for two groups 4 KB
MAX_NAME = 253

HANDSHAKE = 22
CLIENT_HELLO = 1
SERVER_NAME, ALPN = 0, 16
HOST_NAME = 0


class NotTls(Exception):
    """These bytes do not begin a TLS handshake."""


@dataclass(frozen=True)
class ClientHello:
    server_name: str | None  # lower case, without a dot at the end; None: an address, or an old client
    protocols: tuple[bytes, ...] = ()


class Fields:
    """Reads numbers and length-prefixed bytes; NotTls where something ends too soon."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._data):
            raise NotTls("a field of the ClientHello is cut off")
        taken, self._at = self._data[self._at : end], end
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def block(self, size: int) -> bytes:
        """Bytes that `size` bytes of length precede."""
        return self.take(self.number(size))


def read_hello(data: bytes) -> ClientHello | None:
    """From the first bytes of a connection; None: more are needed. Raises NotTls."""
    message = _handshake_message(data)
    if message is None:
        return None
    fields = Fields(message)
    fields.take(2 + 32)  # version, random
    fields.block(1)  # session
    fields.block(2)  # ciphers
    fields.block(1)  # compression
    extensions = Fields(fields.block(2) if fields else b"")
    name: str | None = None
    protocols: tuple[bytes, ...] = ()
    while extensions:
        kind, body = extensions.number(2), Fields(extensions.block(2))
        if kind == SERVER_NAME:
            name = _server_name(Fields(body.block(2)))
        elif kind == ALPN:
            protocols = _protocols(Fields(body.block(2)))
    return ClientHello(name, protocols)


def _handshake_message(data: bytes) -> bytes | None:
    """The ClientHello's body, out of the one or more records that it is cut into."""
    message = b""
    rest = data
    while rest:
        if rest[0] != HANDSHAKE or (len(rest) > 1 and rest[1] != 3):
            raise NotTls("not a TLS handshake record")
        if len(rest) < 5:
            return None
        length = int.from_bytes(rest[3:5], "big")
        if not 0 < length <= MAX_HELLO:
            raise NotTls(f"a record of {length} bytes")
        message += rest[5 : 5 + length]
        if message[:1] not in (b"", bytes([CLIENT_HELLO])):
            raise NotTls("the first message is no ClientHello")
        if len(message) >= 4:
            size = int.from_bytes(message[1:4], "big")
            if size > MAX_HELLO:
                raise NotTls(f"a ClientHello of {size} bytes")
            if len(message) >= 4 + size:
                return message[4 : 4 + size]
        if len(rest) < 5 + length:
            break
        rest = rest[5 + length :]
    if len(data) >= MAX_HELLO:
        raise NotTls(f"no ClientHello within {MAX_HELLO} bytes")
    return None


def _server_name(names: Fields) -> str | None:
    while names:
        kind, name = names.number(1), names.block(2)
        if kind == HOST_NAME:
            if not 0 < len(name) <= MAX_NAME or not name.isascii():
                raise NotTls("a server name that is none")
            return name.decode("ascii").lower().rstrip(".")
    return None


def _protocols(names: Fields) -> tuple[bytes, ...]:
    found: list[bytes] = []
    while names:
        found.append(names.block(1))
    return tuple(found)
