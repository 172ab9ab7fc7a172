"""Windows: what holds at a moment, until when, and when to look again."""

from datetime import UTC, datetime, timedelta
from itertools import takewhile

import pytest
from cronsim import CronSim
from hypothesis import given
from hypothesis import strategies as st

from warmproxy.cron import Cron, zone
from warmproxy.policy.schedule import AHEAD, Look, Window

BERLIN = zone("Europe/Berlin")


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def window(at: str, minutes: float) -> Window:
    return Window(Cron(at, BERLIN), minutes * 60)


OPENING = window("55 8 * * mon-fri", 15)
NIGHT = window("50 23 * * *", 30)
SKIPPED = window("30 2 * * *", 90)
OVERLAPPING = window("*/10 * * * *", 15)


# in Berlin it is one hour later than here, from the end of March to the end of October two
@pytest.mark.parametrize(
    ("of", "now", "until", "again"),
    [
        # Monday morning: dialled for some seconds before, so that it begins warm
        (OPENING, "2026-11-23 07:54:56", None, "2026-11-23 07:54:57"),
        (OPENING, "2026-11-23 07:54:57", "2026-11-23 08:10", "2026-11-23 08:10"),
        (OPENING, "2026-11-23 07:55", "2026-11-23 08:10", "2026-11-23 08:10"),
        # who starts in the middle of it holds the rest
        (OPENING, "2026-11-23 08:09:59", "2026-11-23 08:10", "2026-11-23 08:10"),
        (OPENING, "2026-11-23 08:10", None, "2026-11-24 07:54:57"),
        # on a Friday the next one is on Monday
        (OPENING, "2026-11-20 08:10", None, "2026-11-23 07:54:57"),
        (OPENING, "2026-11-21 08:00", None, "2026-11-23 07:54:57"),
        # across midnight
        (NIGHT, "2026-11-23 22:50", "2026-11-23 23:20", "2026-11-23 23:20"),
        (NIGHT, "2026-11-23 23:10", "2026-11-23 23:20", "2026-11-23 23:20"),
        (NIGHT, "2026-11-23 23:20", None, "2026-11-24 22:49:57"),
        # clocks are set forward from 2:00 to 3:00, when what was skipped begins
        (SKIPPED, "2026-03-29 00:59", None, "2026-03-29 00:59:57"),
        (SKIPPED, "2026-03-29 01:00", "2026-03-29 02:30", "2026-03-29 02:30"),
        # clocks are set back from 3:00 to 2:00: it begins once, and lasts as long as ever
        (SKIPPED, "2026-10-25 00:30", "2026-10-25 02:00", "2026-10-25 02:00"),
        (SKIPPED, "2026-10-25 01:15", "2026-10-25 02:00", "2026-10-25 02:00"),
        (SKIPPED, "2026-10-25 01:30", "2026-10-25 02:00", "2026-10-25 02:00"),
        (SKIPPED, "2026-10-25 02:00", None, "2026-10-26 01:29:57"),
        # a window that begins again before it ends is looked at when it does
        (OVERLAPPING, "2026-11-23 07:55", "2026-11-23 08:05", "2026-11-23 07:59:57"),
        (OVERLAPPING, "2026-11-23 08:00", "2026-11-23 08:15", "2026-11-23 08:09:57"),
    ],
)
def test_what_holds_and_until_when(of: Window, now: str, until: str | None, again: str) -> None:
    assert of.look(utc(now)) == Look(utc(until) if until else None, utc(again))


def test_it_is_all_the_same_in_which_zone_the_moment_is() -> None:
    now = utc("2026-11-23 08:00")
    assert OPENING.look(now.astimezone(zone("Asia/Tokyo"))) == OPENING.look(now)


EXPRESSIONS = (
    "30 2 * * *",
    "0,30 1-3 * * *",
    "15 * * * *",
    "*/20 2 * * *",
    "10,40 2 * * sat,sun",
    "0 0 * * *",
    "0 30 2 * * *",
)
ZONES = ("Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "UTC")
AROUND = ("2026-03-08", "2026-03-29", "2026-04-04", "2026-10-03", "2026-10-25", "2026-11-01")


@given(
    st.sampled_from(EXPRESSIONS),
    st.sampled_from(ZONES),
    st.sampled_from(AROUND),
    st.integers(0, 2 * 86400 - 1),
    st.sampled_from([60, 600, 1800, 2700, 5400, 86400]),
)
def test_on_the_days_when_clocks_are_set_it_is_what_a_walk_over_all_starts_says(
    at: str, name: str, day: str, second: int, length: int
) -> None:
    now = utc(day) + timedelta(seconds=second)
    walk = (
        s.astimezone(UTC) for s in CronSim(at, (utc(day) - timedelta(3)).astimezone(zone(name)))
    )
    starts = list(takewhile(lambda start: start < now + timedelta(3), walk))
    lasts = timedelta(seconds=length)

    def until(moment: datetime) -> datetime | None:
        return max((s + lasts for s in starts if s - AHEAD <= moment < s + lasts), default=None)

    look = Window(Cron(at, zone(name)), length).look(now)
    holds = until(now)
    assert look.again > now
    if holds is None:
        assert look.until is None
        # and none begins before it is looked again
        assert not [s for s in starts if now < s - AHEAD < look.again]
    else:
        assert look.until is not None
        # in the hour that comes twice it may be looked more often than needed
        assert look.again <= look.until <= holds
