"""Which distribution, suite and mirrors an image is built from: the host's own where they fit, else the public ones.

The machine's mirror setting is honoured because the public mirror is often unreachable from where servers stand.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from roost.errors import Invalid, SetupMissing

Distribution = Literal["debian", "ubuntu"]

DEFAULT_SUITE = "bookworm"  # what a request says when its author did not choose
SUITES: dict[str, Distribution] = {
    "bullseye": "debian",
    "bookworm": "debian",
    "trixie": "debian",
    "jammy": "ubuntu",
    "noble": "ubuntu",
}
KEYRINGS: dict[Distribution, str] = {
    "debian": "/usr/share/keyrings/debian-archive-keyring.gpg",
    "ubuntu": "/usr/share/keyrings/ubuntu-archive-keyring.gpg",
}
KEYRING_PACKAGES: dict[Distribution, str] = {
    "debian": "debian-archive-keyring",
    "ubuntu": "ubuntu-keyring",
}
COMPONENTS: dict[Distribution, str] = {"debian": "main", "ubuntu": "main universe"}


@dataclass(frozen=True)
class Source:
    """One archive and the suites taken from it."""

    uri: str
    suites: tuple[str, ...]


@dataclass(frozen=True)
class Host:
    """What this machine is and where it gets its packages."""

    distribution: str  # ID of os-release
    codename: str
    sources: tuple[Source, ...]
    keyrings: frozenset[str]

    @classmethod
    def read(cls, root: Path = Path("/")) -> "Host":
        release = _os_release(root / "etc/os-release")
        return cls(
            distribution=release.get("ID", ""),
            codename=release.get("VERSION_CODENAME", ""),
            sources=tuple(_host_sources(root / "etc/apt")),
            keyrings=frozenset(path for path in KEYRINGS.values() if root.joinpath(path[1:]).exists()),
        )


@dataclass(frozen=True)
class Origin:
    """From what an image is built."""

    distribution: Distribution
    suite: str
    sources: tuple[Source, ...]

    @property
    def keyring(self) -> str:
        return KEYRINGS[self.distribution]

    def deb822(self) -> str:
        """The text of the image's apt sources, which mmdebstrap reads too."""
        return "\n".join(
            f"Types: deb\nURIs: {source.uri}\nSuites: {' '.join(source.suites)}\n"
            f"Components: {COMPONENTS[self.distribution]}\nSigned-By: {self.keyring}\n"
            for source in self.sources
        )


def choose(suite: str, host: Host) -> Origin:
    """The origin of `suite`. Where nobody chose one and the host has no Debian keys, the host's own distribution.

    Raises Invalid (unknown suite), SetupMissing (its archive keys are not on this machine).
    """
    if suite == DEFAULT_SUITE and KEYRINGS["debian"] not in host.keyrings and host.codename in SUITES:
        suite = host.codename
    distribution = SUITES.get(suite)
    if distribution is None:
        raise Invalid(f"suite {suite!r} is not known; choose one of {', '.join(SUITES)}")
    if KEYRINGS[distribution] not in host.keyrings:
        package = KEYRING_PACKAGES[distribution]
        raise SetupMissing(f"building {suite} needs the archive keys of {distribution}: install {package}")
    wanted = {suite, f"{suite}-updates", f"{suite}-security"}
    own = _matching(host.sources, wanted) if host.distribution == distribution else ()
    has_main = any(suite in source.suites for source in own)
    return Origin(distribution, suite, own if has_main else _public(distribution, suite))


def _matching(sources: Iterable[Source], wanted: set[str]) -> tuple[Source, ...]:
    found: dict[tuple[str, str], None] = {}
    for source in sources:
        found.update({(source.uri, suite): None for suite in source.suites if suite in wanted})
    uris = dict.fromkeys(uri for uri, _ in found)
    return tuple(Source(uri, tuple(suite for of, suite in found if of == uri)) for uri in uris)


def _public(distribution: Distribution, suite: str) -> tuple[Source, ...]:
    if distribution == "debian":
        return (
            Source("http://deb.debian.org/debian", (suite, f"{suite}-updates")),
            Source("http://deb.debian.org/debian-security", (f"{suite}-security",)),
        )
    return (
        Source("http://archive.ubuntu.com/ubuntu", (suite, f"{suite}-updates")),
        Source("http://security.ubuntu.com/ubuntu", (f"{suite}-security",)),
    )


def _os_release(path: Path) -> dict[str, str]:
    pairs = (line.partition("=") for line in path.read_text().splitlines() if "=" in line)
    return {key: value.strip("\"'") for key, _, value in pairs}


def _host_sources(apt: Path) -> list[Source]:
    found: list[Source] = []
    for path in [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*"))]:
        if not path.is_file():
            continue
        text = path.read_text(errors="replace")
        if path.suffix == ".list":
            found += one_line_sources(text)
        elif path.suffix == ".sources":
            found += deb822_sources(text)
    return found


def one_line_sources(text: str) -> list[Source]:
    """`deb [options] URI SUITE COMPONENT…`, one per line."""
    lines = (re.sub(r"\[.*?\]", "", line.partition("#")[0]).split() for line in text.splitlines())
    return [
        Source(words[1].rstrip("/"), (words[2],))
        for words in lines
        if len(words) >= 4 and words[0] == "deb" and _usable(words[1]) and "main" in words[3:]
    ]


def deb822_sources(text: str) -> list[Source]:
    """Stanzas of `Field: value`, continued by indented lines."""
    found: list[Source] = []
    for stanza in re.split(r"\n\s*\n", re.sub(r"(?m)^#.*\n?", "", text)):
        unfolded = re.sub(r"\n[ \t]+", " ", stanza)
        pairs = (line.partition(":") for line in unfolded.splitlines())
        fields = {key.strip().lower(): value.split() for key, _, value in pairs}
        if fields.get("enabled") == ["no"] or "deb" not in fields.get("types", []):
            continue
        if "main" in fields.get("components", []):
            suites = tuple(fields.get("suites", []))
            found += [Source(uri.rstrip("/"), suites) for uri in fields.get("uris", []) if _usable(uri)]
    return found


def _usable(uri: str) -> bool:
    """Over HTTP, and without a password, which would end up readable in every sandbox."""
    parts = urlsplit(uri)
    return parts.scheme in ("http", "https") and "@" not in parts.netloc
