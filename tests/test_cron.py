"""cron: what times an expression stands for, in which zone, and what is said of a wrong one."""

import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmproxy.cron import Cron, zone

BERLIN = zone("Europe/Berlin")


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "moment", "after", "by"),
    [
        # Friday evening
        ("55 8 * * mon-fri", "2026-11-20 20:00", "2026-11-23 07:55", "2026-11-20 07:55"),
        ("55 8 * * MON-FRI", "2026-11-20 07:55", "2026-11-23 07:55", "2026-11-20 07:55"),
        ("*/15 * * * *", "2026-11-20 20:07", "2026-11-20 20:15", "2026-11-20 20:00"),
        ("*/10 * * * * *", "2026-11-20 20:07:01", "2026-11-20 20:07:10", "2026-11-20 20:07:00"),
        ("0 0 l * *", "2026-11-20 20:07", "2026-11-29 23:00", "2026-10-30 23:00"),
        # 2:30 is skipped on 29 March: right after the gap, at 3:00 summer time
        ("30 2 * * *", "2026-03-28 12:00", "2026-03-29 01:00", "2026-03-28 01:30"),
        ("30 2 * * *", "2026-03-29 01:00", "2026-03-30 00:30", "2026-03-29 01:00"),
        # it comes twice on 25 October: the first time counts
        ("30 2 * * *", "2026-10-24 12:00", "2026-10-25 00:30", "2026-10-24 00:30"),
        ("30 2 * * *", "2026-10-25 00:45", "2026-10-26 01:30", "2026-10-25 00:30"),
        # time that passes counts where every hour does
        ("30 * * * *", "2026-10-25 00:45", "2026-10-25 01:30", "2026-10-25 00:30"),
    ],
)
def test_times_in_a_zone_of_its_own(text: str, moment: str, after: str, by: str) -> None:
    cron = Cron(text, BERLIN)
    assert cron.after(utc(moment)) == utc(after)
    assert cron.by(utc(moment)) == utc(by)


def test_a_start_in_the_hour_that_comes_twice_is_not_given_once_it_is_past() -> None:
    """The library, asked in the second 2:15, would give the first 2:30 of three quarters ago."""
    assert Cron("30 2 * * *", BERLIN).after(utc("2026-10-25 01:15")) == utc("2026-10-26 01:30")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "(wrong number of fields): write minute hour day month weekday"),
        ("55 8 * *", "(wrong number of fields)"),
        ("55 25 * * *", "(bad hour)"),
        ("a b c d e", "(bad minute)"),
        (
            "0 0 * * mon-sun",
            '(bad day-of-week): write minute hour day month weekday, for example "',
        ),
        ("0 0 31 4 *", "(bad day-of-month)"),
        ("9" * 5000 + " * * * *", "is no time of a crontab"),
        ("0 0 */20 * mon#5", "is a time that never comes"),
    ],
)
def test_what_is_said_of_a_wrong_expression(text: str, words: str) -> None:
    with pytest.raises(ValueError) as raised:
        Cron(text)
    assert words in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


parts = st.text(alphabet="0123456789*/-,#lwmonfri", max_size=6)


@given(st.lists(parts, min_size=4, max_size=7).map(" ".join) | st.text())
def test_any_text_is_a_time_or_a_value_error(text: str) -> None:
    try:
        cron = Cron(text)
    except ValueError:
        return
    moment = utc("2026-11-21 12:34:56")
    assert cron.by(moment) <= moment < cron.after(moment)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Europe/Berln", "did you mean Europe/Berlin?"),
        ("europe/berlin", "did you mean Europe/Berlin?"),
        ("berlin", "did you mean Europe/Berlin?"),
        ("Mars/Olympus_Mons_East", "is no time zone"),
        ("../../etc/passwd", "is no time zone; for example Europe/Berlin"),
        ("/etc/localtime", "is no time zone"),
        ("Europe", "is no time zone"),
        ("\0", "is no time zone"),
    ],
)
def test_what_is_said_of_a_wrong_zone(name: str, words: str) -> None:
    with pytest.raises(ValueError) as raised:
        zone(name)
    assert words in str(raised.value)


# ── the machine's own zone ───────────────────────────────────────────────────────────────────


@pytest.fixture(params=["Europe/Berlin", "CET-1CEST,M3.5.0,M10.5.0/3"])
def machine_in_berlin(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """By the zone's name, and by rules, which zoneinfo does not understand."""
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()
    assert os.environ.get("TZ") != request.param


@pytest.mark.usefixtures("machine_in_berlin")
def test_the_machines_own_zone_has_its_rules_all_year() -> None:
    """Each half hour of the days on which clocks are set, and of one between."""
    own = zone("")
    for day in ("2026-03-29", "2026-10-25", "2026-07-01"):
        for half_hours in range(48):
            moment = utc(day) + timedelta(minutes=30 * half_hours)
            local, expected = moment.astimezone(own), moment.astimezone(BERLIN)
            assert local.replace(tzinfo=None) == expected.replace(tzinfo=None)
            assert (local.fold, local.utcoffset()) == (expected.fold, expected.utcoffset())
            assert local.astimezone(UTC) == moment


@pytest.mark.usefixtures("machine_in_berlin")
def test_times_without_a_zone_are_the_machines() -> None:
    cron = Cron("30 2 * * *", zone(""))
    assert cron.after(utc("2026-03-28 12:00")) == utc("2026-03-29 01:00")
    assert cron.after(utc("2026-10-24 12:00")) == utc("2026-10-25 00:30")
