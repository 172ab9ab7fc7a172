"""When warm connections do an origin harm, it is left alone for a while."""

from math import inf

LEFT_ALONE = 600.0
"""Seconds after the first harm; doubled each time, up to LONGEST."""
LONGEST = 6 * 3600.0
FORGIVEN = 24 * 3600.0
"""Seconds without harm after which the next one counts as the first."""


class Guard:
    """Holds while the origin is left alone: it should have no idle connection then."""

    __slots__ = ("_times", "until", "why")

    def __init__(self) -> None:
        self.until = -inf
        self.why = ""
        self._times = 0

    def harmed(self, why: str, now: float) -> bool:
        """The origin was harmed, or said so. True if that is news: it was not left alone yet."""
        if now < self.until:
            return False
        if now - self.until > FORGIVEN:
            self._times = 0
        self.until = now + min(LEFT_ALONE * 2**self._times, LONGEST)
        self.why = why
        self._times += 1
        return True
