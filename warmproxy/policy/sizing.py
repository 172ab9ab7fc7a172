"""How many idle connections an origin should have now."""

from array import array
from bisect import bisect_left
from collections import deque
from math import inf, isqrt
from typing import Protocol


class Sizing(Protocol):
    """Answers `target_idle`; is told of each request, so that demand can move the answer."""

    def asked(self, now: float, active: int) -> None:
        """A request for the origin came while `active` others had a connection or waited."""

    def target_idle(self, now: float, active: int, dial: float, lives: float) -> int:
        """Idle connections there should be at `now`, while `active` requests have one or wait.

        `dial`: seconds that a dial takes, a high one of the recent (0: unknown). `lives`: seconds
        that a fresh idle connection can be held before it must be replaced (inf: unknown).
        """

    def changes_at(self, now: float) -> float:
        """When the answer may change with no further event (inf: never)."""


class Fixed:
    """Always the same: what an [[upstream]] table's `warm` says."""

    __slots__ = ("count",)

    def __init__(self, count: int) -> None:
        self.count = count

    def asked(self, now: float, active: int) -> None:
        pass

    def target_idle(self, now: float, active: int, dial: float, lives: float) -> int:
        return self.count

    def changes_at(self, now: float) -> float:
        return inf


class Learned:
    """0 until an origin was asked `requests` times within `window` seconds, then what `sizing`
    says, until it was quiet for `quiet` seconds. `requests` = 0 never warms.
    """

    __slots__ = ("_asked", "_last", "_warm", "quiet", "requests", "sizing", "window")

    def __init__(self, requests: int, window: float, quiet: float, sizing: Sizing) -> None:
        self.requests = requests
        self.window = window
        self.quiet = quiet
        self.sizing = sizing
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
        if self._warm and now - self._last >= self.quiet:
            self._warm = False
        return self.sizing.target_idle(now, active, dial, lives) if self._warm else 0

    def changes_at(self, now: float) -> float:
        if not self._warm:
            return inf
        return min(self._last + self.quiet, self.sizing.changes_at(now))


class Auto:
    """v2, research"""

    W = 900.0
    CHURN = 20.0
    N = 16
    IDLE = staticmethod(lambda r, l, p: min(r, l + isqrt(p)))
    SLACK = 1 / 3
    NEAR = 1.5
    STEPS = 4
    OPEN = 0.0

    def __init__(self, warm_min: int, warm_max: int, *, reuse: bool = True) -> None:
        self.warm_min = warm_min
        self.warm_max = warm_max
        self.reuse = reuse
        self._last = -inf
        self._turn_at = -inf
        self._peak = self._next_peak = 0
        self._rise = self._next_rise = 0
        self._low = [0] * (self.STEPS + 1)
        self._low_at = -inf
        self._dial = 0.0
        self._lives = inf
        self._grace = 1.0
        self._held = True
        self._until = inf
        self._gaps = array("d")

    def asked(self, now: float, active: int) -> None:
        gap = now - self._last
        self._last = now
        level = active + 1
        if gap >= self._grace and gap < inf:
            if not self._held and gap >= self.W:
                self._peak = self._rise = self._next_peak = self._next_rise = 0
            self._gaps.append(gap)
            if len(self._gaps) > self.N:
                del self._gaps[0]
        if not self._held or self._until == inf:
            self._until = now
        if now >= self._turn_at:
            self._turn_at = now + self.W
            self._peak, self._next_peak = self._next_peak, 0
            self._rise, self._next_rise = self._next_rise, 0
        if level > self._next_peak:
            self._next_peak = level
            if level > self._peak:
                self._peak = level
        low = self._low
        if now >= self._low_at:
            step = self._dial / self.STEPS
            new = active if self.reuse else 0
            if now >= self._low_at + self._dial:
                low[:] = [new] * len(low)
                self._low_at = now + step
            else:
                while now >= self._low_at:
                    low.append(new)
                    del low[0]
                    self._low_at += step
        if self.reuse:
            if active < low[-1]:
                low[-1] = active
            rise = level - min(low)
        else:
            low[-1] += 1
            rise = sum(low)
        if rise > self._next_rise:
            self._next_rise = rise
            if rise > self._rise:
                self._rise = rise

    def target_idle(self, now: float, active: int, dial: float, lives: float) -> int:
        self._dial = dial
        self._lives = lives
        if now >= self._until:
            self._judge(now)
        if not self._held:
            return self.warm_min
        idle = self._rise
        if self.reuse:
            idle = self.IDLE(idle, self._peak - active, self._peak)
        if idle < self.warm_min:
            idle = self.warm_min
        return idle if idle < self.warm_max else self.warm_max

    def changes_at(self, now: float) -> float:
        return self._until

    def _judge(self, now: float) -> None:
        self._held, self._until = True, self._last + self._grace
        if now < self._until:
            return
        for start, end in self._windows():
            if now < self._last + start:
                self._held, self._until = False, self._last + start
                return
            if now < self._last + end:
                self._until = self._last + end
                return
        self._held, self._until = False, inf

    FEW = 4
    LATE = 2.0
    def _windows(self):
        L = self._lives
        gaps = sorted(self._gaps)
        total = len(gaps)
        if total < self.FEW:
            yield 0.0, min(self.CHURN * L, self.W)
            return
        i = 0
        while i < total:
            a = gaps[i]
            j = i
            while j + 1 < total and gaps[j + 1] <= self.NEAR * gaps[j] + min(L, 10.0):
                j += 1
            b = gaps[j]
            w = min(L, 20) * self.SLACK + b / 2**total
            start, end = a - (b - a) - w - 2 * self._dial, b + self.LATE * (b - a) + w
            start = max(0.0, start)
            cost = sum(min(g, end) - start for g in gaps[i:])
            if cost <= self.CHURN * L * (j + 1 - i):
                yield start, end
            i = j + 1
