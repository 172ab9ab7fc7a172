"""Windows while the wall clock is set: a real housekeeper whose loop never turns, so that nothing
is dialled and only what is wanted shows."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from warmproxy.net.housekeeper import Housekeeper, Waiter
from warmproxy.net.upstream import UpstreamConnection
from warmproxy.observe import Observer
from warmproxy.origin import Origin, origin, secured
from warmproxy.pool.registry import Registry
from warmproxy.settings import Settings, TlsProfile, UpstreamSettings, WindowSettings
from warmproxy.warming import LOOK_SECONDS, Warming

TUNNELS = origin("tcp", "h", 443)


class House:
    """Holds the windows of one upstream, in UTC."""

    def __init__(self, *windows: WindowSettings, **settings: Any) -> None:
        upstream = UpstreamSettings(
            url="https://h", warm=1, timezone="UTC", warm_at=windows, **settings
        )
        everything = Settings(upstream=(upstream,))
        self.loop = asyncio.new_event_loop()
        self.registry = Registry[UpstreamConnection, Waiter](
            everything, Observer(), lambda: 0.5, self.loop.time()
        )
        nobody = cast(Any, None)
        keeper = Housekeeper(everything, self.registry, nobody, Observer(), self.loop)
        self.warming = Warming(everything, nobody, keeper, self.loop.time)

    def tick(self, clock: str) -> None:
        self.warming.tick(
            datetime.fromisoformat(f"2026-11-23 {clock}").replace(tzinfo=UTC).timestamp()
        )

    def target(self, of: Origin = TUNNELS) -> int:
        pool = self.registry.find(of)
        return 0 if pool is None else pool.target_idle(self.loop.time())


OPENING = WindowSettings(at="55 8 * * mon-fri", count=20, length="15m")


@pytest.fixture
def houses() -> Iterator[Any]:
    made: list[House] = []

    def make(*windows: WindowSettings, **settings: Any) -> House:
        made.append(House(*windows, **settings))
        return made[-1]

    yield make
    for house in made:
        house.loop.close()


def test_a_window_begins_and_ends_with_the_wall_clock(houses) -> None:
    house = houses(OPENING)
    found = []
    for clock in ("08:54:56", "08:54:57", "09:09:59", "09:10:00"):
        house.tick(clock)
        found.append(house.target())
    assert found == [1, 20, 20, 1]


def test_a_clock_that_is_set_back_into_a_window_or_before_it_counts_at_once(houses) -> None:
    house = houses(OPENING)
    for clock, target in [("09:30", 1), ("09:05", 20), ("08:00", 1), ("08:56", 20), ("08:54", 1)]:
        house.tick(clock)
        assert house.target() == target, clock


def test_a_clock_that_is_set_forward_beyond_a_window_ends_it(houses) -> None:
    """As after a night in which the machine slept: the loop's clock has stood still."""
    house = houses(OPENING)
    house.tick("08:56")
    assert house.target() == 20
    house.tick("12:00")
    assert house.target() == 1


def test_it_is_looked_up_at_least_once_a_minute_and_not_every_second(
    houses, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = houses(OPENING)
    looks: list[datetime] = []
    window = type(house.warming._scheduled[0].window)
    look = window.look
    monkeypatch.setattr(window, "look", lambda self, now: looks.append(now) or look(self, now))
    for minute in range(10):
        for second in range(60):
            house.tick(f"12:{minute:02}:{second:02}")
    assert len(looks) == 600 / LOOK_SECONDS


def test_each_of_several_windows_holds_for_itself(houses) -> None:
    house = houses(
        OPENING,
        WindowSettings(at="0 9 * * *", count=5, length=7200.0),
        WindowSettings(at="5 9 * * *", count=50, length=60),
    )
    found = []
    for clock in ("08:58", "09:03", "09:05:30", "09:07", "09:30", "11:00"):
        house.tick(clock)
        found.append(house.target())
    assert found == [20, 20, 50, 20, 5, 1]


@pytest.mark.parametrize(
    ("tls", "upgrade", "held"), [(0, False, (20, 0)), (3, False, (20, 3)), (0, True, (20, 20))]
)
def test_a_window_is_of_finished_tls_too_where_that_is_said_or_needed(
    houses, tls: int, upgrade: bool, held: tuple[int, int]
) -> None:
    window = WindowSettings(at="55 8 * * *", count=20, tls=tls, length="15m")
    house = houses(window, upgrade=upgrade)
    house.tick("09:00")
    secure = secured(TUNNELS, TlsProfile().name)
    assert (house.target(), house.target(secure)) == held
