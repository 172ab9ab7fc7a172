"""What an origin's closes teach: how long it keeps a connection that nothing is sent on.

Real servers have different limits for a connection that never carried a request and for one that
did (Node 20: 82 s and 5 s; Apache 2.4: 52 s and 5 s; nginx 1.22: 60 s and 75 s), so each pool
keeps one `IdleLimit` for either.

The rule: a limit is where the last closes crowd, and it is the lowest of these ages; closes at
ages that do not crowd (a balancer's whims) are no limit, and acting on the lowest of them would be
churn. Closes at one moment are one observation, whatever their number (a server that restarts ends
all at once), and so is a canary, a connection that is left open beyond the limit: of the age at
which it was closed, or let go. One observation changes little; three in a row that are all below
the crowd, or all above it, say that the limit has changed, and what came before is forgotten.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from math import inf

REMEMBERED = 32
"""Observations that count."""
SHORTEST = 0.5
"""Seconds: what lived shorter died of something else than an idle limit."""
ONE_MOMENT = 0.5
"""Seconds from the first close of an observation to its last."""

# A crowd is three quarters of all within a factor of two (a limit with uniform jitter of +-30 % is
# within 1.86; of closes at random moments of a minute half would be), or fewer within a tenth: two
# and a quarter of all (of those at random moments a tenth would be).
SPREAD = 2.0
SPREAD_SHARE = 0.75
SPREAD_LEAST = 12
"""Observations before a limit so blurred is believed; while one is known, IN_A_ROW do."""
SHARP = 1.1
SHARP_SECONDS = 0.25
SHARP_LEAST = 2.0
SHARP_SHARE = 0.25

IN_A_ROW = 3
"""Observations on one side of the crowd that make a change."""
ACCIDENT = 28
"""From so many in a crowd on its lowest one is taken for an accident; the next is the limit."""

PROBE = 4.0
"""Times the limit: so old a canary has seen enough. Only where the limit rose is any as old."""

UNPROVEN = 45.0
"""Seconds that connections are trusted for while no limit is known and none was seen to live longer.
The first minute shows the short limits; of the usual ones beyond it HAProxy's 50 s is the lowest."""

MARGIN_SHARE = 0.1
MARGIN_SECONDS = 0.5
MARGIN_SHORT = 1 / 3
"""Of a limit under 1.5 s, where 0.5 s would leave nothing."""
MARGIN_SPREAD = 0.25
"""Of the crowd's width: the lowest age that was seen is not the lowest there can be."""

LONGEST_HINT = 1e6


@dataclass(frozen=True, slots=True)
class Known:
    """What is kept of a limit over a restart: the ages in seconds between which closes crowd."""

    lowest: float
    highest: float


class IdleLimit:
    """The idle limit of one origin's fresh or used connections. Ages and moments are seconds."""

    __slots__ = ("_ages", "_event_ends", "_hint", "_is_first", "_proven", "known")

    def __init__(self) -> None:
        self._ages: deque[float] = deque(maxlen=REMEMBERED)
        self._event_ends = -inf
        self._is_first = False
        self._hint = inf
        self._proven = 0.0
        self.known: Known | None = None
        """The crowd, if there is one."""

    # ── facts ────────────────────────────────────────────────────────────────────────────────

    def closed(self, age: float, now: float) -> None:
        """The upstream closed a connection that had been idle for `age` seconds.

        A pool that was opened at one moment is closed at one moment: the first time, while nothing
        else is known, its closes at about one age count each, so that the second time comes late.
        """
        if age < SHORTEST:
            return
        if now >= self._event_ends:
            self._event_ends = now + ONE_MOMENT
            self._is_first = not self._ages
        elif not self._is_first or self.known is not None or not _agree(age, self._ages[0]):
            return
        self._observe(age)

    def survived(self, age: float) -> None:
        """A canary was let go `age` seconds old, and still open."""
        if self.known is not None and age > _above(self.known.highest):
            self._observe(age)

    def proved(self, age: float) -> None:
        """A connection that is left open on purpose has lived for `age` seconds so far."""
        self._proven = max(self._proven, age)

    def hinted(self, seconds: float | None) -> None:
        """The upstream says (`Keep-Alive: timeout=`) how long it keeps a connection; None: it
        says so no more. Nothing (0) and weeks are no limits but slips, and count as not said."""
        self._hint = seconds if seconds and seconds < LONGEST_HINT else inf

    def recall(self, known: Known) -> None:
        """What an earlier run knew; closes and canaries revise it like what this one has seen."""
        self._believe((known.lowest, known.highest))
        self._judge()

    # ── what follows ─────────────────────────────────────────────────────────────────────────

    @property
    def seconds(self) -> float:
        """The idle age at which the upstream closes, inf while nothing is known."""
        return min(self._hint, self.known.lowest if self.known else inf)

    @property
    def is_unknown(self) -> bool:
        """Neither learned nor said."""
        return self.known is None and self._hint == inf

    @property
    def trusted(self) -> float:
        """While it is unknown, the idle age up to which connections can be held side by side: what
        was opened together would be closed together, so one goes ahead of the others."""
        seen = min(self._proven, min(self._ages, default=inf))
        return max(UNPROVEN, _less_margin(seen, 0.0))

    @property
    def probe_at(self) -> float:
        """The idle age up to which a connection is left open on purpose, to see whether the limit
        holds; inf where there is nothing to be seen: not known, or the hint is lower."""
        if self.known is None or self._hint < self.known.lowest:
            return inf
        return self.known.lowest * PROBE

    def safe(self, rtt: float) -> float:
        """The idle age up to which a connection can be used without racing the close.

        That is the limit less the largest of 10 %, two round trips of `rtt` and 0.5 s (a third of
        a limit under 1.5 s), and less a quarter of the range in which closes crowd.
        """
        safe = _less_margin(self._hint, rtt)
        if self.known is not None:
            width = self.known.highest - self.known.lowest
            safe = min(safe, _less_margin(self.known.lowest, rtt) - width * MARGIN_SPREAD)
        return max(0.0, safe)

    # ── inside ───────────────────────────────────────────────────────────────────────────────

    def _observe(self, age: float) -> None:
        self._ages.append(age)
        ages = list(self._ages)
        before, latest = self._crowd(ages[:-IN_A_ROW]), sorted(ages[-IN_A_ROW:])
        if before and latest[-1] <= latest[0] * SPREAD:
            rose, fell = latest[0] > _above(before[-1]), _above(latest[-1]) < before[0]
            if rose or fell:
                self._believe(latest)
        self._judge()

    def _believe(self, ages: Sequence[float]) -> None:
        """These, and nothing before them: as if seen so often that no two can shake it."""
        self._ages.clear()
        self._ages.extend(islice(cycle(ages), SPREAD_LEAST))

    def _judge(self) -> None:
        crowd = self._crowd(self._ages)
        self.known = Known(crowd[len(crowd) >= ACCIDENT], crowd[-1]) if crowd else None

    def _crowd(self, ages: Iterable[float]) -> Sequence[float]:
        """Those of the ages that crowd, sorted; none where none do."""
        ages = sorted(ages)
        count = len(ages)
        blurred: Sequence[float] = ()
        if count >= (IN_A_ROW if self.known else SPREAD_LEAST):
            blurred = _lowest_run(ages, SPREAD, 0.0, count * SPREAD_SHARE)
        return blurred or _lowest_run(ages, SHARP, SHARP_SECONDS, SHARP_LEAST + count * SHARP_SHARE)


def _lowest_run(ages: Sequence[float], factor: float, more: float, least: float) -> Sequence[float]:
    """Of the sorted ages the lowest run from some age to that times `factor` plus `more` that
    has at least `least` of them."""
    for i, age in enumerate(ages):
        end = bisect_right(ages, age * factor + more)
        if end - i >= least:
            return ages[i:end]
    return ()


def _agree(age: float, other: float) -> bool:
    return max(age, other) <= _above(min(age, other))


def _above(age: float) -> float:
    """Beyond this an age is no longer about that."""
    return age * SHARP + SHARP_SECONDS


def _less_margin(limit: float, rtt: float) -> float:
    """Goes for inf too."""
    if limit == inf:
        return inf
    return limit - max(limit * MARGIN_SHARE, 2 * rtt, min(MARGIN_SECONDS, limit * MARGIN_SHORT))
