"""How the events of both programs look."""

import io
import json
import sys
from collections.abc import Iterator

import pytest
import structlog

from roost.events import write_events
from roost.settings import LogFormat


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def ours_again(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    yield
    structlog.reset_defaults()


def told(monkeypatch: pytest.MonkeyPatch, wanted: LogFormat, where: io.StringIO) -> str:
    monkeypatch.setattr(sys, "stderr", where)
    write_events("node", wanted)
    try:
        raise ValueError("\x1b[2J")
    except ValueError:
        structlog.get_logger().warning("guest.unknown", name="\x1b]0;owned\x07", exc_info=True)
    return where.getvalue()


@pytest.mark.parametrize("wanted", ["auto", "json"])
def test_programs_get_json(monkeypatch: pytest.MonkeyPatch, wanted: LogFormat) -> None:
    event = json.loads(told(monkeypatch, wanted, io.StringIO()))
    assert (event["event"], event["program"], event["level"]) == ("guest.unknown", "node", "warning")


@pytest.mark.parametrize(("wanted", "where"), [("auto", Terminal), ("text", io.StringIO)])
def test_people_get_lines_whose_control_characters_do_nothing(
    monkeypatch: pytest.MonkeyPatch, wanted: LogFormat, where: type[io.StringIO]
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    text = told(monkeypatch, wanted, where())
    assert "guest.unknown" in text
    assert "ValueError" in text
    assert "\x1b" not in text


def test_a_terminal_shows_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[" in told(monkeypatch, "auto", Terminal())


def test_the_journal_has_the_time_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "8:1")
    assert told(monkeypatch, "text", io.StringIO()).startswith("[warning")
