"""How many idle connections an origin should have now."""

from array import array
from collections import deque
from collections.abc import Iterator
from math import inf, isqrt
from typing import Protocol


class Sizing(Protocol):
    """Answers `target_idle`; is told of each request, so that demand can move the answer."""

    @property
    def most(self) -> int:
        """No answer is higher."""

    def asked(self, now: float, active: int) -> None:
        """A request for the origin came while `active` others had a connection or waited."""

    def target_idle(self, now: float, active: int, dial: float, lives: float) -> int:
        """Idle connections there should be at `now`, while `active` requests have one or wait.

        `dial`: seconds that a dial takes, a high one of the recent (0: unknown). `lives`: seconds
        that a fresh idle connection can be held before it must be replaced (inf: unknown).
        """

    def changes_at(self, now: float) -> float:
        """When the answer may change with no further event (inf: never)."""

    def inherit(self, other: "Sizing") -> None:
        """Go on from what another has seen, if it is of the same kind."""


class Fixed:
    """Always the same: what an [[upstream]] table's `warm` says."""

    __slots__ = ("count", "most")

    def __init__(self, count: int) -> None:
        self.count = self.most = count

    def asked(self, now: float, active: int) -> None:
        pass

    def target_idle(self, now: float, active: int, dial: float, lives: float) -> int:
        return self.count

    def changes_at(self, now: float) -> float:
        return inf

    def inherit(self, other: Sizing) -> None:
        pass


class Learned:
    """0 until an origin was asked `requests` times within `window` seconds, then what `sizing`
    says, until it was quiet for `quiet` seconds. `requests` = 0 never warms.
    """

    __slots__ = ("_asked", "_last", "_warm", "most", "quiet", "requests", "sizing", "window")

    def __init__(self, requests: int, window: float, quiet: float, sizing: Sizing) -> None:
        self.requests = requests
        self.window = window
        self.quiet = quiet
        self.sizing = sizing
        self.most = sizing.most
        self._asked: deque[float] = deque(maxlen=max(1, requests))
        self._last = -inf
        self._warm = False

    def asked(self, now: float, active: int) -> None:
        self.sizing.asked(now, active)
        self._last = now
        if self._warm or not self.requests:
            return
        self._asked.append(now)
        if len(self._asked) == self.requests and now - self._asked[0] <= self.window:
            self._warm = True
            self._asked.clear()

    def target_idle(self, now: float, active: int, dial: float, lives: float) -> int:
        # as changes_at says it: now - last may round to less than quiet in that very moment
        if self._warm and now >= self._last + self.quiet:
            self._warm = False
        return self.sizing.target_idle(now, active, dial, lives) if self._warm else 0

    def changes_at(self, now: float) -> float:
        if not self._warm:
            return inf
        return min(self._last + self.quiet, self.sizing.changes_at(now))

    def inherit(self, other: Sizing) -> None:
        if isinstance(other, Learned) and self.requests:
            self._asked.extend(other._asked)
            self._last, self._warm = other._last, other._warm
            self.sizing.inherit(other.sizing)


PERIOD = 900.0
"""Seconds for which a demand that was seen is provided for; it is forgotten after as many more."""
PAUSE = 1.0
"""Seconds without a request that are worth remembering: shorter ones are part of a burst."""
PAUSES = 16
"""That are remembered."""
FEW = 4
"""Pauses that tell nothing yet about the next one."""
CHURN = 20.0
"""Dials that a hit may cost: idle connections are held no longer where it would be more."""
ALIKE = 1.5
"""Factor between two pauses, in order of length, that are of one kind (and so are they where they
differ by less than a connection lives)."""
LONGEST_SLACK = 20.0
SLACK = 1 / 3
"""Of the life of a connection, up to LONGEST_SLACK seconds: how much sooner or later than ever
before a request may come and still be expected."""
STEPS = 2
"""Into which the time of a dial is cut, to know the lowest demand within it."""


class Auto:
    """As many as the requests of late would have needed, between `warm_min` and `warm_max`.

    * How many: the steepest rise of demand within the time of a dial, since what comes later can be
      dialled for; but no more than is missing from the highest demand, and its square root beside,
      for chance. Both are those of the current and the last PERIOD.
    * How long: while requests are to be expected. After a pause of a second it is by the pauses of
      late: they fall into kinds (a rhythm, the night), each kind is a window in which the next
      request may come, and connections are held in these windows only. A window that would cost
      more than CHURN dials for each of its hits, because connections live for so short a time, is
      none. Until a few pauses are known, they are held for as long as CHURN allows.

    `reuse`: connections come back and serve again; those of tunnels do not.
    """

    __slots__ = (
        "_dial",
        "_held",
        "_judge_at",
        "_last",
        "_lives",
        "_low",
        "_next_peak",
        "_next_rise",
        "_pauses",
        "_peak",
        "_period_ends",
        "_rise",
        "_step_ends",
        "most",
        "reuse",
        "warm_max",
        "warm_min",
    )

    def __init__(self, warm_min: int, warm_max: int, *, reuse: bool = True) -> None:
        self.warm_min = warm_min
        self.warm_max = warm_max
        self.most = max(warm_min, warm_max)
        self.reuse = reuse
        self._last = -inf
        """When the last request came."""
        self._dial = 0.0
        self._lives = inf
        self._peak = self._next_peak = 0
        """The highest demand: of this period or the last, and of this one alone."""
        self._rise = self._next_rise = 0
        """The same of the steepest rise."""
        self._period_ends = -inf
        self._low = [0] * (STEPS + 1)
        """The lowest demand of each step of late; of tunnels how many began in it."""
        self._step_ends = -inf
        self._pauses = array("d")
        self._held = True
        self._judge_at = inf

    def asked(self, now: float, active: int) -> None:
        pause, self._last = now - self._last, now
        if PAUSE <= pause < inf:
            if not self._held and pause >= PERIOD:
                self._peak = self._rise = self._next_peak = self._next_rise = 0
            self._pauses.append(pause)
            if len(self._pauses) > PAUSES:
                del self._pauses[0]
        if not self._held or self._judge_at == inf:
            self._judge_at = now
        if now >= self._period_ends:
            self._period_ends = now + PERIOD
            self._peak, self._next_peak = self._next_peak, 0
            self._rise, self._next_rise = self._next_rise, 0
        demand = active + 1
        if demand > self._next_peak:
            self._next_peak = demand
            self._peak = max(self._peak, demand)
        self._follow(now, active)
        # of tunnels the sum can be more than any of the demands
        if demand > self._next_rise or not self.reuse:
            rise = self._risen(active)
            if rise > self._next_rise:
                self._next_rise = rise
                self._rise = max(self._rise, rise)

    def target_idle(self, now: float, active: int, dial: float, lives: float) -> int:
        self._dial = dial
        self._lives = lives
        if now >= self._judge_at:
            self._judge(now)
        if not self._held:
            return self.warm_min
        idle = self._rise
        if self.reuse:
            idle = min(idle, self._peak - active + isqrt(self._peak))
        return max(self.warm_min, min(idle, self.warm_max))

    def changes_at(self, now: float) -> float:
        return self._judge_at

    def inherit(self, other: Sizing) -> None:
        if isinstance(other, Auto) and other.reuse == self.reuse:
            for name in self.__slots__:
                if name not in ("most", "reuse", "warm_max", "warm_min"):
                    setattr(self, name, getattr(other, name))

    def _follow(self, now: float, active: int) -> None:
        """Keep the lowest demand of each step."""
        low = self._low
        if now >= self._step_ends:
            begins_with = active if self.reuse else 0
            if now >= self._step_ends + self._dial:
                low[:] = [begins_with] * len(low)
                self._step_ends = now + self._dial / STEPS
            else:
                while now >= self._step_ends:
                    low.append(begins_with)
                    del low[0]
                    self._step_ends += self._dial / STEPS
        if not self.reuse:
            low[-1] += 1
        elif active < low[-1]:
            low[-1] = active

    def _risen(self, active: int) -> int:
        """By how much demand has risen within the time of a dial, with the request that comes."""
        return active + 1 - min(self._low) if self.reuse else sum(self._low)

    def _judge(self, now: float) -> None:
        """Whether to hold, and until when that holds."""
        self._held, self._judge_at = True, self._last + PAUSE
        if now < self._judge_at:
            return
        for begins, ends in self._windows():
            self._held = now >= self._last + begins
            self._judge_at = self._last + (ends if self._held else begins)
            if now < self._judge_at:
                return
        self._held, self._judge_at = False, inf

    def _windows(self) -> Iterator[tuple[float, float]]:
        """Between which seconds after the last request the next one may come, in order."""
        pauses = sorted(self._pauses)
        if len(pauses) < FEW:
            yield 0.0, min(CHURN * self._lives, PERIOD)
            return
        near = min(self._lives, LONGEST_SLACK / 2)
        slack = min(self._lives, LONGEST_SLACK) * SLACK
        first = 0
        while first < len(pauses):
            last = first
            while last + 1 < len(pauses) and pauses[last + 1] <= ALIKE * pauses[last] + near:
                last += 1
            width = pauses[last] - pauses[first]
            # the fewer are known, the less they say about the longest there can be
            more = slack + pauses[last] / 2 ** len(pauses)
            begins = max(0.0, pauses[first] - width - more - 2 * self._dial)
            ends = pauses[last] + 2 * width + more
            held = sum(min(pause, ends) - begins for pause in pauses[first:])
            if held <= CHURN * self._lives * (last - first + 1):
                yield begins, ends
            first = last + 1
