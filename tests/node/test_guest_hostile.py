"""A guest that is mad, silent or lying costs only itself: it is lost, and nothing else happens to the node."""

import asyncio
import random
import struct
import time
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from roost.node.guest import frames
from roost.node.guest.channel import SLICE, SLICE_BYTES, Guest, GuestLost, GuestProcess, GuestRefused
from roost.node.guest.frames import STDOUT, Command, Exited, FromGuest, Output, Sight, StdinTaken, ToGuest

from .fake_guest import HELLO, LIMIT, FakeGuest, raw

KNOWN = frames.Process(1, False, 10, 0, 0, 0)


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[FakeGuest]:
    """A fake guest; the test fails when the node's loop has met an exception that nobody caught."""
    faults: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
    async with FakeGuest.listening(tmp_path / "guest.sock") as fake:
        yield fake
    await asyncio.sleep(0)
    assert not faults


async def lost(guest: Guest) -> str:
    async with asyncio.timeout(LIMIT):
        return await guest.lost


async def started(guest: Guest, fake: FakeGuest, id: int = 1) -> tuple[GuestProcess, list[tuple[int, bytes]]]:
    """A process that the fake guest says it has started."""
    seen: list[tuple[int, bytes]] = []
    starting = asyncio.ensure_future(guest.start(id, Command(["x"], {}), seen.extend))
    assert (await fake.asked()).kind == ToGuest.EXEC
    fake.say(frames.Started(id, 10))
    return await starting, seen


def full(pairs: list[tuple[int, bytes]]) -> None:
    raise OSError("full")


# ---- what no guest init says


@pytest.mark.parametrize(
    "nonsense",
    [
        b"\xff" * 100,
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        frames.HEADER.pack(2**32 - 1, FromGuest.OUTPUT, 1, 0, 1),
        raw(FromGuest.DONE, 0, b"too long"),
        raw(FromGuest.PROCESS, 2**31 + 1, bytes(24)),
        raw(FromGuest.PROCESS, 1, struct.pack("<IQQI", 1, 2**64 - 1, 0, 0)),
        b"".join(raw(FromGuest.PROCESS, id, bytes(24)) for id in range(1, 300)),
    ],
)
async def test_nonsense_loses_the_guest(fake: FakeGuest, nonsense: bytes) -> None:
    guest = await fake.guest()
    waiting = asyncio.ensure_future(guest.ping())
    fake.say(nonsense)
    assert "misbehaved" in await lost(guest)
    with pytest.raises(GuestLost, match="misbehaved"):
        await waiting
    await fake.left()


@pytest.mark.parametrize("seed", range(40))
async def test_frames_at_random_do_nothing_worse_than_lose_the_guest(fake: FakeGuest, seed: int) -> None:
    chance = random.Random(seed)
    guest = await fake.guest(KNOWN)
    process, _ = await started(guest, fake, 2)
    sizes = {64: 12, 65: 24, 66: 0, 68: 4, 70: 16, 71: 4, 72: 0}
    for _ in range(60):
        kind = chance.randint(64, 72)
        payload = chance.randbytes(sizes.get(kind, chance.randint(9, 40)))
        if chance.random() < 0.9:
            payload = bytes(chance.choice((0, 0, 0, 1)) for _ in payload)
        fake.say(raw(kind, chance.randint(0, 3), payload, chance.randint(0, 2)))
        if guest.lost.done():
            break
        if chance.random() < 0.1:
            guest.adopt(1, lambda _: None, 0)
            await asyncio.sleep(0)
    fake.writer.close()
    await lost(guest)
    with pytest.raises(GuestLost):
        await Guest.connect(fake.path.with_name("nobody"), LIMIT)
    assert process.taken < 2**16


async def test_a_frame_cut_off_by_the_end_loses_the_guest(fake: FakeGuest) -> None:
    guest = await fake.guest()
    fake.say(raw(FromGuest.OUTPUT, 1, bytes(100), 1)[:50])
    fake.writer.close()
    assert await lost(guest) == "guest init is gone"


async def test_frames_of_processes_that_do_not_exist_are_passed_over(fake: FakeGuest) -> None:
    guest = await fake.guest()
    fake.say(Output(9, STDOUT, 5, b"x"), Exited(9, 0, 0, 5), StdinTaken(9, 1), frames.Done(9), HELLO)
    pinging = asyncio.ensure_future(guest.ping())
    fake.say(frames.Pong((await fake.asked()).id))
    await pinging
    guest.close()


async def test_another_protocol_is_refused(fake: FakeGuest) -> None:
    fake.greeting = raw(FromGuest.HELLO, 0, struct.pack("<III", 2, 0, 0))
    with pytest.raises(GuestLost, match="protocol 2"):
        await Guest.connect(fake.path)
    await fake.left()


# ---- silence


async def test_a_guest_that_never_answers_is_lost_within_the_limit(fake: FakeGuest) -> None:
    guest = await fake.guest(answer_within=0.1)
    begun = time.monotonic()
    with pytest.raises(GuestLost, match="silent"):
        await guest.ping()
    assert time.monotonic() - begun < 2
    assert "silent" in await lost(guest)
    with pytest.raises(GuestLost):
        await guest.start(1, Command(["x"], {}), lambda _: None)


async def test_a_guest_that_does_not_greet_is_lost_and_left(fake: FakeGuest) -> None:
    fake.greeting = b""
    with pytest.raises(GuestLost):
        await Guest.connect(fake.path, answer_within=0.1)
    await fake.left()


async def test_a_refusal_is_told_in_its_own_words(fake: FakeGuest) -> None:
    guest = await fake.guest()
    asking = asyncio.ensure_future(guest.attach("x", Sight(2**30, 1)))
    fake.say(frames.Failed((await fake.asked()).id, 13, "pivot_root: no"))
    with pytest.raises(GuestRefused, match="pivot_root: no"):
        await asking
    guest.close()


# ---- lies


@pytest.mark.parametrize(
    "lie",
    [
        [Output(1, STDOUT, 1, b"a gap")],
        [Output(1, STDOUT, 0, b"abc"), Output(1, STDOUT, 4, b"a gap")],
        [Exited(1, 0, 0, 5)],
        [Output(1, STDOUT, 0, b"abc"), Exited(1, 0, 0, 2)],
        [raw(FromGuest.EXITED, 1, struct.pack("<iiQ", 300, 0, 0))],
        [StdinTaken(1, 1)],
        [raw(FromGuest.OUTPUT, 1, struct.pack("<Q", 2**64 - 1) + b"x", 1)],
    ],
)
async def test_a_lie_about_a_process_loses_the_guest(fake: FakeGuest, lie: list[bytes | frames.Frame]) -> None:
    guest = await fake.guest()
    process, _ = await started(guest, fake)
    fake.say(*lie)
    assert "misbehaved" in await lost(guest)
    with pytest.raises(GuestLost):
        await process.wait()


async def test_output_told_twice_is_taken_once(fake: FakeGuest) -> None:
    guest = await fake.guest()
    process, seen = await started(guest, fake)
    fake.say(Output(1, 1, 0, b"abc"), Output(1, 1, 0, b"abc"), Output(1, 1, 1, b"bcde"), Exited(1, 0, 0, 5))
    assert (await process.wait()).exit_code == 0
    assert b"".join(data for _, data in seen) == b"abcde"
    guest.close()


async def test_a_lie_that_waited_for_the_adoption_loses_the_guest_then(fake: FakeGuest) -> None:
    guest = await fake.guest(KNOWN)
    fake.say(Output(1, STDOUT, 7, b"a gap"), frames.Pong(0))
    pinging = asyncio.ensure_future(guest.ping())
    fake.say(frames.Pong((await fake.asked()).id))
    await pinging
    process = guest.adopt(1, lambda _: None, 0)
    assert "misbehaved" in await lost(guest)
    with pytest.raises(GuestLost):
        await process.wait()


# ---- floods


async def test_more_output_than_the_window_loses_the_guest(fake: FakeGuest) -> None:
    guest = await fake.guest()
    starting = asyncio.ensure_future(guest.start(1, Command(["x"], {}), full))
    await fake.asked()
    fake.say(frames.Started(1, 10))
    await starting
    piece = bytes(50_000)
    fake.say(*(Output(1, STDOUT, i * len(piece), piece) for i in range(20)))
    assert "window" in await lost(guest)


@pytest.mark.parametrize("size", [1, 60_000])
async def test_output_of_an_unadopted_process_is_held_within_its_window(fake: FakeGuest, size: int) -> None:
    guest = await fake.guest(KNOWN)
    tracemalloc.start()
    try:
        fake.say(*(Output(1, STDOUT, i * size, bytes(size)) for i in range(10_000 if size == 1 else 300)))
        sent = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        assert "window" in await lost(guest)
        assert tracemalloc.get_traced_memory()[1] - sent < 8 << 20
    finally:
        tracemalloc.stop()


async def test_a_flood_leaves_the_node_time_for_others(fake: FakeGuest) -> None:
    """As fast as it is acknowledged: at most a slice's worth in a slice, and never a long stop of the loop."""
    guest = await fake.guest()
    process, _ = await started(guest, fake)
    piece, offset, longest, begun = bytes(65_000), 0, 0.0, time.monotonic()

    async def flood() -> None:
        nonlocal offset
        while True:
            fake.say(Output(1, STDOUT, offset, piece))
            offset += len(piece)
            while offset > struct.unpack("<Q", (await fake.asked()).payload)[0]:
                pass

    async with asyncio.timeout(LIMIT):
        flooding = asyncio.ensure_future(flood())
        while (now := time.monotonic()) < begun + 0.5:
            await asyncio.sleep(0.005)
            longest = max(longest, time.monotonic() - now)
        flooding.cancel()
    taken, seconds = process.taken, time.monotonic() - begun
    assert not guest.lost.done()
    assert longest < 0.3
    assert 0 < taken < (seconds / SLICE + 2) * (SLICE_BYTES + 300_000)
    guest.close()


async def test_a_guest_that_reads_nothing_holds_only_its_own_writer(fake: FakeGuest) -> None:
    guest = await fake.guest()
    process, _ = await started(guest, fake)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await process.write_stdin(bytes(10 << 20))
    assert not guest.lost.done()
    guest.close()
