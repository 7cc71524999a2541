"""What an image says of the processes in it: environment, working directory and user, as Docker has them.

It is read when an image is made and kept beside its content, so that a claim reads one small file. The user is looked
up in the image's own /etc/passwd at that time; a working directory that is not there is made.
"""

import re
import stat
from pathlib import Path, PurePosixPath

import msgspec

from roost.errors import Invalid
from roost.node.images import tree

HOME = "/root"  # where processes begin, unless the image says otherwise
MAX_VARIABLES = 1000
MAX_ENVIRONMENT = 64 * 1024  # bytes, as the kernel counts
MAX_FILE = 4 * 1024 * 1024  # bytes of /etc/passwd or /etc/group
MAX_ID = 65535  # a sandbox's user namespace maps ids 0 to 65535
_ID = re.compile(r"[0-9]{1,10}")


class Config(msgspec.Struct, frozen=True):
    """What processes begin with. A job's own environment, directory or user wins."""

    environment: dict[str, str] = {}
    directory: str = HOME
    uid: int = 0
    gid: int = 0

    def as_root(self) -> "Config":
        """The same for root, at home in /root."""
        own = {"HOME": HOME, "USER": "root", "LOGNAME": "root"} if self.uid else {}
        return Config(self.environment | own)


class Told(msgspec.Struct, frozen=True, rename="pascal"):
    """The part of an image's configuration that is used. Its entry point and command are not: a job has a script."""

    env: list[str] | None = None
    working_dir: str | None = None
    user: str | None = None


NOTHING = Told()


class User(msgspec.Struct, frozen=True):
    name: str | None
    uid: int
    gid: int
    home: str


def prepare(told: Told, root: Path) -> Config:
    """Raises Invalid for what cannot be honoured. `root` may be hostile; nothing outside of it is touched."""
    environment = _environment(told.env or [])
    directory = _directory(told.working_dir or "", root)
    if not told.user or told.user in ("0", "root", "0:0", "root:root"):
        return Config(environment, directory)
    user = _user(told.user, root)
    own = {"HOME": user.home} | ({"USER": user.name, "LOGNAME": user.name} if user.name else {})
    return Config(own | environment, directory, user.uid, user.gid)


def _environment(entries: list[str]) -> dict[str, str]:
    split = (entry.partition("=") for entry in entries)
    pairs = {name: value for name, _, value in split}
    if len(pairs) > MAX_VARIABLES or sum(len(entry.encode()) + 1 for entry in entries) > MAX_ENVIRONMENT:
        raise Invalid(f"the image's environment has more than {MAX_VARIABLES} variables or {MAX_ENVIRONMENT} bytes")
    for name, value in pairs.items():
        if not name or "\0" in name + value:
            raise Invalid(f"the image's environment has a variable that no process can have: {name[:80]!r}")
    return pairs


def _directory(path: str, root: Path) -> str:
    """`/` counts as not said: builders write it into every image, and scripts are at home in /root."""
    wanted = PurePosixPath("/", path)
    if path.strip() == "" or wanted == PurePosixPath("/"):
        return HOME
    if "\0" in path or ".." in wanted.parts or len(path) > 1024:
        raise Invalid(f"the image's working directory {path[:80]!r} is no path of a directory")
    try:
        tree.inside(root, str(wanted)).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Invalid(f"the image's working directory {path[:80]!r} cannot be made: {error.strerror}") from None
    return str(wanted)


def _user(text: str, root: Path) -> User:
    """`NAME`, `UID`, each with `:GROUP` or `:GID`. Raises Invalid."""
    name, _, group = text.partition(":")
    row = _row(root, "/etc/passwd", name)
    if row is None and not _ID.fullmatch(name):
        raise Invalid(f"the image says USER {text[:80]!r}, but its /etc/passwd has no {name[:80]!r}")
    uid, gid = int(row[2] if row else name), int(row[3]) if row else 0
    if group:
        found = _row(root, "/etc/group", group)
        if found is None and not _ID.fullmatch(group):
            raise Invalid(f"the image says USER {text[:80]!r}, but its /etc/group has no {group[:80]!r}")
        gid = int(found[2] if found else group)
    if max(uid, gid) > MAX_ID:
        raise Invalid(f"the image says USER {text[:80]!r}, but a sandbox has the ids 0 to {MAX_ID} only")
    return User(row[0] if row else None, uid, gid, (row[5] if row else "") or "/")


def _row(root: Path, path: str, wanted: str) -> list[str] | None:
    """Of a file of accounts: the one of that name, else of that number."""
    rows = [line.split(":") for line in _text(tree.inside(root, path)).splitlines()]
    columns = 7 if path.endswith("passwd") else 4
    whole = [row for row in rows if len(row) >= columns and all(_ID.fullmatch(one) for one in row[2 : columns - 3])]
    named = next((row for row in whole if row[0] == wanted), None)
    return named or next((row for row in whole if row[2] == wanted), None)


def _text(path: Path) -> str:
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return ""
        with path.open("rb") as file:
            return file.read(MAX_FILE).decode(errors="replace").replace("\0", "")
    except OSError:
        return ""
