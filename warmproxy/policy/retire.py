"""When an idle connection is due to be replaced, and why."""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from warmproxy.observe import CloseReason

AGE_JITTER = 0.1
"""Share by which max_age is shortened at random, so that what was opened together does not end
together (HikariCP uses 2.5 %, too little to spread a pool of ten)."""


@dataclass(slots=True)
class Due:
    """From when on a connection is to be replaced (in loop seconds), and under which name."""

    at: float
    reason: CloseReason


def lifetime(max_age: float, rng: Callable[[], float]) -> float:
    """Seconds that one connection may live: max_age less its jitter; inf where max_age is 0."""
    return max_age * (1.0 - AGE_JITTER * rng()) if max_age else inf


def due(opened: float, lifetime: float, idle_since: float, idle_limit: float) -> Due:
    """The earlier of the end of its life and of its idle limit."""
    old, idle = opened + lifetime, idle_since + idle_limit
    if idle <= old:
        return Due(idle, CloseReason.IDLE_LIMIT)
    return Due(old, CloseReason.MAX_AGE)
