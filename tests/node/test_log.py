"""A sandbox's log on a real disk: order, torn tails, its limit, readers that follow, and a disk that is full."""

import asyncio
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from roost import linux
from roost.clock import now_ns
from roost.errors import Invalid
from roost.jobs.logs import Lines
from roost.node.log import HEAD, LogWriter, follow, is_boundary, read_records, remove
from roost.node.protocol import LogRecord

LIMIT = 5.0  # seconds that anything may take here


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sandbox.log"


@pytest.fixture
def writer(path: Path) -> Iterator[LogWriter]:
    writer = LogWriter(path)
    yield writer
    writer.close()


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("mounts a file system")
    disk = tmp_path / "disk"
    disk.mkdir()
    linux.mount("roost-test", disk, "tmpfs", 0, "size=64k")
    yield disk
    linux.umount(disk, linux.MNT_DETACH)


def told(path: Path) -> list[tuple[str, bytes]]:
    return [(record.source, record.data) for record in read_all(path)]


def read_all(path: Path, after: int = 0) -> list[LogRecord]:
    found: list[LogRecord] = []
    while batch := read_records(path, found[-1].seq if found else after)[0]:
        found += batch
    return found


def test_both_streams_are_kept_in_order_and_each_run_is_one_record(path: Path, writer: LogWriter) -> None:
    writer.write([(1, b"a"), (1, b"b"), (2, b"c"), (1, b"d")])
    writer.remark("over")
    assert told(path) == [("stdout", b"ab"), ("stderr", b"c"), ("stdout", b"d"), ("system", b"over\n")]
    assert writer.output == 4


def test_records_carry_the_time_of_their_arrival_and_grow(path: Path, writer: LogWriter) -> None:
    before = now_ns()
    writer.write([(1, b"one")])
    between = now_ns()
    writer.write([(1, b"two")])
    first, second = read_all(path)
    assert before <= first.time_ns <= between <= second.time_ns <= now_ns()
    assert 0 < first.seq < second.seq == path.stat().st_size


def test_reading_goes_on_behind_any_record(path: Path, writer: LogWriter) -> None:
    for number in range(20):
        writer.write([(1, b"%d" % number)])
    records = read_all(path)
    for at, record in enumerate(records):
        assert read_all(path, after=record.seq) == records[at + 1 :]


def test_a_record_larger_than_one_read_is_read_whole(path: Path, writer: LogWriter) -> None:
    data = os.urandom(1_000_000)
    writer.write([(1, data), (2, b"next")])
    assert told(path) == [("stdout", data), ("stderr", b"next")]


def test_a_crash_in_the_middle_of_a_record_leaves_all_before_it(path: Path, writer: LogWriter) -> None:
    writer.write([(1, b"kept")])
    whole = path.stat().st_size
    writer.write([(2, b"torn apart")])
    content = path.read_bytes()
    for cut in range(whole, len(content)):
        path.write_bytes(content[:cut])
        assert told(path) == [("stdout", b"kept")]
        again = LogWriter(path)
        assert (again.output, path.stat().st_size) == (4, whole)
        again.write([(1, b"more")])
        again.close()
        assert told(path) == [("stdout", b"kept"), ("stdout", b"more")]


def test_zeros_that_a_power_cut_left_are_no_records(path: Path, writer: LogWriter) -> None:
    writer.write([(1, b"kept")])
    with path.open("ab") as file:
        file.write(bytes(3 * HEAD.size))
    again = LogWriter(path)
    assert again.output == 4
    again.close()
    assert told(path) == [("stdout", b"kept")]


def test_output_counts_on_after_a_restart(path: Path) -> None:
    first = LogWriter(path)
    first.write([(1, b"abc"), (2, b"de")])
    first.close()
    second = LogWriter(path)
    assert second.output == 5
    second.taken(7)  # guest init saw more acknowledged: it was dropped
    assert (second.output, second.dropped) == (7, 2)
    second.close()


def test_a_torn_tail_of_a_continued_log_leaves_this_sandboxs_count_right(path: Path) -> None:
    first = LogWriter(path)
    first.write([(1, b"x" * 1000)])
    first.close()
    second = LogWriter(path, begins=None)
    assert (second.begins, second.output) == (path.stat().st_size, 0)
    begins = second.begins
    second.remark("remark")
    second.write([(1, b"abc"), (2, b"de")])
    second.close()
    whole = path.read_bytes()
    for cut in range(begins, len(whole) + 1):
        path.write_bytes(whole[:cut])
        again = LogWriter(path, begins=begins)
        told = read_all(path, begins)
        assert again.output == sum(len(record.data) for record in told if record.source != "system")
        again.taken(5)
        assert again.output == 5
        again.close()


def numbered(path: Path, limit: int = 4000, count: int = 2000) -> LogWriter:
    """A log of lines that name their number, most of which are left out."""
    writer = LogWriter(path, limit=limit)
    for number in range(count):
        writer.write([(1 + number % 2, b"line %d\n" % number)])
    return writer


def lines_of(records: Iterable[LogRecord]) -> list[tuple[int, str, str]]:
    lines = Lines()
    found = [line for record in records for line in lines.feed(record)]
    return [(line.number, line.source, line.text) for line in (*found, *lines.end())]


def test_beyond_the_limit_the_beginning_and_the_end_are_kept_and_the_gap_is_named_where_it_is(path: Path) -> None:
    writer = numbered(path)
    writer.remark("how it ended")
    writer.close()
    lines = lines_of(read_all(path))
    gap = next(at for at, line in enumerate(lines) if line[1] == "system")
    assert [text for _, _, text in lines[:gap]] == [f"line {number}" for number in range(gap)]
    assert "bytes of output are left out here" in lines[gap][2]
    after = lines[gap + 1 : -1]
    assert [text for _, _, text in after] == [f"line {number}" for number in range(2000 - len(after), 2000)]
    assert len(after) > 20 and gap > 20
    assert [number for number, _, _ in after] == list(range(2001 - len(after), 2001))  # as if nothing were missing
    assert lines[-1] == (2001, "system", "how it ended")
    kept = sum(len(record.data) for record in read_all(path) if record.source != "system")
    assert writer.output == kept + writer.dropped
    assert writer.size < 4000 + 2 * 4000 // 16 + 100


def test_positions_stay_what_they_were_while_what_lies_between_is_dropped(path: Path) -> None:
    writer = numbered(path, count=100)
    before = read_all(path)
    for number in range(100, 2000):
        writer.write([(1 + number % 2, b"line %d\n" % number)])
    now = {record.seq: record for record in read_all(path)}
    assert all(now[record.seq] == record for record in before[:20])
    last = before[-1].seq
    assert is_boundary(path, last) and last not in now
    behind = read_all(path, last)
    assert behind[0].lines_before and behind[1:] == [record for seq, record in now.items() if seq > behind[0].seq]
    for at, record in enumerate(behind):
        assert is_boundary(path, record.seq)
        assert read_all(path, record.seq) == behind[at + 1 :]
    writer.close()


def test_a_log_that_has_turned_is_continued_after_a_restart_and_by_another_sandbox(path: Path) -> None:
    first = numbered(path)
    first.close()
    again = LogWriter(path, limit=4000)
    assert (again.output, again.dropped, again.size) == (first.output, first.dropped, first.size)
    again.write([(1, b"line 2000\n")])
    again.close()
    assert lines_of(read_all(path))[-1] == (2001, "stdout", "line 2000")
    other = LogWriter(path, limit=4000, begins=None)
    assert (other.output, other.dropped) == (0, 0)
    other.write([(1, b"other\n")])
    other.close()
    assert lines_of(read_all(path))[-1] == (2002, "stdout", "other")
    remove(path)
    assert not list(path.parent.glob(f"{path.name}*"))


async def test_a_follower_that_is_slow_is_told_what_it_missed(path: Path) -> None:
    writer = numbered(path, count=50)
    batches = follow(path, writer, 0)
    seen = list(await anext(batches))
    for number in range(50, 2000):
        writer.write([(1 + number % 2, b"line %d\n" % number)])
    writer.close()
    async for batch in batches:
        seen += batch
    assert lines_of(seen)[-1] == (2000, "stderr", "line 1999")
    assert [record.lines_before is None for record in seen].count(False) == 1


@pytest.mark.parametrize("size", [1, 65535, 65536, 65537, 200_000])
def test_lines_are_counted_as_they_are_cut(path: Path, size: int) -> None:
    writer = LogWriter(path, limit=1000)
    for text in (b"x" * size, b"y\n" + b"z" * size + b"\nend", b"\n\nlast\n"):
        writer.write([(1, text)])
    records = read_all(path)
    whole = LogWriter(path.with_name("whole"))
    for text in (b"x" * size, b"y\n" + b"z" * size + b"\nend", b"\n\nlast\n"):
        whole.write([(1, text)])
    assert lines_of(records)[-1] == lines_of(read_all(path.with_name("whole")))[-1]
    writer.close()
    whole.close()


def test_without_room_nothing_more_is_kept_and_that_is_said_once(path: Path) -> None:
    writer = LogWriter(path)
    writer.write([(1, b"kept")])
    writer.cap()
    writer.cap()
    writer.write([(1, b"dropped")])
    writer.close()
    assert [source for source, _ in told(path)] == ["stdout", "system"]
    assert (writer.output, writer.dropped) == (11, 7)


def test_a_full_disk_refuses_and_keeps_what_was_written(tiny_disk: Path) -> None:
    path = tiny_disk / "log"
    writer = LogWriter(path)
    writer.write([(1, b"before")])
    with pytest.raises(OSError):
        writer.write([(1, bytes(100_000))])
    assert (writer.output, told(path)) == (6, [("stdout", b"before")])
    while True:
        try:
            writer.write([(2, bytes(5000))])
        except OSError:
            break
    kept = told(path)
    assert kept[0] == ("stdout", b"before")
    assert all(record == ("stderr", bytes(5000)) for record in kept[1:])
    assert writer.output == sum(len(data) for _, data in kept)
    writer.close()
    again = LogWriter(path)
    assert again.output == writer.output
    again.close()


def test_a_disk_that_has_room_again_takes_the_same_bytes(tiny_disk: Path) -> None:
    (tiny_disk / "other").write_bytes(bytes(60_000))
    writer = LogWriter(tiny_disk / "log")
    with pytest.raises(OSError):
        writer.write([(1, bytes(20_000))])
    (tiny_disk / "other").unlink()
    writer.write([(1, bytes(20_000))])
    assert told(tiny_disk / "log") == [("stdout", bytes(20_000))]
    writer.close()


async def test_a_follower_sees_what_is_written_later_and_ends_with_the_log(path: Path, writer: LogWriter) -> None:
    writer.write([(1, b"early")])
    batches = follow(path, writer, 0)
    async with asyncio.timeout(LIMIT):
        assert [record.data for record in await anext(batches)] == [b"early"]
        for number in range(20):
            waiting = asyncio.ensure_future(anext(batches))
            await asyncio.sleep(0.001)
            assert not waiting.done()
            written = time.monotonic()
            writer.write([(2, b"%d" % number)])
            assert [record.data for record in await waiting] == [b"%d" % number]
            assert time.monotonic() - written < 0.1
        waiting = asyncio.ensure_future(anext(batches, None))
        await asyncio.sleep(0)
        writer.close()
        assert await waiting is None


async def test_followers_that_come_late_or_leave_early_do_not_disturb_others(path: Path, writer: LogWriter) -> None:
    async def collect(after: int) -> bytes:
        return b"".join([record.data async for batch in follow(path, writer, after) for record in batch])

    async with asyncio.timeout(LIMIT):
        leaver = asyncio.ensure_future(collect(0))
        stayer = asyncio.ensure_future(collect(0))
        await asyncio.sleep(0)
        writer.write([(1, b"one")])
        await asyncio.sleep(0.01)
        leaver.cancel()
        latecomer = asyncio.ensure_future(collect(path.stat().st_size))
        await asyncio.sleep(0)
        writer.write([(1, b"two")])
        writer.remark("end")
        writer.close()
        assert await stayer == b"onetwoend\n"
        assert await latecomer == b"twoend\n"


async def test_a_log_without_a_writer_is_read_to_its_end(path: Path, writer: LogWriter) -> None:
    writer.write([(1, b"x" * 300_000), (2, b"y")])
    sizes = [len(record.data) async for batch in follow(path, None, 0) for record in batch]
    assert sizes == [300_000, 1]


async def test_only_positions_that_the_log_gave_are_taken(path: Path, writer: LogWriter) -> None:
    writer.write([(1, b"one")])
    writer.write([(1, b"two")])
    given = {0, *(record.seq for record in read_all(path))}
    for after in range(-2, path.stat().st_size + 3):
        if after in given:
            assert all([batch async for batch in follow(path, None, after)])
        else:
            with pytest.raises(Invalid, match=str(after)):
                await anext(follow(path, None, after))
