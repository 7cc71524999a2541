"""Host names: which domains are ours, how a sandbox's address is written, and which labels may be chosen.

Three shapes of label are made by Roost and never given away: a job's subdomain, the beginning of its request id, and
what `made_up` makes. Everything else is chosen by people, by the rules of DNS.
"""

import re
import secrets
from dataclasses import dataclass

from roost.errors import Invalid
from roost.settings import ServeSettings

# What official clients send or hard-code; where these are not configured they mean the first domain that is
DOCUMENTED = ("apps.magpiecloud.com", "app.lfg.run")
PREFIX_LENGTH = 12  # characters of a request id that are a host name; computed by clients of the Jobs API
MAX_LABEL = 63  # characters; RFC 1035
MAX_HOST = 253
RESERVED = {
    "abuse", "account", "accounts", "admin", "administrator", "api", "auth", "autoconfig", "autodiscover", "billing",
    "console", "dashboard", "dns", "email", "ftp", "gateway", "hostmaster", "imap", "localhost", "login", "mail",
    "mx", "ns", "oauth", "pop", "postmaster", "proxy", "root", "roost", "security", "smtp", "ssh", "ssl", "sso",
    "tls", "webmail", "webmaster", "wpad", "www",
}  # fmt: skip

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?\Z")
_SUBDOMAIN = re.compile(r"[0-9a-f]{12}\Z")
_PREFIX = re.compile(r"[0-9a-f]{8}-[0-9a-f]{3}\Z")
_MADE_UP = re.compile(r"target-[0-9a-f]{12}\Z")
_NUMBERED = re.compile(r"(ns|mx|dns|www|smtp|mail)\d+\Z")
_AUTHORITY = re.compile(r"(?P<host>[^:\[\]]+?)\.?(:\d{0,5})?\Z")
_AS_THE_WORLD_SEES = re.compile(r"(?P<scheme>https?)(:(?P<port>\d{1,5}))?\Z")


@dataclass(frozen=True)
class Name:
    """A host name of ours: one label in one of the domains, both in lower case."""

    label: str
    domain: str

    @property
    def host(self) -> str:
        return f"{self.label}.{self.domain}"


@dataclass(frozen=True)
class Hosts:
    """The domains whose names lead to sandboxes, and how the world reaches them. The first is the one that is told."""

    domains: tuple[str, ...]
    scheme: str = "http"
    port: int | None = None  # None: the scheme's own

    def name(self, host: str) -> Name | None:
        """Of a Host header: in any case, with or without port and final dot. None: it is not one of ours."""
        if len(host) > MAX_HOST + 7 or (found := _AUTHORITY.match(host)) is None:
            return None
        label, _, domain = found["host"].lower().partition(".")
        return Name(label, domain) if label and domain in self.domains else None

    def url(self, label: str, domain: str | None = None) -> str:
        port = "" if self.port is None else f":{self.port}"
        return f"{self.scheme}://{label}.{domain or self.domains[0]}{port}"

    def local_url(self) -> str | None:
        """By address; None where the names are known to everybody's resolvers, or TLS needs the name."""
        below_localhost = self.domains[0].rpartition(".")[2] == "localhost"
        return self.url("127.0.0", "1") if below_localhost and self.scheme == "http" else None

    def domain(self, asked: str | None) -> str:
        """The configured domain that is meant. Raises Invalid for one that is not configured."""
        wanted = (asked or self.domains[0]).strip().lower().rstrip(".")
        if wanted in self.domains:
            return wanted
        if wanted in DOCUMENTED:
            return self.domains[0]
        raise Invalid(
            f"domain: {wanted[:80]!r} is not served here; configured are {', '.join(self.domains)} "
            "(`roost up --domain`, repeatable, adds more)"
        )


def hosts_of(settings: ServeSettings) -> Hosts:
    """Raises Invalid for settings that are no domains or no SCHEME[:PORT]."""
    domains = tuple(dict.fromkeys(_domain(one) for one in settings.domains))
    if not domains:
        raise Invalid("--domain: none given; give at least one, for example apps.localhost")
    if settings.gateway_url is not None:
        seen = _AS_THE_WORLD_SEES.match(settings.gateway_url)
        if seen is None:
            raise Invalid(f"--gateway-url {settings.gateway_url!r} is not SCHEME[:PORT], for example https:8443")
        return _hosts(domains, seen["scheme"], int(seen["port"] or 0))
    scheme, listens = ("https", settings.gateway_tls) if settings.gateway_tls else ("http", settings.gateway)
    port = listens.rpartition(":")[2]
    return _hosts(domains, scheme, int(port) if port.isascii() and port.isdecimal() else 0)


def _hosts(domains: tuple[str, ...], scheme: str, port: int) -> Hosts:
    own = {"http": 80, "https": 443}[scheme]
    return Hosts(domains, scheme, None if port in (0, own) else port)


def _domain(text: str) -> str:
    domain = text.strip().lower().rstrip(".")
    labels = domain.split(".")
    if len(domain) > MAX_HOST - MAX_LABEL - 1 or not all(len(one) <= MAX_LABEL and _LABEL.match(one) for one in labels):
        raise Invalid(f"--domain {text!r} is not a domain name, for example apps.example.org")
    return domain


def is_subdomain(label: str) -> bool:
    return _SUBDOMAIN.match(label) is not None


def is_prefix(label: str) -> bool:
    return _PREFIX.match(label) is not None


def made_up() -> str:
    """A label for who names none."""
    return f"target-{secrets.token_hex(6)}"


def chosen(subdomain: str) -> str:
    """A label that somebody may choose, in lower case. Raises Invalid with the reason for one that nobody may."""
    label = subdomain.lower()
    if len(label) > MAX_LABEL or not _LABEL.match(label):
        raise Invalid(
            f"subdomain: {subdomain[:80]!r} is no DNS label; give 1 to {MAX_LABEL} of a-z, 0-9 and -, "
            "neither beginning nor ending with -"
        )
    if label in RESERVED or _NUMBERED.match(label):
        raise Invalid(f"subdomain: {label!r} is reserved, since people expect the operator there; choose another")
    if is_subdomain(label):
        raise Invalid(f"subdomain: {label!r} is reserved: 12 hex characters are names of jobs; choose another")
    if is_prefix(label):
        raise Invalid(f"subdomain: {label!r} is reserved: it looks like the beginning of a request id; choose another")
    if _MADE_UP.match(label):
        raise Invalid(f"subdomain: {label!r} is reserved for proxy targets that name none; choose another")
    if label[2:4] == "--":
        raise Invalid(f"subdomain: {label!r} is reserved for international names (RFC 5891); choose another")
    return label
