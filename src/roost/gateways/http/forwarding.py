"""What a sandbox is told of a request: its head as it goes upstream, with our words on where it came from.

X-Forwarded-For, -Proto, -Host, -Port, X-Real-IP and Forwarded (RFC 7239) are ours: what a client sent under these names
is dropped. With the setting `gateway_url`, which says that a proxy stands before us, connections from loopback are that
proxy's: its words are kept and its own address is added to them. Via is not added.
"""

from functools import lru_cache

from roost.gateways.http.request import Framing, Origin, Request
from roost.gateways.http.routing import Headers, Passed


def request_head(request: Request, passed: Passed) -> bytes:
    """Names are in lower case, as in HTTP/2. That of a request which comes again, and passes as it is, is kept."""
    unchanged = passed.headers is request.headers and passed.target is request.target
    if unchanged and request.relayed:
        return request.relayed
    head = _request_head(request, passed)
    if unchanged:
        request.relayed = head
    return head


def _request_head(request: Request, passed: Passed) -> bytes:
    target = passed.target
    host = b"localhost" if _is_devtools(target) else request.authority
    lines = [b"%b %b HTTP/1.1\r\nhost: %b\r\n" % (request.method, target, host)]
    lines += [b"%b: %b\r\n" % field for field in passed.headers]
    if request.forwarded is None or not request.origin.trusted:
        lines.append(_forwarded(request.origin, request.authority))
    else:
        lines += [b"%b: %b\r\n" % field for field in _continued(request, request.forwarded)]
    if request.framing is Framing.LENGTH:
        lines.append(b"content-length: %d\r\n" % request.length)
    elif request.framing is not Framing.NONE:
        lines.append(b"transfer-encoding: chunked\r\n")
    if request.upgrade is not None:
        lines.append(b"connection: Upgrade\r\nupgrade: %b\r\n" % request.upgrade)
    lines.append(b"\r\n")
    return b"".join(lines)


def _is_devtools(target: bytes) -> bool:
    """Chromium answers those for local names only."""
    if not target.startswith((b"/json", b"/devtools/")):
        return False
    path = target.partition(b"?")[0]
    return path == b"/json" or path.startswith((b"/json/", b"/devtools/"))


@lru_cache(maxsize=4096)
def _forwarded(origin: Origin, authority: bytes) -> bytes:
    return b"".join(b"%b: %b\r\n" % field for field in _own_words(origin, authority))


def _own_words(origin: Origin, authority: bytes) -> Headers:
    address, scheme = origin.address.encode(), b"https" if origin.secure else b"http"
    return (
        (b"x-forwarded-for", address),
        (b"x-forwarded-proto", scheme),
        (b"x-forwarded-host", authority),
        (b"x-forwarded-port", _port(authority, scheme)),
        (b"x-real-ip", address),
        (b"forwarded", b"for=%b;host=%b;proto=%b" % (_node(address), _quoted(authority), scheme)),
    )


def _continued(request: Request, said: dict[bytes, bytes]) -> Headers:
    """A proxy of ours said where its client is: that stands first, then the proxy."""
    own = dict(_own_words(request.origin, request.authority))
    for name in (b"x-forwarded-proto", b"x-forwarded-host", b"x-forwarded-port", b"x-real-ip"):
        own[name] = said.get(name, own[name])
    for name in (b"x-forwarded-for", b"forwarded"):
        if name in said:
            own[name] = said[name] + b", " + own[name]
    return tuple(own.items())


def _port(authority: bytes, scheme: bytes) -> bytes:
    port = authority.rpartition(b"]")[2].partition(b":")[2]
    return port or (b"443" if scheme == b"https" else b"80")


def _node(address: bytes) -> bytes:
    return b'"[%b]"' % address if b":" in address else address


def _quoted(authority: bytes) -> bytes:
    return b'"%b"' % authority if b":" in authority else authority
