"""Which lines of a log are written at once, and which are told of later, as one with a count."""

from collections.abc import Hashable
from typing import Generic, TypeVar

L = TypeVar("L")

QUIET = 30.0
"""Seconds in which an event of one group is written a few times at the most."""
REMEMBERED = 4096
"""Groups: clients choose the names, so there is a cap."""


class _Group(Generic[L]):
    """The lines of one origin in one span of QUIET seconds."""

    __slots__ = ("left_out", "since", "written")

    def __init__(self, since: float) -> None:
        self.since = since
        self.written: dict[str, int] = {}
        self.left_out: dict[str, tuple[L, int]] = {}
        """event -> its last line, and how many there were; what came last is last"""

    def tell(self) -> list[tuple[L, int]]:
        """The lines for what was left out, which count as written."""
        told = list(self.left_out.values())
        for event in self.left_out:
            self.written[event] = self.written.get(event, 0) + 1
        self.left_out.clear()
        return told


class Repeats(Generic[L]):
    """Lines (`L`, opaque) of events, in groups: what is said of one origin is one.

    Nothing is lost in silence: what is left out is told, as its last line and how many there were,
    once QUIET is over, or before the next line of its group. So the order within a group is kept,
    and the last line about an origin that works is never one that says it fails.
    """

    def __init__(self) -> None:
        self._groups: dict[Hashable, _Group[L]] = {}
        """the one that began first is first"""

    def hear(
        self, key: Hashable, event: str, most: int, line: L, now: float
    ) -> list[tuple[L, int]]:
        """A line came, of which `most` are written at once: what is to be written now, as (line,
        how many were left out that it stands for; 0: only itself)."""
        told = self.due(now)
        group = self._groups.get(key)
        if group is None:
            if len(self._groups) >= REMEMBERED:
                told += self._groups.pop(next(iter(self._groups))).tell()
            group = self._groups[key] = _Group(now)
        if group.written.get(event, 0) < most:
            told += group.tell()
            group.written[event] = group.written.get(event, 0) + 1
            told.append((line, 0))
        else:
            _, count = group.left_out.pop(event, (line, 0))
            group.left_out[event] = (line, count + 1)
        return told

    def due(self, now: float) -> list[tuple[L, int]]:
        """What is to be told of by now: asked about once a second."""
        told: list[tuple[L, int]] = []
        while self._groups:
            key, group = next(iter(self._groups.items()))
            if now - group.since < QUIET:
                break
            del self._groups[key]
            if group.left_out:  # what is told now begins another span
                again = self._groups[key] = _Group(now)
                again.written = dict.fromkeys(group.left_out, 1)
                told += group.tell()
        return told

    def rest(self) -> list[tuple[L, int]]:
        """All that is still to be told, at the end."""
        told = [line for group in self._groups.values() for line in group.tell()]
        self._groups.clear()
        return told
