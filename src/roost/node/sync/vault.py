"""Where the objects of one account are, and how they are sealed.

Data under an encryption key has a place of its own below the account, named by a fingerprint of the key, so each place
can be read, collected and checked with one key (or none).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from roost.errors import Invalid
from roost.node.sync.seal import Seal
from roost.node.sync.store import Listed, Store

_ACCOUNT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")

PACK, INDEX, REVISION, CONDEMNED = "pack", "index", "revision", "condemned"


@dataclass(frozen=True)
class Vault:
    store: Store
    account: str
    key: bytes | None = field(default=None, repr=False)

    seal: Seal = field(init=False, repr=False, compare=False)
    root: str = field(init=False, compare=False)

    def __post_init__(self) -> None:
        if not _ACCOUNT.fullmatch(self.account):
            raise Invalid(f"account {self.account!r}: use letters, digits, '.', '_' and '-', 128 at most")
        seal = Seal(self.key)
        object.__setattr__(self, "seal", seal)
        object.__setattr__(self, "root", self.account + (f"/key-{seal.domain}" if seal.domain else "/open"))

    def path(self, kind: str, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise Invalid(f"{name!r} is not the name of a {kind}")
        return f"{self.root}/{kind}/{name}"

    def listed(self, kind: str) -> Iterator[tuple[str, Listed]]:
        """Name and object of each of a kind; what is not named by us is not ours."""
        for found in self.store.list(f"{self.root}/{kind}"):
            name = found.name.rpartition("/")[2]
            if found.name == f"{self.root}/{kind}/{name}" and _NAME.fullmatch(name):
                yield name, found

    def names(self, kind: str) -> list[str]:
        return [name for name, _ in self.listed(kind)]

    def create(self, kind: str, name: str, value: bytes) -> int:
        """Seal and write; returns the bytes stored."""
        sealed = self.seal.close(value, role(kind, name))
        self.store.create(self.path(kind, name), sealed)
        return len(sealed)

    def read(self, kind: str, name: str, limit: int) -> bytes:
        sealed = self.store.read(self.path(kind, name), limit)
        return self.seal.open(sealed, role(kind, name), limit)

    def delete(self, kind: str, name: str) -> None:
        self.store.delete(self.path(kind, name))


def role(kind: str, name: str) -> bytes:
    return f"{kind}/{name}".encode()
