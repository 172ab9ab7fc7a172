"""What an origin's closes teach: how long it keeps a connection that nothing is sent on.

Real servers have different limits for a connection that never carried a request and for one that
did (Node 20: 82 s and 5 s; Apache 2.4: 52 s and 5 s; nginx 1.22: 60 s and 75 s), so each pool
keeps one `IdleLimit` for either. An idle limit shows in ages that agree; closes at random ages
(restarts, a balancer's whims) are no limit, and acting on the lowest of them would be churn.
"""

from collections import deque
from math import inf

REMEMBERED = 16
"""Closes that count."""
AGREEING = 3
"""Closes at about one age that make a limit."""
ALIKE_SHARE = 0.1
ALIKE_SECONDS = 0.25

SHORTEST = 0.5
"""Seconds: what lived shorter died of something else than an idle limit."""

PROBE_SHARE = 0.1
PROBE_SECONDS = 0.5
MARGIN_SHARE = 0.1
MARGIN_SECONDS = 0.5


class IdleLimit:
    """`seconds` is the idle age at which the upstream closes; inf while nothing is known."""

    __slots__ = ("_ages", "_hint", "seconds")

    def __init__(self) -> None:
        self._ages: deque[float] = deque(maxlen=REMEMBERED)
        self._hint = inf
        self.seconds = inf

    def closed(self, age: float, now: float) -> None:
        """The upstream closed a connection that had been idle for `age` seconds."""
        if age >= SHORTEST:
            self._ages.append(age)
            self.seconds = self._judge()

    def hinted(self, seconds: float) -> None:
        """The upstream said that it closes after so many idle seconds."""
        self._hint = seconds

    def survived(self, age: float) -> None:
        """A connection is still open after `age` idle seconds: shorter closes were no limit."""
        if self.seconds < age:
            self._ages = deque((max(a, age) for a in self._ages), maxlen=REMEMBERED)
            self.seconds = self._judge()

    @property
    def probe_at(self) -> float:
        """The idle age at which a connection left open on purpose disproves the limit."""
        return self.seconds * (1 + PROBE_SHARE) + PROBE_SECONDS

    def safe(self, rtt: float) -> float:
        """The idle age up to which a connection can be used without racing the close: the limit
        less the largest of 10 %, two round trips and 0.5 s."""
        limit = min(self.seconds, self._hint)
        if limit == inf:
            return inf
        return max(0.0, limit - max(limit * MARGIN_SHARE, 2 * rtt, MARGIN_SECONDS))

    def _judge(self) -> float:
        """The lowest age at which AGREEING closes came together."""
        ages = sorted(self._ages)
        for lowest, highest in zip(ages, ages[AGREEING - 1 :], strict=False):
            if highest <= lowest * (1 + ALIKE_SHARE) + ALIKE_SECONDS:
                return lowest
        return inf
