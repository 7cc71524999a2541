"""Lists as people see them on a terminal, and as programs read them."""

from datetime import UTC, datetime, timedelta

import pytest

from roost.cli import answers, times
from roost.cli.answers import print_table, width
from roost.cli.times import SINCE, cells, relative

ID = "0f1e2d3c-0000-4000-8000-000000000000"
NOW = datetime(2027, 1, 31, 12, tzinfo=UTC)


@pytest.fixture
def on_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (answers, times):
        monkeypatch.setattr(module, "on_terminal", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")


@pytest.mark.parametrize(
    ("ago", "words"),
    [
        (timedelta(), "just now"), (timedelta(seconds=1), "1 second ago"), (timedelta(minutes=5), "5 minutes ago"),
        (timedelta(hours=25), "1 day ago"), (timedelta(days=400), "1 year ago"), (-timedelta(hours=3), "in 3 hours"),
    ],
)  # fmt: skip
def test_how_long_ago_something_was(ago: timedelta, words: str) -> None:
    assert relative(NOW - ago, NOW) == words


def test_programs_get_whole_ids_and_instants() -> None:
    record = {"id": ID, "created_at": "2027-01-31T12:00:00Z", "status": "running", "exit_code": None}
    assert cells(record, record) == [ID, "2027-01-31T12:00:00Z", "running", "-"]


@pytest.mark.usefixtures("on_terminal")
def test_people_get_what_they_can_type_and_ages() -> None:
    before = (datetime.now(UTC) - timedelta(hours=2, minutes=1)).isoformat()
    record = {"request_id": ID, "created_at": before, "at": "soon", "id": "msg_0123456789"}
    assert cells(record, record) == ["0f1e2d3c", "2 hours ago", "soon", "msg_0123456789"]


def test_columns_stand_below_each_other_also_of_wide_characters(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["NAME", "X"], [["日本語", "1"], ["e\u0301te", "2"], ["plain", "3"]])
    lines = capsys.readouterr().out.splitlines()
    assert {width(line[:-1]) for line in lines[1:]} == {8}
    assert "\x1b" not in "".join(lines)


@pytest.mark.usefixtures("on_terminal")
def test_colours_are_for_terminals_that_want_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert answers.coloured()
    monkeypatch.setenv("NO_COLOR", "1")
    print_table(["STATUS"], [["running"]])
    assert "\x1b" not in capsys.readouterr().out
    assert not answers.coloured()


def test_a_time_is_an_age_or_an_instant() -> None:
    assert abs(SINCE.convert("10m", None, None) - (datetime.now(UTC) - timedelta(minutes=10))) < timedelta(minutes=1)
    assert SINCE.convert("2027-01-31T12:00:00Z", None, None) == NOW
    with pytest.raises(Exception, match="is no time"):
        SINCE.convert("yesterday", None, None)
