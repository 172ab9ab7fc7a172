"""The last hour, in samples: what the charts show. Its memory is bounded, its time is told."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from warmproxy.observe import Outcome
from warmproxy.origin import Origin
from warmproxy.pool.registry import Registry

STEP = 10.0
"""Seconds from one sample to the next."""
KEPT = 360
"""Samples: an hour of them."""
POINTS = 60
"""That a chart has at the most."""

_FRESH, _USED, _FAILED = Outcome.FRESH, Outcome.USED, Outcome.FAILED


@dataclass(frozen=True, slots=True)
class Lately:
    """What a chart of all origins shows, oldest first: as many values in each."""

    seconds: float
    """from the first to now"""
    per_second: list[float]
    """connections asked for"""
    hits: list[int]
    misses: list[int]
    warm: list[int]
    """the fewest"""
    target: list[int]

    @property
    def hit_ratio(self) -> list[float | None]:
        """None where nothing was asked for."""
        pairs = zip(self.hits, self.misses, strict=True)
        return [hits / (hits + misses) if hits + misses else None for hits, misses in pairs]


class _Track:
    """What is remembered of one pool."""

    __slots__ = ("asked", "below_since", "failed", "hits", "warm")

    def __init__(self, warm: "array[int] | None") -> None:
        self.asked = self.hits = self.failed = 0
        self.below_since: float | None = None
        self.warm = warm


class History:
    """A ring of samples of all pools together, and of how many connections each of the configured
    ones had warm (2 bytes a sample)."""

    def __init__(self, now: float) -> None:
        self._taken = 0
        self._last = now
        self._seconds = array("d", bytes(8 * KEPT))
        self._asked, self._hits, self._failed, self._warm, self._target = (
            array("Q", bytes(8 * KEPT)) for _ in range(5)
        )
        self._tracks: dict[Origin, _Track] = {}
        self._due = 0.0

    def look(self, pools: Registry[Any, Any], now: float) -> None:
        """Take a sample where STEP is over since the last: asked about once a second."""
        if now < self._due:
            return
        self._due = now + STEP - 0.5  # half of what the caller's second may be late
        at = self._taken % KEPT
        asked = hits = failed = warm = target = 0
        for pool in pools:
            track = self._tracks.get(pool.origin)
            if track is None:
                known = pool.origin in pools.configured
                track = self._tracks[pool.origin] = _Track(
                    array("H", bytes(2 * KEPT)) if known else None
                )
            counts = pool.tally.acquires
            all_hits = counts[_FRESH] + counts[_USED]
            all_failed = counts[_FAILED]
            all_asked = sum(counts.values())
            if all_asked < track.asked:  # it was let go and came again
                track.asked = track.hits = track.failed = 0
            asked += all_asked - track.asked
            hits += all_hits - track.hits
            failed += all_failed - track.failed
            track.asked, track.hits, track.failed = all_asked, all_hits, all_failed
            idle, wanted = pool.idle, pool.target_idle(now)
            warm += idle
            target += wanted
            if idle >= wanted:
                track.below_since = None
            elif track.below_since is None:
                track.below_since = now
            if track.warm is not None:
                track.warm[at] = min(idle, 65535)
        if len(self._tracks) > len(pools):
            there = {pool.origin for pool in pools}
            self._tracks = {o: track for o, track in self._tracks.items() if o in there}
        self._seconds[at] = now - self._last
        self._asked[at], self._hits[at], self._failed[at] = asked, hits, failed
        self._warm[at], self._target[at] = warm, target
        self._last = now
        self._taken += 1

    def below_for(self, origin: Origin, now: float) -> float:
        """Seconds for which each sample had fewer warm connections than there should be."""
        track = self._tracks.get(origin)
        since = None if track is None else track.below_since
        return 0.0 if since is None else now - since

    def warm_of(self, origin: Origin) -> list[int]:
        """Warm connections of a configured origin, oldest first, the fewest where several samples
        are one point; no points where nothing is known."""
        track = self._tracks.get(origin)
        if track is None or track.warm is None:
            return []
        return [min(part) for part in self._parts(track.warm)]

    def lately(self) -> Lately:
        """All origins together."""
        seconds, asked, hits, failed = (
            [sum(part) for part in self._parts(ring)]
            for ring in (self._seconds, self._asked, self._hits, self._failed)
        )
        return Lately(
            seconds=sum(seconds),
            per_second=[round(a / s, 3) if s else 0.0 for a, s in zip(asked, seconds, strict=True)],
            hits=hits,
            misses=[a - h - f for a, h, f in zip(asked, hits, failed, strict=True)],
            warm=[min(part) for part in self._parts(self._warm)],
            target=[max(part) for part in self._parts(self._target)],
        )

    def _parts(self, ring: "array[Any]") -> list[Sequence[Any]]:
        """What the ring holds, oldest first, in POINTS parts or fewer. The newest is always whole:
        it is where the eye is."""
        at = self._taken % KEPT
        values = ring[at:] + ring[:at] if self._taken >= KEPT else ring[:at]
        size = -(-len(values) // POINTS) or 1
        first = len(values) % size
        cuts = sorted({0, *range(first, len(values) + 1, size)})
        return [values[a:b] for a, b in pairwise(cuts)]
