"""What is kept of a command's output that is too long for an answer."""

import random

from roost.node.capture import Capture
from roost.node.guest.frames import STDERR, STDOUT


def taken(limit: int, *pairs: tuple[int, bytes]) -> Capture:
    capture = Capture(limit)
    for pair in pairs:
        capture.take([pair])
    return capture


def test_what_fits_is_whole() -> None:
    capture = taken(10, (STDOUT, b"abcd"), (STDERR, b"ef"), (STDOUT, b"ghij"))
    assert (capture.of(STDOUT), capture.of(STDERR), capture.truncated) == (b"abcdghij", b"ef", False)


def test_of_what_does_not_fit_the_beginning_and_the_end_are_kept_and_the_gap_is_named() -> None:
    capture = taken(20, *[(STDOUT, b"%02d" % number) for number in range(50)], (STDERR, b"why"))
    assert capture.of(STDOUT) == b"0001020304\n[83 bytes are left out here]\n6474849"
    assert (capture.of(STDERR), capture.truncated) == (b"why", True)


def test_no_character_is_cut_in_two_whatever_its_length() -> None:
    chance = random.Random(1)
    for _ in range(300):
        text = "".join(chance.choice("aä€🐦") for _ in range(60))
        capture = taken(chance.randrange(8, 60), (STDOUT, text.encode()))
        begin, _, end = capture.of(STDOUT).decode().partition("\n[")
        assert text.startswith(begin) and text.endswith(end.partition("]\n")[2])


def test_bytes_that_are_no_text_are_left_as_they_are() -> None:
    assert taken(8, (STDOUT, b"\x80" * 8)).of(STDOUT) == b"\x80" * 8
    assert taken(8, (STDOUT, b"\x80" * 20)).of(STDOUT).startswith(b"\x80" * 4)
