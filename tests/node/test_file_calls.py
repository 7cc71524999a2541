"""Files over the protocol, from the client's methods to the disk and back."""

import asyncio
import contextlib
import io
import os
import tarfile
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
import yarl
from aiohttp import web

from roost.errors import Conflict, Invalid, NoCapacity, NodeUnavailable, NotFound, TooLarge
from roost.node import tree
from roost.node.client import NodeClient
from roost.node.daemon import speak_plainly
from roost.node.file_calls import EACH, FileCalls
from roost.node.protocol import HEADER, MAX_BODY, VERSION, Revision, SaveRequest
from roost.node.sync.store import open_store
from roost.node.threads import Turns
from roost.node.tree import Tree
from roost.node.uploads import PART, Uploads

SANDBOX, REVISION, NEXT = "0123abcd", "0123456789abcdef", "fedcba9876543210"
OTHER = "4567cdef"  # another account's sandbox
SAVE = SaveRequest(revision=NEXT, account=7, upload=True)


@dataclass
class Directories:
    """Sandboxes and revisions as plain directories below one."""

    base: Path
    open: int = 0
    edits: list[tuple[str, SaveRequest]] = field(default_factory=list)

    def live(self, id: str) -> Tree:
        if not (self.base / id).is_dir():
            raise NotFound(f"no sandbox {id}")
        return Tree(self.base / id, os.getuid())

    def owner(self, id: str) -> int:
        return 8 if id == OTHER else 7

    @asynccontextmanager
    async def stored(self, revision: str, account: int) -> AsyncIterator[Tree]:
        with self.live(revision) as tree:
            self.open += 1
            try:
                yield tree
            finally:
                self.open -= 1

    async def edit(self, revision: str, save: SaveRequest, change: Callable[[Tree], None]) -> Revision:
        with self.live(revision) as tree:
            await asyncio.to_thread(change, tree)
        self.edits.append((revision, save))
        return Revision(
            id=save.revision, parent=revision, image="i", created_ns=1, size=2, stored=save.upload, stored_bytes=3
        )


@dataclass
class Node:
    client: NodeClient
    calls: FileCalls
    places: Directories
    socket: Path

    @property
    def live(self) -> Path:
        return self.places.base / SANDBOX

    @property
    def stored(self) -> Path:
        return self.places.base / REVISION

    async def raw(self, method: str, path: str) -> tuple[int, bytes]:
        connector = aiohttp.UnixConnector(path=str(self.socket))
        async with (
            aiohttp.ClientSession("http://node", connector=connector, headers={HEADER: str(VERSION)}) as session,
            session.request(method, yarl.URL(path, encoded=True)) as response,
        ):
            return response.status, await response.read()


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    places = Directories(tmp_path / "places")
    for id in (SANDBOX, REVISION, OTHER):
        (places.base / id).mkdir(parents=True)
    uploads = Uploads(open_store(f"file://{tmp_path}/store"))
    calls = FileCalls(places, uploads)
    app = web.Application(middlewares=[speak_plainly], client_max_size=MAX_BODY)
    app.add_routes(calls.routes())
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1, handler_cancellation=True)
    await runner.setup()
    socket = tmp_path / "node.sock"
    await web.UnixSite(runner, str(socket)).start()
    async with NodeClient(socket) as client:
        yield Node(client, calls, places, socket)
    await calls.close()
    await runner.cleanup()
    uploads.close()


async def pieces(data: bytes, size: int = 100_000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def whole(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def held_below(directory: Path) -> int:
    """Descriptors that this process has open there."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found += os.readlink(f"/proc/self/fd/{name}").startswith(str(directory))
    return found


async def test_an_upload_is_kept_until_it_is_removed(node: Node) -> None:
    data = os.urandom(PART + 5)
    assert await node.client.put_file("an-id", pieces(data), limit=2 * PART) == len(data)
    await node.client.remove_file("an-id")
    await node.client.remove_file("an-id")


async def test_too_large_an_upload_is_refused(node: Node) -> None:
    with pytest.raises(TooLarge):
        await node.client.put_file("an-id", pieces(bytes(1000)), limit=999)


async def test_what_an_uploads_source_raises_reaches_the_caller(node: Node, tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"x" * 1000
        raise Invalid("the form has ended")

    with pytest.raises(Invalid, match="the form has ended"):
        await node.client.put_file("an-id", broken(), limit=10_000)
    await until(lambda: not [path for path in (tmp_path / "store").rglob("*") if path.is_file()])


@pytest.mark.parametrize("where", [SANDBOX, REVISION])
async def test_files_are_listed_read_and_packed(node: Node, where: str) -> None:
    root = node.places.base / where
    (root / "d").mkdir()
    (root / "d" / "file").write_bytes(b"0123456789")
    listed = [(entry.name, entry.type) async for entry in node.client.list_files(where, 0, "d")]
    assert listed == [(b"", "directory"), (b"file", "file")]
    assert await whole(node.client.read_file(where, 0, "d/file", 2, 5)) == b"234"
    assert await whole(node.client.read_file(where, 0, "/d/file", 0, 0)) == b""
    packed = tarfile.TarFile(fileobj=io.BytesIO(await whole(node.client.tar(where, 0, "d"))))
    assert packed.getnames() == [".", "file"]
    assert {entry.name async for entry in node.client.list_files(where, 0, "")} == {b"", b"d"}


@pytest.mark.parametrize("where", [SANDBOX, REVISION])
async def test_what_is_refused_has_a_condition(node: Node, where: str) -> None:
    os.mkfifo(node.places.base / where / "fifo")
    for chunks in (node.client.read_file(where, 0, "nothing", 0, 1), node.client.tar(where, 0, "nothing")):
        with pytest.raises(NotFound, match="nothing"):
            await whole(chunks)
    with pytest.raises(Invalid, match="fifo"):
        await whole(node.client.read_file(where, 0, "fifo", 0, 1))
    with pytest.raises(NotFound):
        _ = [entry async for entry in node.client.list_files("f" * len(where), 0, "")]


async def test_a_live_file_is_written_and_deleted(node: Node) -> None:
    data = os.urandom(3_000_000)
    await node.client.write_file(SANDBOX, "a/b/file", pieces(data), 0o751)
    assert (node.live / "a/b/file").read_bytes() == data
    assert (node.live / "a/b/file").stat().st_mode & 0o7777 == 0o751
    await node.client.delete_file(SANDBOX, "a")
    assert os.listdir(node.live) == []
    with pytest.raises(NotFound):
        await node.client.delete_file(SANDBOX, "a")
    with pytest.raises(Invalid, match="root"):
        await node.client.delete_file(SANDBOX, "")
    with pytest.raises(NotFound):
        await node.client.write_file("ffffffff", "file", pieces(b"x"), 0o644)


async def test_names_are_bytes_and_signs_of_addresses_mean_nothing(node: Node) -> None:
    for name in (b"\xff\xfe", b"%41", b"a b?c#d&e=f", b"%2F", b"\n\r", "ü€".encode(), b"a+b", b"...", b"view=tar"):
        path = os.fsdecode(name)
        await node.client.write_file(SANDBOX, path, pieces(name), 0o644)
        assert os.listdir(os.fsencode(node.live)) == [name]
        assert await whole(node.client.read_file(SANDBOX, 0, path, 0, 100)) == name
        assert [entry.name async for entry in node.client.list_files(SANDBOX, 0, "")] == [b"", name]
        await node.client.delete_file(SANDBOX, path)


async def test_dots_and_zero_bytes_reach_the_tree_and_stay_inside(node: Node) -> None:
    (node.places.base / "secret").write_bytes(b"of the host")
    (node.live / "secret").write_bytes(b"guest's")
    (node.live / "a").mkdir()
    at = f"/v1/sandboxes/{SANDBOX}/files"
    for path in ("%2e%2e/secret", "%2E%2E%2Fsecret", "a/%2e%2e/%2e%2e/secret"):
        assert await node.raw("GET", f"{at}/{path}?view=content&start=0&end=99") == (200, b"guest's")
    assert (await node.raw("GET", f"{at}/a%00b?view=list"))[0] == 400
    assert (await node.raw("DELETE", f"{at}/%2e%2e/secret"))[0] == 200
    assert os.listdir(node.live) == ["a"]
    assert (node.places.base / "secret").exists()


async def test_a_path_of_the_client_stays_the_path_of_a_file(node: Node, tmp_path: Path) -> None:
    await node.client.put_file("victim", pieces(b"x"), limit=10)
    with contextlib.suppress(NotFound, Invalid):
        await node.client.delete_file(SANDBOX, "../../../files/victim")
    assert (tmp_path / "store" / "files" / "victim" / "done").exists()


@pytest.mark.parametrize(
    "query",
    ["", "view=x", "view=content", "view=content&start=-1&end=1", "view=content&start=2&end=1"]
    + ["view=content&start=0&end=" + "9" * n for n in (19, 20, 5000)]
    + ["view=content&start=0&end=٣"],
)
async def test_senseless_questions_are_invalid(node: Node, query: str) -> None:
    status, _ = await node.raw("GET", str(yarl.URL(f"/v1/sandboxes/{SANDBOX}/files/x?{query}")))
    assert status == 400


async def test_an_edit_makes_a_revision(node: Node) -> None:
    revision = await node.client.edit(REVISION, SAVE, "etc/file", pieces(b"new"), 0o600)
    assert (revision.id, revision.parent) == (NEXT, REVISION)
    assert node.places.edits == [(REVISION, SAVE)]
    assert (node.stored / "etc/file").read_bytes() == b"new"
    await node.client.edit(REVISION, SAVE, "etc/file", None)
    assert os.listdir(node.stored / "etc") == []
    with pytest.raises(NotFound):
        await node.client.edit(REVISION, SAVE, "etc/file", None)
    with pytest.raises(Invalid, match="root"):
        await node.client.edit(REVISION, SAVE, "", pieces(b"x"))
    status, _ = await node.raw("DELETE", f"/v1/revisions/{REVISION}/files/etc?revision=../../x&account=1")
    assert status == 400


@pytest.mark.parametrize("where", [SANDBOX, REVISION])
async def test_a_write_that_breaks_off_changes_nothing(node: Node, where: str) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"x" * 1_000_000
        raise Invalid("the caller's form has ended")

    root = node.places.base / where
    (root / "file").write_bytes(b"old")
    with pytest.raises(Invalid, match="form"):
        if where == SANDBOX:
            await node.client.write_file(where, "file", broken(), 0o644)
        else:
            await node.client.edit(where, SAVE, "file", broken())
    await until(lambda: held_below(root) == 0)
    assert (root / "file").read_bytes() == b"old"
    assert os.listdir(root) == ["file"]
    assert node.places.edits == []


async def test_a_caller_that_goes_away_ends_the_reading(node: Node) -> None:
    for where in (SANDBOX, REVISION):
        root = node.places.base / where
        with (root / "large").open("wb") as file:
            file.truncate(1 << 34)
        for chunks in (node.client.read_file(where, 0, "large", 0, 1 << 34), node.client.tar(where, 0, "")):
            async with aclosing(chunks) as content:  # type: ignore[type-var]
                assert await anext(content)
                assert held_below(root) > 0
            await until(lambda root=root: held_below(root) == 0)
    assert node.places.open == 0


async def test_a_slow_caller_holds_back_the_reading(node: Node) -> None:
    with (node.live / "large").open("wb") as file:
        file.truncate(1 << 34)
    (node.live / "small").write_bytes(b"x")
    slow = [node.client.read_file(SANDBOX, 0, "large", 0, 1 << 34) for _ in range(30)]
    for chunks in slow:
        await anext(chunks)
    async with asyncio.timeout(5):  # thirty that wait take no thread from this one
        assert await whole(node.client.read_file(SANDBOX, 0, "small", 0, 9)) == b"x"
    for chunks in slow:
        await chunks.aclose()  # type: ignore[attr-defined]


async def test_half_a_content_never_looks_whole(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "NAMES", 1)  # a directory of more than one name is large now
    (node.live / "/".join(["d"] * (tree.HUGE + 10))).mkdir(parents=True)
    (node.live / "file").write_bytes(os.urandom(3_000_000))
    with pytest.raises((NodeUnavailable, Invalid)):  # Invalid if nothing of the archive was sent yet
        await whole(node.client.tar(SANDBOX, 0, ""))


async def test_release_ends_what_uses_a_sandbox(node: Node) -> None:
    with (node.live / "large").open("wb") as file:
        file.truncate(1 << 34)
    never = asyncio.Event()

    async def stalling() -> AsyncIterator[bytes]:
        yield b"x" * 1_000_000
        await never.wait()

    reading = node.client.read_file(SANDBOX, 0, "large", 0, 1 << 34)
    await anext(reading)
    writing = asyncio.create_task(node.client.write_file(SANDBOX, "new", stalling(), 0o644))
    await until(lambda: len(os.listdir(node.live)) == 2)
    await node.calls.release(SANDBOX)
    assert held_below(node.live) == 0
    assert os.listdir(node.live) == ["large"]
    with pytest.raises(NodeUnavailable):
        await whole(reading)
    with pytest.raises((Conflict, NodeUnavailable)):
        await writing


async def test_one_account_does_not_hold_up_the_others(node: Node) -> None:
    go_on = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"x"
        await go_on.wait()

    def write(number: int) -> asyncio.Task[None]:
        return asyncio.create_task(node.client.write_file(SANDBOX, f"file{number}", slow(), 0o644))

    writing = [write(number) for number in range(EACH)]
    await until(lambda: len(os.listdir(node.live)) == EACH)
    late = asyncio.create_task(node.client.edit(REVISION, SAVE, "file", pieces(b"new")))
    async with asyncio.timeout(10):
        await node.client.write_file(OTHER, "file", pieces(b"new"), 0o644)
    assert not late.done()
    assert not (node.stored / "file").exists()
    go_on.set()
    await asyncio.gather(*writing, late)
    assert (node.stored / "file").read_bytes() == b"new"


async def test_whoever_waits_too_long_for_its_turn_is_told() -> None:
    turns = Turns(1, patience=0.05)
    async with turns.of(7):
        with pytest.raises(NoCapacity, match="try again"):
            async with turns.of(7):
                pass
        async with turns.of(8):
            pass
    async with turns.of(7):
        pass
