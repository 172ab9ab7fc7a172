"""Whether an origin's connections are primed: not where they do not survive it."""

from math import inf

IN_A_ROW = 3
"""Connections that did not survive, none that did between them: the origin is not primed then."""
LEFT_OUT = 600.0
"""Seconds until it is tried again, on one connection."""


class Priming:
    """Is told how each prime ended."""

    __slots__ = ("_lost", "not_before")

    def __init__(self) -> None:
        self._lost = 0
        self.not_before = -inf

    def wanted(self, now: float) -> bool:
        return now >= self.not_before

    def survived(self) -> None:
        self._lost = 0

    def lost(self, now: float) -> bool:
        """A connection did not survive. True if none is to be primed for a while now."""
        self._lost += 1
        if self._lost < IN_A_ROW or now < self.not_before:
            return False
        self.not_before = now + LEFT_OUT
        return True
