"""When schedules are due: time zones, daylight saving, what was missed, and what is refused."""

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from roost.errors import Invalid
from roost.jobs import cron_times as times

BERLIN = "Europe/Berlin"  # 2027: forward on 28 March at 02:00, back on 31 October at 03:00


def ns(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp()) * 10**9


def following(expression: str, zone: str, after: str, count: int) -> list[str]:
    """In local time with its offset, each computed anew from the one before, as the scheduler does."""
    found, at = list[str](), ns(after)
    for _ in range(count):
        at = times.next_after(expression, zone, at) or 0
        found.append(datetime.fromtimestamp(at // 10**9, ZoneInfo(zone)).strftime("%m-%d %H:%M%z"))
    return found


def test_an_expression_means_the_time_of_its_zone() -> None:
    assert following("0 9 * * MON", BERLIN, "2027-03-01T09:00:00+01:00", 2) == ["03-08 09:00+0100", "03-15 09:00+0100"]
    assert following("30 5 * * *", "Asia/Kolkata", "2027-03-01T00:00:00+00:00", 1) == ["03-02 05:30+0530"]
    assert following("*/20 * * * *", "UTC", "2027-03-01T00:00:00+00:00", 3) == [
        "03-01 00:20+0000", "03-01 00:40+0000", "03-01 01:00+0000",
    ]  # fmt: skip


def test_a_time_that_the_clock_jumps_over_fires_at_the_first_minute_after_it() -> None:
    assert following("30 2 * * *", BERLIN, "2027-03-27T12:00:00+01:00", 2) == ["03-28 03:00+0200", "03-29 02:30+0200"]
    assert following("0 2,3 * * *", BERLIN, "2027-03-27T12:00:00+01:00", 2) == ["03-28 03:00+0200", "03-29 02:00+0200"]


def test_a_time_that_comes_twice_fires_once() -> None:
    assert following("30 2 * * *", BERLIN, "2027-10-30T12:00:00+02:00", 2) == ["10-31 02:30+0200", "11-01 02:30+0100"]


def test_within_the_hour_that_comes_twice_the_past_is_not_due_again() -> None:
    assert following("30 2 * * *", BERLIN, "2027-10-31T02:15:00+01:00", 1) == ["11-01 02:30+0100"]


def test_a_schedule_with_stars_follows_elapsed_time() -> None:
    assert following("30 * * * *", BERLIN, "2027-10-31T01:45:00+02:00", 3) == [
        "10-31 02:30+0200", "10-31 02:30+0100", "10-31 03:30+0100",
    ]  # fmt: skip
    assert following("*/30 * * * *", BERLIN, "2027-03-28T01:15:00+01:00", 2) == ["03-28 01:30+0100", "03-28 03:00+0200"]


def test_the_newest_missed_instants_are_found_without_walking_through_years() -> None:
    now = ns("2027-03-01T12:00:30+00:00")
    owed = times.owed("* * * * *", "UTC", ns("1990-01-01T00:00:00+00:00"), now)
    assert len(owed) == 24 and owed[-1] == ns("2027-03-01T12:00:00+00:00") and owed[0] == owed[-1] - 23 * 60 * 10**9
    yearly = times.owed("0 0 1 1 *", "UTC", ns("2020-01-01T00:00:00+00:00"), now)
    assert len(yearly) == 8 and yearly[0] == ns("2020-01-01T00:00:00+00:00")


def test_which_missed_runs_are_made_up_for() -> None:
    instants = [100 * times.SECOND, 160 * times.SECOND]
    assert times.made_up_for(instants, "none", 165 * times.SECOND) == [160 * times.SECOND]
    assert times.made_up_for(instants, "none", 171 * times.SECOND) == []
    assert times.made_up_for(instants, "latest", 10**15) == [160 * times.SECOND]
    assert times.made_up_for(instants, "all", 10**15) == instants


@pytest.mark.parametrize(
    ("expression", "zone", "words"),
    [
        ("", "UTC", "has 0 field"),
        ("* * * *", "UTC", "has 4 field"),
        ("* * * * * *", "UTC", "give five fields"),
        ("@reboot", "UTC", "give five fields"),
        ("61 * * * *", "UTC", "bad minute"),
        ("* 24 * * *", "UTC", "bad hour"),
        ("* * 32 * *", "UTC", "bad day-of-month"),
        ("* * * 13 *", "UTC", "bad month"),
        ("* * * * 9", "UTC", "bad day-of-week"),
        ("*/0 * * * *", "UTC", "bad minute"),
        ("0 0 30 2 *", "UTC", "bad day-of-month"),
        ("* * * * *" + " " * 300, "UTC", "at most 256"),
        ("L * * * *", "UTC", "bad minute"),
        ("a/b * * * *", "UTC", "bad minute"),
        ("0 0 L/2 * *", "UTC", None),
        ("* * * * *", "Mars/Olympus", "timezone"),
        ("* * * * *", "../../etc/passwd", "timezone"),
        ("* * * * *", "Europe", "timezone"),
        ("* * * * *", "", "timezone"),
        ("* * * * *", "a\0b", "timezone"),
        ("* * * * *", "x" * 1000, "timezone"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_cure(expression: str, zone: str, words: str | None) -> None:
    if words is None:
        return times.check(expression, zone, ns("2027-03-01T12:00:00+00:00"))
    with pytest.raises(Invalid, match=words):
        times.check(expression, zone, ns("2027-03-01T12:00:00+00:00"))
    return None


@pytest.mark.parametrize(
    ("name", "when"),
    [
        ("@hourly", "03-03 11:00+0000"),
        ("@daily", "03-04 00:00+0000"),
        ("@midnight", "03-04 00:00+0000"),
        ("@Weekly", "03-07 00:00+0000"),
        ("@monthly", "04-01 00:00+0000"),
        ("@yearly", "01-01 00:00+0000"),
        ("@annually", "01-01 00:00+0000"),
    ],
)
def test_the_names_of_crontab_mean_what_they_mean_there(name: str, when: str) -> None:
    times.check(name, "UTC", ns("2027-03-03T10:30:00+00:00"))
    assert following(name, "UTC", "2027-03-03T10:30:00+00:00", 1) == [when]


@pytest.mark.parametrize("name", ["@reboot", "@every 5m", "@", "@dailyy"])
def test_other_names_are_refused_with_those_that_there_are(name: str) -> None:
    with pytest.raises(Invalid, match="@hourly, @daily"):
        times.check(name, "UTC", ns("2027-03-03T10:30:00+00:00"))
