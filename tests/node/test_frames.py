"""Frames from a guest: any bytes are frames or misbehaviour, in any chunks, within one frame's memory."""

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.node.guest import frames
from roost.node.guest.frames import Command, Frame, FrameReader, FromGuest, GuestMisbehaved

from .fake_guest import encode, raw

IDS = st.integers(0, 2**32 - 1)
U32 = st.integers(0, 2**32 - 1)
COUNTS = st.integers(0, 2**63 - 1)
PROCESS_IDS = st.integers(0, frames.MAX_PROCESS_ID)
MESSAGES = st.text(max_size=100).filter(lambda text: len(text.encode()) <= 400)
VALID: st.SearchStrategy[Frame] = st.one_of(
    st.builds(frames.Hello, U32, st.booleans(), U32),
    st.builds(frames.Process, PROCESS_IDS, st.booleans(), U32, COUNTS, COUNTS, st.integers(0, frames.STDIN_WINDOW)),
    st.builds(frames.Done, IDS),
    st.builds(frames.Failed, IDS, U32, MESSAGES),
    st.builds(frames.Started, IDS, U32),
    st.builds(frames.Output, IDS, st.sampled_from([1, 2]), COUNTS, st.binary(min_size=1, max_size=300)),
    st.builds(frames.Exited, IDS, st.integers(0, 255), st.integers(0, 64), COUNTS),
    st.builds(frames.StdinTaken, IDS, U32),
    st.builds(frames.Pong, IDS),
)
# Headers that are nearly right reach further into the reader than bytes without any sense.
NEARLY = st.builds(
    raw, st.integers(60, 76), IDS, st.one_of(st.binary(max_size=40), st.just(b"\xff" * 20)), st.integers(0, 3)
)
ANYTHING = st.one_of(st.binary(max_size=200), st.lists(st.one_of(NEARLY, VALID.map(encode))).map(b"".join))


@st.composite
def chunked(draw: st.DrawFn, stream: bytes) -> list[bytes]:
    cuts = sorted(draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    return [stream[a:b] for a, b in itertools.pairwise([0, *cuts, len(stream)])]


@given(st.data(), ANYTHING)
def test_any_bytes_are_frames_or_misbehaviour(data: st.DataObject, stream: bytes) -> None:
    reader = FrameReader()
    for chunk in data.draw(chunked(stream)):
        try:
            list(reader.feed(chunk))
        except GuestMisbehaved:
            return
        assert reader.held < frames.HEADER.size + frames.MAX_FROM_GUEST


@given(st.data(), st.lists(VALID, max_size=10))
def test_frames_come_out_as_they_went_in_however_they_are_cut(data: st.DataObject, sent: list[Frame]) -> None:
    reader = FrameReader()
    stream = b"".join(map(encode, sent))
    assert [frame for chunk in data.draw(chunked(stream)) for frame in reader.feed(chunk)] == sent
    assert not reader.held


@given(st.data(), ANYTHING)
def test_how_bytes_are_cut_makes_no_difference(data: st.DataObject, stream: bytes) -> None:
    def read(chunks: list[bytes]) -> list[Frame | str]:
        reader, seen = FrameReader(), list[Frame | str]()
        try:
            for chunk in chunks:
                for frame in reader.feed(chunk):
                    seen.append(frame)
        except GuestMisbehaved as misbehaved:
            seen.append(str(misbehaved))
        return seen

    assert read([stream]) == read(data.draw(chunked(stream)))


def test_the_largest_frame_is_read_byte_by_byte_within_its_own_memory() -> None:
    largest = frames.Output(1, 1, 0, bytes(frames.MAX_FROM_GUEST - 8))
    reader, stream = FrameReader(), encode(largest)
    for at in range(0, len(stream) - 1, 997):
        assert not list(reader.feed(stream[at : min(at + 997, len(stream) - 1)]))
        assert reader.held <= len(stream)
    assert list(reader.feed(stream[-1:])) == [largest]


@pytest.mark.parametrize("length", [frames.MAX_FROM_GUEST + 1, 2**31, 2**32 - 1])
def test_a_length_beyond_the_limit_is_refused_with_the_header(length: int) -> None:
    with pytest.raises(GuestMisbehaved):
        list(FrameReader().feed(frames.HEADER.pack(length, FromGuest.OUTPUT, 1, 0, 1)))


@pytest.mark.parametrize(
    "stream",
    [
        raw(0),
        raw(63),
        raw(73),
        raw(255),
        raw(FromGuest.DONE, payload=b"x"),
        raw(FromGuest.HELLO, payload=bytes(11)),
        raw(FromGuest.OUTPUT, payload=bytes(8), detail=1),
        raw(FromGuest.OUTPUT, payload=bytes(9), detail=0),
        raw(FromGuest.OUTPUT, payload=bytes(9), detail=3),
        raw(FromGuest.OUTPUT, payload=b"\xff" * 9, detail=1),
        raw(FromGuest.EXITED, payload=struct.pack("<iiQ", 256, 0, 0)),
        raw(FromGuest.EXITED, payload=struct.pack("<iiQ", -1, 0, 0)),
        raw(FromGuest.EXITED, payload=struct.pack("<iiQ", 0, 65, 0)),
        raw(FromGuest.EXITED, payload=struct.pack("<iiQ", 0, 0, 2**63)),
        raw(FromGuest.FAILED, payload=bytes(3)),
        raw(FromGuest.FAILED, payload=bytes(513)),
        raw(FromGuest.PROCESS, id=2**31, payload=bytes(24)),
        raw(FromGuest.PROCESS, id=1, payload=bytes(20) + struct.pack("<I", frames.STDIN_WINDOW + 1)),
        frames.HEADER.pack(0, FromGuest.PONG, 0, 1, 0),
    ],
)
def test_what_no_guest_init_sends_is_misbehaviour(stream: bytes) -> None:
    with pytest.raises(GuestMisbehaved):
        list(FrameReader().feed(stream))


def test_a_status_is_told_as_a_shell_does() -> None:
    assert frames.Exited(1, 3, 0, 0).exit_code == 3
    assert frames.Exited(1, 0, 15, 0).exit_code == 143


def test_a_message_that_is_no_text_is_still_told() -> None:
    (failed,) = FrameReader().feed(raw(FromGuest.FAILED, 5, bytes(4) + b"\xff\xfe"))
    assert failed == frames.Failed(5, 0, "\ufffd\ufffd")


@given(st.binary(max_size=2 * frames.MAX_TO_GUEST // 1000))
def test_a_file_is_cut_into_frames_that_guest_init_takes(data: bytes) -> None:
    whole = data * 1000
    parts = list(frames.write_file(7, "/a/path", 0o600, whole))
    heads = [frames.HEADER.unpack_from(part) for part in parts]
    assert [detail for _, _, detail, _, _ in heads] == [0] + [1] * (len(parts) - 1)
    assert all(length <= frames.MAX_TO_GUEST for length, *_ in heads)
    assert b"".join(part[frames.HEADER.size + 4 + len(b"/a/path\0") :] for part in parts) == whole


def test_what_cannot_be_passed_to_a_process_is_refused_here() -> None:
    with pytest.raises(ValueError, match="NUL"):
        frames.execute(1, Command(["a\0b"], {}))
    with pytest.raises(ValueError, match="EXEC"):
        frames.execute(1, Command(["a" * frames.MAX_TO_GUEST], {}))
