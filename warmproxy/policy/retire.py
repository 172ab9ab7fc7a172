"""When an idle connection is due to be replaced, and why."""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from warmproxy.observe import CloseReason

JITTER = 0.1
"""Share by which a connection's limits are shortened at random, so that what was opened together
is not replaced together (HikariCP uses 2.5 %, too little to spread a pool of ten)."""


@dataclass(slots=True)
class Due:
    """From when on a connection is to be replaced (in loop seconds), and under which name."""

    at: float
    reason: CloseReason


def spread(rng: Callable[[], float]) -> float:
    """One connection's factor for its limits: 1 less its jitter."""
    return 1.0 - JITTER * rng()


def ends(opened: float, spread: float, max_age: float) -> float:
    """When a connection is too old, whatever it does; `max_age` 0: never."""
    return opened + max_age * spread if max_age else inf


def due(ends: float, idle_since: float, spread: float, idle_limit: float) -> Due:
    """The earlier of the end of its life and of its idle limit."""
    idle = idle_since + idle_limit * spread
    if idle <= ends:
        return Due(idle, CloseReason.IDLE_LIMIT)
    return Due(ends, CloseReason.MAX_AGE)
