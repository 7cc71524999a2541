"""A log's lines are those of the script, however the bytes arrived."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from roost.jobs.logs import LONGEST_LINE, Line, Lines
from roost.node.protocol import LogRecord

BYTES = st.binary(max_size=300) | st.lists(st.sampled_from([b"\n", b"\r\n", b"a", "é".encode(), b"\xff"])).map(b"".join)


def chunks(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


def lines(*records: tuple[str, bytes]) -> list[Line]:
    splitter = Lines()
    told: list[Line] = []
    for seq, (source, data) in enumerate(records, 1):
        told += splitter.feed(LogRecord(seq=seq, time_ns=seq, source=source, data=data))
    return [*told, *splitter.end()]


def texts(found: list[Line], source: str = "stdout") -> list[str]:
    return [line.text for line in found if line.source == source]


@given(BYTES, st.lists(st.integers(0, 1000), max_size=20))
def test_any_chunking_of_any_bytes_gives_the_same_lines(data: bytes, cuts: list[int]) -> None:
    assert texts(lines(*(("stdout", chunk) for chunk in chunks(data, cuts)))) == texts(lines(("stdout", data)))


@given(BYTES, BYTES, st.lists(st.integers(0, 1000), max_size=9))
def test_sources_do_not_disturb_each_other(out: bytes, err: bytes, cuts: list[int]) -> None:
    mixed = [
        record
        for pair in zip(chunks(out, cuts), chunks(err, cuts), strict=True)
        for record in zip(("stdout", "stderr"), pair, strict=True)
    ]
    found = lines(*mixed)
    assert texts(found) == texts(lines(("stdout", out)))
    assert texts(found, "stderr") == texts(lines(("stderr", err)), "stderr")
    assert [line.number for line in found] == list(range(1, len(found) + 1))


@given(st.integers(0, 3 * LONGEST_LINE + 2), st.lists(st.integers(0, 10**6), max_size=5))
def test_a_line_without_end_is_cut_at_the_same_places(size: int, cuts: list[int]) -> None:
    data = b"x" * size + b"\nend"
    found = texts(lines(*(("stdout", chunk) for chunk in chunks(data, cuts))))
    assert "".join(found) == "x" * size + "end"
    assert max(len(text) for text in found) <= LONGEST_LINE
    assert found == texts(lines(("stdout", data)))


def test_empty_lines_and_the_last_line_without_end_are_told() -> None:
    assert texts(lines(("stdout", b"a\n\nb"))) == ["a", "", "b"]


def test_a_line_has_the_time_its_end_arrived() -> None:
    assert [line.time_ns for line in lines(("stdout", b"a"), ("stdout", b"b\nc"), ("stderr", b"x"))] == [2, 2, 3]
