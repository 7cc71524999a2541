"""Who may pass: a host name is public, or wants a token, or a link that somebody signed and that expires.

Tokens are kept as SHA-256 alone. Links carry an HMAC under a key that is derived from the instance's own; it covers the
host, the expiry and the instant since which the access holds, so closing it ends all of its links. What admits a
visitor is taken off the request before a sandbox sees it; a public address has nothing of that kind.
"""

import base64
import hashlib
import hmac
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from roost import ids
from roost.accounts.tokens import digest
from roost.errors import Invalid
from roost.gateways.http.routing import Denial, Headers, Passed

if TYPE_CHECKING:
    from roost.gateways.http.request import Request

Kind: TypeAlias = Literal["public", "token", "signed"]
KINDS: tuple[Kind, ...] = ("public", "token", "signed")
MAX_LINK = 7 * 24 * 3600  # seconds
LINK = 3600  # seconds, where nothing is said
COOKIE = "roost_access"
HEADER = b"x-roost-token"
SIGNATURE = b"roost_signature"
EXPIRES = b"roost_expires"
MAX_EXPIRES = 12  # digits
MAX_COOKIES = 8  # of our name that are looked at


@dataclass(frozen=True)
class Access:
    """How one name may be entered."""

    kind: Kind = "public"
    token_hash: bytes | None = None  # SHA-256
    since_ns: int = 0  # links signed for an earlier one are void


NO_TOKEN = Denial(401, f"this address wants its token: send it as the header X-Roost-Token, or as the cookie {COOKIE}")
NO_LINK = Denial(
    401,
    "this address is reached by a signed link, and there was none, or it has expired or was withdrawn; "
    "ask its owner for a new one",
)


@dataclass(frozen=True)
class Stripped:
    """A request's head without what admits, and that: nothing of it reaches a sandbox."""

    target: bytes
    headers: Headers
    link: str  # `expiry.signature`, as the cookie holds it
    token: str
    cookies: list[str]  # other sandboxes of the domain can set some of our name beside the right one

    @property
    def passed(self) -> Passed:
        return Passed(self.target, self.headers)


class Admission:
    """Decides with the instance's key."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def sign(self, url: str, host: str, access: Access, expires: int) -> str:
        """The link to `url` at `host` that is good until `expires`, in seconds since the epoch."""
        signature = self._signature(host, access, expires)
        return f"{url}/?{EXPIRES.decode()}={expires}&{SIGNATURE.decode()}={signature}"

    def decide(self, access: Access, host: str, request: "Request") -> Passed | Denial:
        if access.kind == "public":
            return Passed(request.target, request.headers)
        shown = stripped(request)
        if access.kind == "token":
            right = any(_is_token(access, one) for one in (shown.token, *shown.cookies))
            return shown.passed if right else NO_TOKEN
        if expires := self._good_until(access, host, shown.link):
            return _welcome(request, shown, expires) if request.navigates else shown.passed
        right = any(self._good_until(access, host, one) for one in shown.cookies)
        return shown.passed if right else NO_LINK

    def _signature(self, host: str, access: Access, expires: int) -> str:
        text = f"{host}\n{access.since_ns}\n{expires}"
        made = hmac.digest(self._key, text.encode(), hashlib.sha256)
        return base64.urlsafe_b64encode(made).decode().rstrip("=")

    def _good_until(self, access: Access, host: str, link: str) -> int:
        """0: the link is none, or not for this name, or has expired."""
        until, _, signature = link.partition(".")
        if not (until.isascii() and until.isdigit() and len(until) <= MAX_EXPIRES and signature.isascii()):
            return 0
        expires = int(until)
        right = hmac.compare_digest(self._signature(host, access, expires), signature)
        return expires if right and expires > time.time() else 0


def new_token() -> tuple[str, bytes]:
    """A token to show once, and what is kept of it."""
    token = ids.api_token()
    return token, digest(token)


def expiry(seconds: int | None) -> int:
    """When a link that is made now ends, in seconds since the epoch. Raises Invalid."""
    wanted = LINK if seconds is None else seconds
    if not 0 < wanted <= MAX_LINK:
        raise Invalid(f"expires_in: {wanted} is out of range; give seconds, 1 to {MAX_LINK} (7 days)")
    return int(time.time()) + wanted


def kind(text: str) -> Kind:
    """Raises Invalid."""
    for one in KINDS:
        if text == one:
            return one
    raise Invalid(f"access: {text[:40]!r} is none of {', '.join(KINDS)}")


def _is_token(access: Access, shown: str) -> bool:
    return bool(shown) and hmac.compare_digest(digest(shown), access.token_hash or b"")


def _welcome(request: "Request", shown: Stripped, expires: int) -> Denial:
    """A browser gets a cookie, for this one host alone, and goes to the same place without the signature."""
    age = max(1, expires - int(time.time()))
    secure = "; Secure" if _by_tls(request) else ""
    cookie = f"{COOKIE}={shown.link}; Path=/; Max-Age={age}; HttpOnly; SameSite=Lax{secure}".encode()
    place = b"/." + shown.target if shown.target.startswith((b"//", b"/\\")) else shown.target  # never another host
    return Denial(302, "", ((b"location", place), (b"set-cookie", cookie), (b"cache-control", b"no-store")))


def _by_tls(request: "Request") -> bool:
    told = request.forwarded or {}  # by a proxy that stands before us, if that is to be trusted
    return request.secure or (request.origin.trusted and told.get(b"x-forwarded-proto") == b"https")


def stripped(request: "Request") -> Stripped:
    target, link = _without_link(request.target)
    token, cookies, kept = "", list[str](), list[tuple[bytes, bytes]]()
    for name, value in request.headers:
        if name == HEADER:
            token = value.decode("latin-1")
        elif name == b"cookie" and COOKIE.encode() in value:
            others, ours = _without_cookie(value)
            cookies += ours
            kept += [(name, others)] if others else []
        else:
            kept.append((name, value))
    return Stripped(target, kept, link, token, cookies[:MAX_COOKIES])


def _without_link(target: bytes) -> tuple[bytes, str]:
    path, mark, query = target.partition(b"?")
    shown, kept = dict[bytes, str](), list[bytes]()
    for part in query.split(b"&"):
        name, _, value = part.partition(b"=")
        if name in (SIGNATURE, EXPIRES):
            shown[name] = value.decode("latin-1")
        else:
            kept.append(part)
    if not shown:
        return target, ""
    clean = path + mark + b"&".join(kept) if kept else path
    return clean, f"{shown.get(EXPIRES, '')}.{shown.get(SIGNATURE, '')}"


def _without_cookie(value: bytes) -> tuple[bytes, list[str]]:
    ours, others = list[str](), list[bytes]()
    for part in filter(None, (part.strip() for part in value.split(b";"))):
        name, _, content = part.partition(b"=")
        if name == COOKIE.encode():
            ours.append(content.decode("latin-1"))
        else:
            others.append(part)
    return b"; ".join(others), ours
