"""The object store: a directory, S3, GCS or Azure behind one library, with retries of our own.

Objects are created once and never changed. A create whose answer was lost shows as "already exists" when it is
repeated; it counts as done only if what is there is, byte for byte, what was to be written. Calls block: use threads.
"""

import random
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec
import obstore
from obstore import exceptions as failure
from obstore.store import LocalStore, from_url

from roost.errors import Conflict, Invalid, NotFound, StateUnwritable, StoreUnavailable
from roost.node.sync.files import write_back

T = TypeVar("T")

_list: Any = getattr(obstore, "list")  # noqa: B009 its stub names a library that is not here

FIRST_PAUSE, LAST_PAUSE = 0.1, 5.0  # seconds between attempts; doubled each time, with full jitter
PAGE = 1000  # objects in one answer to a listing, the most that S3 gives

# Answers with these statuses will be the same next time. 408 and 429 are not among them.
_FINAL = re.compile(r"status:? (?:client error )?(?:\()?(4(?!08|29)\d\d)")
_FULL = re.compile(r"No space left|Disk quota exceeded|Read-only file system|os error (?:28|30|122)")


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to reach a store. `config` passes the library's own settings for GCS and Azure.

    attempts: how often one request is made at most. timeout: seconds for one attempt.
    """

    endpoint: str | None = None
    region: str = "us-east-1"
    access_key: str | None = None
    secret_key: str | None = None
    session_token: str | None = None
    path_style: bool = True
    attempts: int = 8
    timeout: float = 60.0
    config: dict[str, str] = {}


@dataclass(frozen=True)
class Listed:
    """name: relative to the store's root. modified: seconds since the epoch by the store's clock."""

    name: str
    size: int
    modified: float


def s3_config(options: Options) -> dict[str, Any]:
    config: dict[str, Any] = {
        "region": options.region,
        "virtual_hosted_style_request": not options.path_style,
        "conditional_put": "etag",
    }
    named = {
        "endpoint": options.endpoint,
        "access_key_id": options.access_key,
        "secret_access_key": options.secret_key,
        "session_token": options.session_token,
    }
    return config | {name: value for name, value in named.items() if value is not None} | options.config


def open_store(url: str, options: Options | None = None) -> "Store":
    """`file:///DIR` (made if missing), `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX` or `az://CONTAINER/PREFIX`."""
    options = options or Options()
    parts = urlsplit(url)
    if parts.scheme == "file":
        path = Path(parts.path)
        if not path.is_absolute():
            raise Invalid(f"object store {url!r}: write an absolute directory, file:///DIR")
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StoreUnavailable(f"the object store's directory {path} cannot be used: {error.strerror}") from error
        return Store(LocalStore(path), options, local=path, continues=False)
    if parts.scheme not in ("s3", "gs", "az") or not parts.netloc:
        raise Invalid(f"object store {url!r}: write file:///DIR, s3://BUCKET/PREFIX, gs://… or az://…")
    client: Any = {
        "timeout": timedelta(seconds=options.timeout),
        "connect_timeout": timedelta(seconds=min(10.0, options.timeout)),
        "allow_http": (options.endpoint or "").startswith("http://"),
    }
    config: Any = s3_config(options) if parts.scheme == "s3" else dict(options.config)
    if parts.scheme == "az" and options.endpoint:
        config["endpoint"] = options.endpoint
    try:
        remote = from_url(url, config=config, client_options=client, retry_config={"max_retries": 0})
    except (failure.BaseError, ValueError, TypeError) as error:
        raise Invalid(f"object store {url!r} cannot be used as configured: {_first_line(error)}") from error
    return Store(remote, options, local=None, continues=parts.scheme != "az")


class Store:
    """Safe to use from several threads. Names are `/`-separated and never begin with one."""

    def __init__(self, remote: Any, options: Options, local: Path | None, continues: bool) -> None:
        """`continues`: a listing can go on from a name, so that one that broke off need not begin anew."""
        self._remote = remote
        self._options = options
        self._local = local
        self._continues = continues
        self.retried = 0

    def create(self, name: str, data: bytes) -> None:
        """Write a new object. Conflict if the name is taken by something else."""
        self._attempt(f"create {name}", lambda: self._create(name, data))

    def _create(self, name: str, data: bytes) -> None:
        try:
            obstore.put(self._remote, name, data, mode="create", use_multipart=False)
        except (failure.AlreadyExistsError, failure.PreconditionError, FileExistsError) as error:
            if self._holds(name, data):
                return
            raise Conflict(f"the object store holds another object at {name}") from error

    def _holds(self, name: str, data: bytes) -> bool:
        def size() -> int:
            try:
                return int(obstore.head(self._remote, name)["size"])
            except FileNotFoundError as error:  # S3 answers 409 while another attempt is still under way
                raise _Again("an unfinished write holds the name") from error

        return self._attempt(f"head {name}", size) == len(data) and self.read(name, len(data)) == data

    def read(self, name: str, limit: int) -> bytes:
        """A whole object. NotFound if it is missing, StoreUnavailable if it is larger than `limit` bytes."""

        def read() -> bytes:
            got = obstore.get(self._remote, name)
            size = int(got.meta["size"])
            if size > limit:
                raise StoreUnavailable(f"object {name} has {size} bytes, more than any of its kind; it was damaged")
            return bytes(got.bytes())

        return self._attempt(f"read {name}", read)

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """Exactly `length` bytes from `start`; NotFound if the object is missing or too short."""

        def read() -> bytes:
            return bytes(obstore.get_range(self._remote, name, start=start, length=length))

        data = self._attempt(f"read {name}", read)
        if len(data) != length:
            raise NotFound(f"object {name} ends before byte {start + length}; it was damaged")
        return data

    def size(self, name: str) -> int:
        return self.head(name).size

    def head(self, name: str) -> Listed:
        return self._attempt(f"head {name}", lambda: _listed(obstore.head(self._remote, name)))

    def list(self, prefix: str) -> Iterator[Listed]:
        """All objects below `prefix` (whole path segments), in no particular order."""
        last: str | None = None
        while True:
            page = self._attempt(f"list {prefix}", partial(self._page, prefix, last))
            yield from page
            if not self._continues or len(page) < PAGE:
                return
            last = page[-1].name

    def _page(self, prefix: str, after: str | None) -> "list[Listed]":
        found: Iterable[Any] = _list(self._remote, prefix, offset=after, chunk_size=PAGE)
        # A directory is listed unsorted, and not every version of Azure's service heeds the name to go on from.
        batches = islice(found, 1) if self._continues else found
        return sorted((_listed(meta) for batch in batches for meta in batch), key=lambda one: one.name)

    def delete(self, name: str) -> None:
        """Make sure that there is no such object."""

        def delete() -> None:
            try:
                obstore.delete(self._remote, name)
            except FileNotFoundError:
                return

        self._attempt(f"delete {name}", delete)

    def settle(self) -> None:
        """Return when all that was created survives a loss of power. Remote stores promise that with each answer."""
        if self._local is not None:
            write_back(self._local)

    def _attempt(self, what: str, call: Callable[[], T]) -> T:
        last: BaseException | None = None
        for attempt in range(max(1, self._options.attempts)):
            if attempt:
                self.retried += 1
                pause = min(LAST_PAUSE, FIRST_PAUSE * 2**attempt)
                time.sleep(random.uniform(pause / 4, pause))  # noqa: S311 jitter, not a secret
            try:
                return call()
            except FileNotFoundError as error:
                raise NotFound(f"the object store has no such object ({what})") from error
            except (failure.PermissionDeniedError, failure.UnauthenticatedError) as error:
                raise StoreUnavailable(f"the object store refuses our keys ({what}): {_first_line(error)}") from error
            except (_Again, failure.BaseError, OSError) as error:
                _raise_if_final(what, error)
                last = error
        raise StoreUnavailable(
            f"the object store failed {self._options.attempts} times in a row ({what}): {_first_line(last)}"
        ) from last


class _Again(Exception):
    """The same request will have another answer a moment later."""


def _raise_if_final(what: str, error: Exception) -> None:
    text = str(error)
    if _FULL.search(text):
        raise StateUnwritable(
            f"the object store's directory cannot be written ({what}): {_first_line(error)}"
        ) from error
    if _FINAL.search(text):
        raise StoreUnavailable(f"the object store refuses ({what}): {_first_line(error)}") from error


def _first_line(error: object) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__


def _listed(meta: Any) -> Listed:
    return Listed(str(meta["path"]), int(meta["size"]), meta["last_modified"].timestamp())
