"""One save, restore, collection or check as a process of its own: `python -m roost.node.sync COMMAND`.

The request is one line of JSON on standard input; progress, then `result` or `error`, are lines of JSON on standard
output. A save of live layers says {"event": "first_pass"} and waits for the line `frozen`; after {"event":
"second_pass"} the sandbox may be thawed. The end of the input before that ends the save. Exit status: 0 or 1.
"""

import errno
import sys
import time
from base64 import b64decode
from pathlib import Path
from traceback import print_exc
from typing import Any

import msgspec

from roost.errors import Invalid, RoostError
from roost.node.sync import revision
from roost.node.sync.check import check
from roost.node.sync.collect import collect
from roost.node.sync.restore import restore
from roost.node.sync.save import Layer, Saving
from roost.node.sync.store import Options, open_store
from roost.node.sync.vault import Vault
from roost.node.usage import grown

EVERY = 1.0  # seconds between lines of progress
MAX_REQUEST = 4 * 1024 * 1024


class Where(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What every request says. key: base64 of 32 bytes. cache: a file for this vault's index."""

    store: str
    account: str
    options: Options = Options()
    key: str | None = None
    cache: str | None = None


class LayerPath(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    path: str
    first_id: int
    live: bool = False
    memory: str | None = None
    merged: str | None = None


class Used(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bytes on a disk, and the layers on this machine, the newest first, over which the last layer is added to them."""

    bytes: int
    over: list[str] | None = None  # None: they count the last layer already


class SaveRequest(Where, frozen=True, forbid_unknown_fields=True, kw_only=True):
    layers: list[LayerPath]
    image: str
    job: str
    id: str | None = None
    base: str | None = None
    parent: str | None = None
    used: Used | None = None


class RestoreRequest(Where, frozen=True, forbid_unknown_fields=True, kw_only=True):
    revision: str
    target: str
    first_id: int


class CollectRequest(Where, frozen=True, forbid_unknown_fields=True, kw_only=True):
    heads: list[str]
    spared: list[str] = []
    grace: float = 24 * 3600.0


class CheckRequest(Where, frozen=True, forbid_unknown_fields=True, kw_only=True):
    heads: list[str] | None = None
    read_data: bool = False


class Told:
    """Progress, at most one line of a kind in EVERY seconds."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}

    def __call__(self, event: str, amount: int) -> None:
        now = time.monotonic()
        if now - self._last.get(event, -EVERY) >= EVERY:
            self._last[event] = now
            say({"event": event, "amount": amount})


def say(value: object) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(value) + b"\n")
    sys.stdout.buffer.flush()


def vault_of(request: Where) -> Vault:
    try:
        key = None if request.key is None else b64decode(request.key, validate=True)
    except ValueError as error:
        raise Invalid("key is not base64") from error
    return Vault(open_store(request.store, request.options), request.account, key)


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def run_save(request: SaveRequest) -> object:
    vault = vault_of(request)
    base = revision.read(vault, request.base) if request.base else None
    layers = [
        Layer(Path(one.path), one.first_id, one.live, _path(one.memory), _path(one.merged)) for one in request.layers
    ]
    cache = _path(request.cache)
    parts = (vault, base, layers, request.image, request.job)
    with Saving(*parts, id=request.id, parent=request.parent, cache=cache, told=Told()) as saving:
        saving.first_pass()
        if any(layer.live for layer in layers):
            say({"event": "first_pass"})
            if sys.stdin.buffer.readline(16).strip() != b"frozen":
                raise Invalid("the save was given up: `frozen` did not come")
            saving.second_pass()
            say({"event": "second_pass", "seconds": saving.frozen_seconds})
        saving.used = _used(request)
        made = saving.commit()
    remarks = [remark for counts in saving.counts for remark in counts.remarks]
    read = sum(counts.read for counts in saving.counts)
    return {"revision": made, "remarks": remarks, "read": read, "frozen_seconds": saving.frozen_seconds}


def _used(request: SaveRequest) -> int | None:
    used = request.used
    if used is None or used.over is None:
        return used.bytes if used else None
    return max(0, used.bytes + grown(Path(request.layers[-1].path), [Path(one) for one in used.over]))


def run_restore(request: RestoreRequest) -> object:
    vault = vault_of(request)
    wanted = revision.read(vault, request.revision)
    restore(vault, wanted, Path(request.target), request.first_id, cache=_path(request.cache), told=Told())
    return {"revision": wanted}


def run_collect(request: CollectRequest) -> object:
    vault = vault_of(request)
    told = Told()
    return collect(vault, request.heads, request.grace, spared=request.spared, cache=_path(request.cache), told=told)


def run_check(request: CheckRequest) -> object:
    vault = vault_of(request)
    problems = check(vault, request.heads, request.read_data, cache=_path(request.cache), told=Told())
    return {"problems": problems}


COMMANDS: dict[str, tuple[Any, Any]] = {
    "save": (SaveRequest, run_save),
    "restore": (RestoreRequest, run_restore),
    "collect": (CollectRequest, run_collect),
    "check": (CheckRequest, run_check),
}


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or arguments[0] not in COMMANDS:
        print(f"usage: python -m roost.node.sync {'|'.join(COMMANDS)} < REQUEST", file=sys.stderr)
        return 2
    kind, run = COMMANDS[arguments[0]]
    try:
        try:
            request = msgspec.json.decode(sys.stdin.buffer.readline(MAX_REQUEST), type=kind)
        except msgspec.MsgspecError as error:
            raise Invalid(f"the request is not understood: {error}") from error
        say({"event": "result", "result": run(request)})
    except RoostError as error:
        say({"event": "error", "condition": type(error).__name__, "error": str(error)})
        return 1
    except OSError as error:  # of this machine; what the store answers is a condition by now
        print_exc()
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
        where = f" ({error.filename})" if error.filename else ""
        text = f"the files could not be read or written: {error.strerror or error}{where}"
        say({"event": "error", "condition": "StateUnwritable" if full else "RoostError", "error": text})
        return 1
    except Exception:
        print_exc()
        say(
            {
                "event": "error",
                "condition": "RoostError",
                "error": "internal error of the sync process; the log of the node has the details",
            }
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
