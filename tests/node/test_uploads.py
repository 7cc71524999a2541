"""Uploaded files are in the store wholly or not at all, and come back as they were put."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from roost.errors import Invalid, NotFound, TooLarge
from roost.node.sync.store import StoreUnavailable, open_store
from roost.node.uploads import PART, Uploads

ID = "0b7c7c2e-97ab-4c0e-9a3e-0c8f6f1f2a3b"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def uploads(directory: Path) -> Iterator[Uploads]:
    uploads = Uploads(open_store(f"file://{directory}"))
    yield uploads
    uploads.close()


async def pieces(data: bytes, size: int = 100_000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def read(uploads: Uploads, id: str = ID) -> bytes:
    return b"".join([chunk async for chunk in uploads.read(id)])


def kept(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("size", [0, 1, PART - 1, PART, PART + 1, 3 * PART + 12345])
async def test_what_was_put_is_read(uploads: Uploads, size: int) -> None:
    data = os.urandom(size)
    assert await uploads.put(ID, pieces(data), size) == size
    assert await uploads.size(ID) == size
    assert await read(uploads) == data


async def test_a_file_is_parts_and_its_list(uploads: Uploads, directory: Path) -> None:
    await uploads.put(ID, pieces(bytes(PART + 1)), 2 * PART)
    assert kept(directory) == {f"files/{ID}/{name}" for name in ("0", "1", "done")}


async def test_a_removed_file_is_gone_and_others_are_not(uploads: Uploads, directory: Path) -> None:
    await uploads.put(ID, pieces(b"mine"), 10)
    await uploads.put(ID + "2", pieces(b"other"), 10)
    await uploads.remove(ID)
    await uploads.remove(ID)
    with pytest.raises(NotFound, match="upload it"):
        await read(uploads)
    with pytest.raises(NotFound):
        await uploads.size(ID)
    assert await read(uploads, ID + "2") == b"other"


async def test_too_large_a_file_is_refused_and_leaves_nothing(uploads: Uploads, directory: Path) -> None:
    with pytest.raises(TooLarge, match="larger than"):
        await uploads.put(ID, pieces(bytes(2 * PART)), 2 * PART - 1)
    assert kept(directory) == set()
    with pytest.raises(NotFound):
        await read(uploads)


async def test_an_upload_that_breaks_off_leaves_nothing(uploads: Uploads, directory: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield bytes(PART + 5)
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await uploads.put(ID, broken(), 10 * PART)
    assert kept(directory) == set()


async def test_a_cancelled_upload_leaves_nothing(uploads: Uploads, directory: Path) -> None:
    reached = asyncio.Event()

    async def stalling() -> AsyncIterator[bytes]:
        yield bytes(3 * PART)
        reached.set()
        await asyncio.Event().wait()

    putting = asyncio.create_task(uploads.put(ID, stalling(), 10 * PART))
    await reached.wait()
    putting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await putting
    assert kept(directory) == set()


async def test_a_cancellation_at_any_moment_leaves_all_or_nothing(uploads: Uploads, directory: Path) -> None:
    for milliseconds in range(0, 40, 2):
        putting = asyncio.create_task(uploads.put(ID, pieces(bytes(2 * PART + 7), 1 << 20), 10 * PART))
        await asyncio.sleep(milliseconds / 1000)
        putting.cancel()
        (outcome,) = await asyncio.gather(putting, return_exceptions=True)
        expected = set() if isinstance(outcome, BaseException) else {f"files/{ID}/{n}" for n in ("0", "1", "2", "done")}
        assert kept(directory) == expected


async def test_the_same_id_may_be_put_again(uploads: Uploads, directory: Path) -> None:
    await uploads.put(ID, pieces(bytes(2 * PART + 1)), 3 * PART)
    (directory / "files" / ID / "done").unlink()  # as if the machine had stopped before the last step
    await uploads.put(ID, pieces(b"second"), 10)
    assert await read(uploads) == b"second"
    assert kept(directory) == {f"files/{ID}/0", f"files/{ID}/done"}


@pytest.mark.parametrize("damage", ["changed", "cut", "missing"])
async def test_damage_is_told_and_not_delivered(uploads: Uploads, directory: Path, damage: str) -> None:
    await uploads.put(ID, pieces(b"content"), 10)
    part = directory / "files" / ID / "0"
    part.unlink() if damage == "missing" else part.write_bytes(b"c0ntent" if damage == "changed" else b"cont")
    with pytest.raises(StoreUnavailable, match="upload the file again"):
        await read(uploads)


async def test_a_damaged_list_is_told(uploads: Uploads, directory: Path) -> None:
    await uploads.put(ID, pieces(b"content"), 10)
    (directory / "files" / ID / "done").write_bytes(b"{")
    with pytest.raises(StoreUnavailable, match="upload the file again"):
        await read(uploads)


@pytest.mark.parametrize("id", ["", "..", "../x", "a/b", "a" * 65, ".", "-a"])
async def test_an_id_is_no_path(uploads: Uploads, directory: Path, id: str) -> None:
    for call in (uploads.put(id, pieces(b"x"), 10), uploads.remove(id), uploads.size(id)):
        with pytest.raises(Invalid):
            await call
    assert kept(directory) == set()
