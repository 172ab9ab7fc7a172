"""When requests come, and how long each keeps its connection. Seconds; nothing but the seed."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from math import exp, pi, sin
from random import Random


@dataclass(frozen=True, slots=True)
class Trace:
    """`origins`: for each the requests it gets, (at, lease seconds), in order of time."""

    name: str
    seconds: float
    origins: tuple[tuple[tuple[float, float], ...], ...]
    tunnels: bool = False
    """A connection carries one lease and does not come back: CONNECT."""
    learned: bool = False
    """Nobody has configured these origins: they are warmed once they are asked often."""

    @property
    def requests(self) -> int:
        return sum(map(len, self.origins))


def lease(rng: Random, median: float, sigma: float) -> float:
    """Log-normal: most are short, some are not."""
    return min(60.0, median * exp(sigma * rng.gauss(0, 1)))


def every_7_s(rng: Random) -> Trace:
    """One client that polls."""
    gaps = (7.0 * rng.uniform(0.98, 1.02) for _ in range(345))
    return _one("every 7 s", 2400.0, ((at, lease(rng, 0.1, 0.8)) for at in accumulate(gaps)))


def steady(rng: Random) -> Trace:
    """5 a second, evenly."""
    gaps = (0.2 * rng.uniform(0.9, 1.1) for _ in range(11990))
    return _one("steady", 2400.0, ((at, lease(rng, 0.1, 0.8)) for at in accumulate(gaps)))


def poisson(rng: Random) -> Trace:
    """5 a second, each on its own."""
    times = _poisson(rng, lambda at: 5.0, 5.0, 2400.0)
    return _one("Poisson", 2400.0, ((at, lease(rng, 0.1, 1.0)) for at in times))


def tunnels(rng: Random) -> Trace:
    """One CONNECT a second, each on its own."""
    times = _poisson(rng, lambda at: 1.0, 1.0, 3600.0)
    return _one("tunnels", 3600.0, ((at, lease(rng, 2.0, 1.2)) for at in times), tunnels=True)


def cron(rng: Random) -> Trace:
    """Once a minute 10 requests on the average (5 and more) within a fraction of a second."""
    found = []
    for minute in range(1, 120):
        at = 60.0 * minute + rng.uniform(0.05, 0.5)
        for _ in range(5 + sum(1 for _ in _poisson(rng, lambda at: 5.0, 5.0, 1.0))):
            found.append((at, lease(rng, 0.2, 0.6)))
            at += rng.expovariate(50.0)
    return _one("cron", 7200.0, found)


def day(rng: Random) -> Trace:
    """A business day in 4 hours: night, morning, lunch, afternoon, evening; and a sale at 15:00
    that brings twenty times as much within seconds, for 5 minutes."""

    def rate(at: float) -> float:
        hour = 24.0 * at / 14400.0
        base = 0.02
        if 7 < hour < 20:
            base += 1.5 * sin(pi * (hour - 7) / 13) * (0.6 if 12 < hour < 13 else 1.0)
        if 9000.0 <= at < 9300.0:
            base *= 20 * exp(-(at - 9000.0) / 200.0)
        return base

    times = _poisson(rng, rate, 32.0, 14400.0)
    return _one("day with a sale", 14400.0, ((at, lease(rng, 0.1, 1.0)) for at in times))


def zipf(rng: Random, hosts: int = 10_000, rate: float = 50.0, seconds: float = 1200.0) -> Trace:
    """`rate` requests a second over `hosts` hosts, the n-th asked 1/n as often as the first."""
    total = sum(1 / rank for rank in range(1, hosts + 1))
    origins = []
    for rank in range(1, hosts + 1):
        mine = rate / rank / total
        times = _poisson(rng, lambda at, mine=mine: mine, mine, seconds)
        origins.append(tuple((at, lease(rng, 0.1, 1.0)) for at in times))
    return Trace("Zipf", seconds, tuple(origins), learned=True)


TRACES: tuple[Callable[[Random], Trace], ...] = (
    every_7_s, steady, poisson, tunnels, cron, day, zipf,
)  # fmt: skip


def _poisson(
    rng: Random, rate: Callable[[float], float], highest: float, seconds: float
) -> Iterator[float]:
    """Arrivals at `rate(at)` a second, never above `highest`: by thinning."""
    at = rng.expovariate(highest)
    while at < seconds:
        if rng.random() * highest < rate(at):
            yield at
        at += rng.expovariate(highest)


def _one(name: str, seconds: float, requests, tunnels: bool = False) -> Trace:
    inside = tuple(sorted((at, held) for at, held in requests if at < seconds))
    return Trace(name, seconds, (inside,), tunnels)
