"""How long after a failure, and how many refill dials a second."""

from collections.abc import Callable

BACKOFF_BASE = 0.1
"""Seconds: the longest first pause; doubled with each failure in a row."""


class Backoff:
    """Doubling pauses with full jitter: uniform between 0 and base x 2^n, at most `longest`.

    Failures that come while a pause is running belong to the same event (ten sockets dying
    together are one outage) and do not lengthen it.
    """

    __slots__ = ("_rng", "failures", "longest", "not_before")

    def __init__(self, longest: float, rng: Callable[[], float]) -> None:
        self.longest = longest
        self.failures = 0
        self.not_before = 0.0
        self._rng = rng

    def failed(self, now: float) -> bool:
        """Take note of a failure; True if it is a new event, not one more of the last."""
        if now < self.not_before:
            return False
        # 2**30 x base is beyond every sensible `longest`; a larger exponent only costs time
        ceiling = min(self.longest, BACKOFF_BASE * 2 ** min(self.failures, 30))
        self.failures += 1
        self.not_before = now + ceiling * self._rng()
        return True

    def succeeded(self) -> int:
        """Forget the failures; how many there were."""
        failures, self.failures, self.not_before = self.failures, 0, 0.0
        return failures


class DialBudget:
    """A token bucket: `rate` dials a second, up to `burst` at once.

    Refills ask first; a dial that a client waits for is charged but never refused, so the level
    may fall below zero (by one burst at most: a crowd of clients must not starve the refills of
    the next minutes).

    Where it `earns`, a connection that a client took pays for its successor, however fast clients
    come: what the rate bounds are dials that come to nothing.
    """

    __slots__ = ("_level", "_since", "burst", "earns", "rate")

    def __init__(self, rate: float, burst: float, *, earns: bool = False) -> None:
        self.rate = rate
        self.burst = max(1.0, burst)
        self.earns = earns
        self._level = self.burst
        self._since = 0.0

    def widen(self, rate: float, burst: float, now: float) -> None:
        """Allow at least so much; what is new of the burst may go at once."""
        self._fill(now)
        self.rate = max(self.rate, rate)
        if burst > self.burst:
            self._level += burst - self.burst
            self.burst = burst

    def available(self, now: float) -> int:
        """Refill dials that may start at `now`."""
        self._fill(now)
        # a timer set for the very moment of a whole token must find it, rounding or not
        return max(0, int(self._level + 1e-6))

    def charge(self, now: float) -> None:
        self._fill(now)
        self._level = max(self._level - 1.0, -self.burst)

    def earn(self, now: float) -> None:
        """A client took a connection that nobody had before."""
        if self.earns:
            self._fill(now)
            self._level = min(self._level + 1.0, self.burst)

    def next_at(self, now: float) -> float:
        """When the next refill may start; `rate` must be above 0."""
        self._fill(now)
        return now + max(0.0, (1.0 - self._level) / self.rate)

    def _fill(self, now: float) -> None:
        if now > self._since:
            self._level = min(self.burst, self._level + (now - self._since) * self.rate)
            self._since = now
