"""How many idle connections an origin should have now."""

from collections import deque
from math import inf
from typing import Protocol


class Sizing(Protocol):
    """Answers `target_idle`; is told of each request, so that demand can move the answer."""

    def asked(self, now: float, active: int) -> None:
        """A request for the origin came while `active` connections were in use."""

    def target_idle(self, now: float, active: int, dial: float, lives: float) -> int:
        """Idle connections there should be at `now`, beside `active` ones in use.

        `dial`: seconds that a dial takes (0: not known). `lives`: seconds that an idle connection
        can be held before it has to be replaced (inf: not known).
        """

    def changes_at(self, now: float) -> float:
        """When the answer may change with no further request (inf: never)."""


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
    """0 until an origin was asked `requests` times within `window` seconds, then `count`, until
    it was quiet for `quiet` seconds. `requests` = 0 never warms.
    """

    __slots__ = ("_asked", "_last", "_warm", "count", "quiet", "requests", "window")

    def __init__(self, requests: int, window: float, count: int, quiet: float) -> None:
        self.requests = requests
        self.window = window
        self.count = count
        self.quiet = quiet
        self._asked: deque[float] = deque(maxlen=max(1, requests))
        self._last = -inf
        self._warm = False

    def asked(self, now: float, active: int) -> None:
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
        return self.count if self._warm else 0

    def changes_at(self, now: float) -> float:
        return self._last + self.quiet if self._warm else inf
