"""What one scrape shows: the pools' tallies and their state now, by the label `origin`.

Origins that are not configured share the label origin="other", so that clients cannot grow the
number of series.
"""

from dataclasses import dataclass, field
from math import inf
from typing import Any

from warmproxy.observe import Tally
from warmproxy.pool.registry import Registry, tallies


@dataclass(frozen=True, slots=True)
class Gauges:
    """What is now, of one label's pools."""

    fresh: int = 0
    used: int = 0
    active: int = 0
    dialling: int = 0
    waiting: int = 0
    target_idle: int = 0
    idle_limits: tuple[tuple[str, float], ...] = ()
    """(kind, seconds) of the limits that were learned."""

    def __add__(self, other: "Gauges") -> "Gauges":
        return Gauges(
            self.fresh + other.fresh,
            self.used + other.used,
            self.active + other.active,
            self.dialling + other.dialling,
            self.waiting + other.waiting,
            self.target_idle + other.target_idle,
        )


@dataclass(frozen=True, slots=True)
class Sample:
    """All that one scrape shows, by the label `origin`."""

    tallies: dict[str, Tally]
    gauges: dict[str, Gauges]
    clients: int
    tunnels: int
    loop_lag: float
    reload_is_good: bool = True
    reload_good_at: float = 0.0
    """Seconds since the epoch."""
    authority_ends: float | None = None
    """When our authority expires, in seconds since the epoch; None where nobody is intercepted."""
    processes: dict[str, tuple[bool, int]] = field(default_factory=lambda: {"1": (True, 0)})
    """By number: whether it answers, and how often it was started anew."""


def take(
    registry: Registry[Any, Any],
    now: float,
    *,
    clients: int,
    tunnels: int,
    loop_lag: float,
    reload_is_good: bool = True,
    reload_good_at: float = 0.0,
    authority_ends: float | None = None,
) -> Sample:
    """The sums over time are brought up to `now`."""
    gauges: dict[str, Gauges] = {"other": Gauges()}
    for pool in registry:
        pool.account(now)
        limits = pool.idle_limits.items()
        here = Gauges(
            pool.fresh,
            pool.used,
            pool.active,
            pool.dialling,
            pool.waiting,
            pool.target_idle(now),
            tuple((kind, lim.seconds) for kind, lim in limits if lim.seconds < inf),
        )
        if pool.origin in registry.configured:
            gauges[str(pool.origin)] = here
        else:
            gauges["other"] += here
    return Sample(
        tallies(registry.configured, [(p.origin, p.tally) for p in registry], registry.forgotten),
        gauges,
        clients,
        tunnels,
        loop_lag,
        reload_is_good,
        reload_good_at,
        authority_ends,
    )
