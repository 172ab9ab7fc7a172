"""How many idle connections an origin should have now."""

from array import array
from collections import deque
from math import inf
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
    """v1, research"""

    W = 900.0
    SHORT = 10.0
    GRACE = 1.0
    CHURN = 20.0
    N = 16
    SPARE = 1

    def __init__(self, warm_min: int, warm_max: int, *, reuse: bool = True) -> None:
        self.warm_min = warm_min
        self.warm_max = warm_max
        self.reuse = reuse
        self._last = -inf
        self._turn_at = -inf
        self._peak = self._next_peak = 0
        self._rise = self._next_rise = 0
        self._low = self._low_before = 0
        self._low_at = -inf
        self._dial = 0.0
        self._lives = inf
        self._grace = self.W
        self._held = True
        self._until = -inf
        self._gaps = array("d")

    def asked(self, now: float, active: int) -> None:
        gap = now - self._last
        self._last = now
        level = active + 1
        if gap >= self._grace:
            if gap < inf:
                self._gaps.append(gap)
                if len(self._gaps) > self.N:
                    del self._gaps[0]
        if not self._held:
            self._until = now
        if now >= self._turn_at:
            late = now >= self._turn_at + self.W
            self._turn_at = now + self.W
            self._peak, self._next_peak = self._next_peak, 0
            self._rise, self._next_rise = self._next_rise, 0
            if late and self._held:
                self._peak = self._rise = 0
        if level > self._next_peak:
            self._next_peak = level
            if level > self._peak:
                self._peak = level
        if self.reuse:
            if now >= self._low_at:
                if now >= self._low_at + self._dial:
                    self._low_before = active
                else:
                    self._low_before = self._low
                self._low = active
                self._low_at = now + self._dial
            elif active < self._low:
                self._low = active
            rise = level - min(self._low, self._low_before)
        else:
            if now >= self._low_at:
                self._low_before = 0 if now >= self._low_at + self._dial else self._low
                self._low = 0
                self._low_at = now + self._dial
            self._low += 1
            rise = self._low + self._low_before
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
        if self.reuse and self._peak - active < idle:
            idle = self._peak - active
        if idle < self.SPARE and self._last > -inf:
            idle = self.SPARE
        if idle < self.warm_min:
            idle = self.warm_min
        return idle if idle < self.warm_max else self.warm_max

    def changes_at(self, now: float) -> float:
        return self._until

    def _judge(self, now: float) -> None:
        self._grace = self.GRACE if self._lives < self.SHORT else self.W
        quiet = now - self._last
        if quiet < self._grace or self._last == -inf:
            self._held = True
            self._until = self._last + self._grace if self._last > -inf else inf
            return
        gaps = sorted(g for g in self._gaps if g > quiet)
        L = self._lives
        n = len(gaps)
        total = len(self._gaps)
        # clusters
        if not total:
            end = self.CHURN * L if L < self.SHORT else self.W
            self._held = quiet < end
            self._until = self._last + end if self._held else inf
            return
        allg = sorted(self._gaps)
        clusters = []
        first = prev = allg[0]
        k = 1
        for g in allg[1:]:
            if g > 1.5 * prev + min(L, self.SHORT):
                clusters.append((first, prev, k))
                first, k = g, 0
            prev = g
            k += 1
        clusters.append((first, prev, k))
        for a, b, k in clusters:
            w = b - a + min(L, 2 * self.SHORT) / 3 + b / total**2
            start, end = a - w - 2 * self._dial, b + w
            if end <= quiet:
                continue
            left = [g for g in allg if g >= a]
            cost = sum(min(g, end) - max(0, start) for g in left)
            if L < self.SHORT and cost > self.CHURN * L * k:
                continue
            if quiet < start:
                self._held = False
                self._until = self._last + start
            else:
                self._held = True
                self._until = self._last + end
            return
        self._held = False
        self._until = inf
