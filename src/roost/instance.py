"""One Roost on this machine: its state directory, lock, number and the credentials of its first account.

The number N (0 to 15) keeps instances apart: names, addresses and uid ranges derive from it. The file
/run/roost/N/state says whose it is. A number outlives a crash, so that the next start with the same state finds
its sandboxes again; it is given to another only when its owner is gone. All of this is decided under the one
lock /run/roost/lock.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from roost import ids
from roost.errors import Conflict, Invalid, NoCapacity

RUN = Path("/run/roost")
DEFAULT_STATE = Path("/var/lib/roost")
DEFAULT_IMAGES = Path("/var/lib/roost/images")
INSTANCES = 16


@dataclass(frozen=True)
class Credentials:
    """How a client reaches the API; the file has exactly these two keys."""

    api_url: str
    api_token: str


def credentials_path(state: Path) -> Path:
    return state / "credentials.json"


def read_credentials(state: Path) -> Credentials:
    """Raises OSError where the file cannot be read, Invalid where it is not ours."""
    path = credentials_path(state)
    try:
        values = json.loads(path.read_bytes())
        return Credentials(str(values["api_url"]), str(values["api_token"]))
    except (ValueError, KeyError, TypeError) as error:
        text = f"{path} has no api_url and api_token; remove it and start `roost up` again, which writes it"
        raise Invalid(text) from error


def settle_credentials(state: Path, api_url: str) -> Credentials:
    """The state's credentials with this address; made on the first run, for whoever called sudo."""
    try:
        known = read_credentials(state)
    except FileNotFoundError:
        known = Credentials("", ids.api_token())
    settled = Credentials(api_url, known.api_token)
    if settled != known:
        _write_private(credentials_path(state), json.dumps(settled.__dict__, indent=2) + "\n", _caller())
    return settled


def _caller() -> int:
    """The user who started this program, through sudo or not, or who installed the service that did."""
    return int(os.environ.get("ROOST_OWNER") or os.environ.get("SUDO_UID") or os.getuid())


def _write_private(path: Path, text: str, owner: int) -> None:
    """Whole or not at all, and never readable by others, not even for a moment."""
    draft = path.with_name(path.name + ".new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    if owner != os.getuid():
        os.chown(draft, owner, -1)
    draft.replace(path)


@dataclass(frozen=True)
class Instance:
    """A claimed state directory and number; `lock` is the descriptor that holds the claim."""

    state: Path
    number: int
    lock: int

    @property
    def runtime_dir(self) -> Path:
        return RUN / str(self.number)

    @property
    def node_socket(self) -> Path:
        return self.runtime_dir / "node.sock"

    def announce(self, api_url: str) -> None:
        """Tell every user of this machine where it is; who they are there, it asks them itself."""
        draft = self.runtime_dir / "url.new"
        draft.write_text(f"{api_url}\n")
        draft.chmod(0o644)
        draft.replace(self.runtime_dir / "url")

    def release(self) -> None:
        """Give the number back, unless something of a sandbox is left: then the next start cleans up."""
        with _registry():
            (self.runtime_dir / "url").unlink(missing_ok=True)
            if _owner(self.number) == self.state and not _leftovers(self.number):
                shutil.rmtree(self.runtime_dir, ignore_errors=True)
            os.close(self.lock)


def claim(state: Path) -> Instance:
    """Take `state`, an absolute path. Conflict: another process has it. NoCapacity: no number is left."""
    with _registry():
        lock = _try_lock(state, os.O_CREAT)
        if lock is None:
            text = f"another `roost up` runs on {state}; stop it, or choose another directory with --state"
            raise Conflict(text)
        try:
            number = _number_for(state)
            _record(number, state)
        except BaseException:
            os.close(lock)
            raise
        return Instance(state, number, lock)


def known_states() -> Iterator[Path]:
    """The state directories of the instances that have a number now."""
    for number in range(INSTANCES):
        state = _owner(number)
        if state is not None and not _gone(state):
            yield state


def known_urls() -> dict[Path, str]:
    """Where the instances of this machine are, by their states; also for who may not read their credentials."""
    found = dict[Path, str]()
    for number in range(INSTANCES):
        with suppress(OSError):
            state, url = _owner(number), (RUN / str(number) / "url").read_text().strip()
            if state is not None and url:
                found[state] = url
    return found


def _gone(state: Path) -> bool:
    try:
        state.stat()
    except FileNotFoundError:
        return True
    except PermissionError:
        return False
    return False


@contextmanager
def _registry() -> Generator[None]:
    RUN.mkdir(mode=0o711, parents=True, exist_ok=True)
    RUN.chmod(0o711)  # the umask may have narrowed it; others pass through, to their own instance
    with open(RUN / "lock", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _try_lock(state: Path, flags: int = 0) -> int | None:
    """The lock's descriptor, or None where another process holds it."""
    lock = os.open(state / "lock", os.O_RDWR | os.O_CLOEXEC | flags, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def _owner(number: int) -> Path | None:
    try:
        text = (RUN / str(number) / "state").read_text().strip()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return Path(text) if text else None


def _alive(state: Path) -> bool:
    try:
        lock = _try_lock(state)
    except (FileNotFoundError, NotADirectoryError):
        return False
    if lock is None:
        return True
    os.close(lock)
    return False


def _number_for(state: Path) -> int:
    owners = {number: _owner(number) for number in range(INSTANCES)}
    own = [number for number, owner in owners.items() if owner == state]
    if own:
        return own[0]
    unowned = [number for number, owner in owners.items() if owner is None or not _alive(owner)]
    free = [number for number in unowned if not _leftovers(number)]
    # whose state is gone nobody will start again: the new owner's node sweeps what is left
    abandoned = [n for n in unowned if (owner := owners[n]) is None or not owner.is_dir()]
    if not free and not abandoned:
        text = f"all {INSTANCES} instance numbers of this machine are taken (see {RUN}/*/state); stop one"
        raise NoCapacity(text)
    return (free or abandoned)[0]


def _record(number: int, state: Path) -> None:
    place = RUN / str(number)
    if _owner(number) not in (None, state) and not _leftovers(number):
        shutil.rmtree(place, ignore_errors=True)
    place.mkdir(exist_ok=True)
    place.chmod(0o711)
    draft = place / "state.new"
    draft.write_text(f"{state}\n")
    draft.chmod(0o644)  # clients look here for the default instance
    draft.replace(place / "state")


def _leftovers(number: int) -> bool:
    """Whether mounts, cgroups or network ends of this number exist."""
    place = RUN / str(number)
    below = f" {place}/"
    mounts = Path("/proc/self/mountinfo").read_text()
    cgroups = Path("/sys/fs/cgroup")
    return (
        below in mounts
        or (cgroups / _delegated(place) / f"roost-{number}").exists()
        or any(cgroups.glob(f"*/roost-{number}"))
        or any(Path("/sys/class/net").glob(f"r{number}v*"))
    )


def _delegated(place: Path) -> str:
    """Below which group a node with cgroup v2 made its own (`node/delegation.py`), relative to the tree's root."""
    try:
        return (place / "cgroup").read_text().strip().lstrip("/")
    except OSError:
        return ""
