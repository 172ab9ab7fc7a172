"""When warm connections do an origin harm, it is left alone for a while, and then probed."""

from math import inf

LEFT_ALONE = 600.0
"""Seconds after the first harm; doubled each time, up to LONGEST."""
LONGEST = 6 * 3600.0
FORGIVEN = 24 * 3600.0
"""Seconds without harm after which the next one counts as the first."""
PROVEN = 60.0
"""Seconds that a probe stays idle without harm before there may be more."""

OBJECTIONS = frozenset((429, 500, 503))
"""What no origin says to a connection that it would rather keep. 500 is gunicorn's word for one
that has held its sync worker for 30 s. A 408 only tells the idle limit (Node, HAProxy)."""


def objection(status: int | None) -> str | None:
    """What is wrong with idle connections, where a response of that status came on one."""
    return f"it answered {status} to an idle connection" if status in OBJECTIONS else None


class Guard:
    """Holds while the origin is left alone: it should have no idle connection then, and one, the
    probe, until that has proved harmless."""

    __slots__ = ("_times", "is_wary", "until", "why")

    def __init__(self) -> None:
        self.until = -inf
        self.why = ""
        self.is_wary = False
        """There was harm, and no proof since that it is over."""
        self._times = 0

    def harmed(self, why: str, now: float) -> bool:
        """The origin was harmed, or said so. True if that is news: it was not left alone yet."""
        if now < self.until:
            return False
        if now - self.until > FORGIVEN:
            self._times = 0
        self.until = now + min(LEFT_ALONE * 2**self._times, LONGEST)
        self.why = why
        self.is_wary = True
        self._times += 1
        return True

    def is_probing(self, now: float) -> bool:
        """Left alone long enough, and not yet proved harmless."""
        return self.is_wary and now >= self.until

    def proved(self, now: float) -> bool:
        """A probe has done no harm. True if that ends the probing."""
        ended = self.is_probing(now)
        self.is_wary &= not ended
        return ended

    def allowed(self, wanted: int, now: float) -> int:
        """How many idle connections there may be of those that are wanted."""
        if not self.is_wary:
            return wanted
        return 0 if now < self.until else min(wanted, 1)
