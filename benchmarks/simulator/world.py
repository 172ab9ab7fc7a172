"""One origin's pool in a world of numbers: requests, dials and an upstream that closes.

The pool is the project's own, or a rival with the same manners. Connections and waiters are ints;
time is a heap of events. The world does to the pool what net/housekeeper.py does, in its order:
facts first, then one plan per turn if anything may have changed, one timer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import inf
from random import Random
from typing import Protocol

from warmproxy.observe import CloseReason
from warmproxy.policy.retry import Prefer
from warmproxy.pool.origin_pool import Plan

LATE = 0.02
"""Share by which an upstream closes later than its limit says, at most: its timers are coarse."""
SLOW = 0.2
"""Share by which a dial takes longer than the least, at most."""


class Pool(Protocol):
    """What the world needs of an OriginPool."""

    def acquire(self, waiter: int, prefer: Prefer, now: float, alive) -> int | None: ...
    def release(self, conn: int, now: float) -> int | None: ...
    def closed(self, conn: int, reason: CloseReason, now: float) -> None: ...
    def evict(self, conn: int, reason: CloseReason, now: float) -> bool: ...
    def dial_started(self, now: float) -> None: ...
    def dial_succeeded(self, conn: int, cost: float, now: float) -> int | None: ...
    def plan(self, now: float) -> Plan[int]: ...
    def settled_until(self, now: float) -> float: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """Idle seconds after which an upstream closes: a connection that never carried a request, and
    one that did."""

    name: str
    fresh: float
    used: float


@dataclass(slots=True)
class Outcome:
    """What a run came to; several are added up."""

    requests: int = 0
    hits: int = 0
    idle_seconds: float = 0.0
    """Connections that stood open and carried nothing, times seconds."""
    dials: int = 0
    waits: list[float] = field(default_factory=list)
    """Of those that were no hits."""

    def add(self, other: "Outcome") -> None:
        self.requests += other.requests
        self.hits += other.hits
        self.idle_seconds += other.idle_seconds
        self.dials += other.dials
        self.waits += other.waits

    @property
    def hit_ratio(self) -> float:
        return self.hits / self.requests

    @property
    def p99_wait(self) -> float:
        """Nearest rank; hits wait 0 seconds."""
        rank = self.requests - int(self.requests * 0.01)  # of the slowest per cent, the fastest
        hits = self.requests - len(self.waits)
        return 0.0 if rank <= hits else sorted(self.waits)[rank - hits - 1]


_RELEASE, _CLOSE, _DIALLED, _WAKE = range(4)


class World:
    """Runs one pool through one origin's requests."""

    def __init__(
        self, pool: Pool, limits: Limits, dial: float, rng: Random, *, tunnels: bool = False
    ) -> None:
        self.pool = pool
        self.outcome = Outcome()
        self._limits = limits
        self._dial = dial
        self._rng = rng
        self._tunnels = tunnels
        self._prefer = Prefer.FRESH_ONLY if tunnels else Prefer.USED
        self._events: list[tuple[float, int, int, int]] = []
        self._count = 0
        self._idle = 0
        self._since = 0.0
        self._idle_since = 0.0
        self._closes: dict[int, float] = {}
        """When the upstream closes, of each connection that is idle; inf for never."""
        self._waiting: dict[int, tuple[float, float]] = {}
        """Since when, and for how long it will keep its connection."""
        self._wake_at = inf

    def run(
        self, requests: Sequence[tuple[float, float]], seconds: float, since: float = 0.0
    ) -> Outcome:
        """From time 0, at which the pool is empty, until `seconds`; counted from `since` on."""
        self._idle_since = self._since = since
        self._carry_out(0.0)
        events = self._events
        coming = iter(requests)
        at, held = next(coming, (inf, 0.0))
        while True:
            if events and events[0][0] <= at:
                now, _, kind, what = heappop(events)
                if now > seconds:
                    break
                if kind == _RELEASE:
                    self._release(what, now)
                elif kind == _CLOSE:
                    if self._closes.get(what) == now:
                        self._not_idle(what, now)
                        self.pool.closed(what, CloseReason.UPSTREAM_EOF, now)
                        self._carry_out(now)
                elif kind == _DIALLED:
                    self._dialled(what, now)
                elif now == self._wake_at:
                    self._wake_at = inf
                    self._carry_out(now)
            elif at <= seconds:
                self._request(at, held)
                at, held = next(coming, (inf, 0.0))
            else:
                break
        self._account(seconds)
        return self.outcome

    def _request(self, now: float, held: float) -> None:
        self._count += 1
        counts = now >= self._since
        self.outcome.requests += counts
        conn = self.pool.acquire(self._count, self._prefer, now, _alive)
        if conn is None:
            self._waiting[self._count] = (now, held)
        else:
            self.outcome.hits += counts
            self._lease(conn, held, now)
        self._carry_out_if_needed(now)

    def _lease(self, conn: int, held: float, now: float) -> None:
        if conn in self._closes:
            self._not_idle(conn, now)
        self._at(now + held, _RELEASE, conn)

    def _release(self, conn: int, now: float) -> None:
        if self._tunnels:
            self.pool.closed(conn, CloseReason.NOT_REUSABLE, now)
            self._carry_out(now)
        else:
            self._offered(conn, self.pool.release(conn, now), self._limits.used, now)
            self._carry_out_if_needed(now)

    def _dialled(self, cost_ns: int, now: float) -> None:
        self._count += 1
        conn = self._count
        self.outcome.dials += now >= self._since
        waiter = self.pool.dial_succeeded(conn, cost_ns / 1e9, now)
        self._offered(conn, waiter, self._limits.fresh, now)
        self._carry_out(now)

    def _offered(self, conn: int, waiter: int | None, limit: float, now: float) -> None:
        """The pool was given a connection: it has passed it on, or it is idle."""
        if waiter is not None:
            since, held = self._waiting.pop(waiter)
            if since >= self._since:
                self.outcome.waits.append(now - since)
            self._lease(conn, held, now)
            return
        self._account(now)
        self._idle += 1
        closes_at = now + limit * (1 + LATE * self._rng.random())
        self._closes[conn] = closes_at
        if closes_at < inf:
            self._at(closes_at, _CLOSE, conn)

    def _not_idle(self, conn: int, now: float) -> None:
        self._account(now)
        self._idle -= 1
        del self._closes[conn]

    def _account(self, now: float) -> None:
        if now > self._idle_since:
            self.outcome.idle_seconds += self._idle * (now - self._idle_since)
            self._idle_since = now

    def _carry_out_if_needed(self, now: float) -> None:
        settled_until = self.pool.settled_until(now)
        if settled_until <= now or settled_until < self._wake_at:
            self._carry_out(now)

    def _carry_out(self, now: float) -> None:
        while True:
            plan = self.pool.plan(now)
            for conn, reason in plan.evict:
                if self.pool.evict(conn, reason, now):
                    self._not_idle(conn, now)
            for _ in range(plan.dials):
                self.pool.dial_started(now)
                cost = self._dial * (1 + SLOW * self._rng.random())
                self._at(now + cost, _DIALLED, int(cost * 1e9))
            if plan.wake_at < self._wake_at:
                self._wake_at = max(now, plan.wake_at)
                self._at(self._wake_at, _WAKE, 0)
            if not plan.evict:
                return

    def _at(self, when: float, kind: int, what: int) -> None:
        self._count += 1
        heappush(self._events, (when, self._count, kind, what))


def _alive(conn: int) -> None:
    """The upstream's closes are heard when they happen: what is idle lives."""
