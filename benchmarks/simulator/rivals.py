"""Who else could size a pool: by a ratio of what is going on, as HikariCP does, by foresight."""

from collections import deque
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from math import ceil, inf

from simulator.world import Limits, Outcome
from warmproxy.observe import CloseReason
from warmproxy.policy.retry import Prefer
from warmproxy.pool.origin_pool import Plan

HOUSEKEEPING = 30.0
IDLE_TIMEOUT = 600.0
MAX_LIFETIME = 1800.0
"""Seconds: HikariCP's defaults."""


class Ratio:
    """Envoy's preconnect_policy: for each request that is going on or waits, `ratio` connections
    (1 to 3), idle ones and dials included. Nothing without traffic."""

    def __init__(self, ratio: float) -> None:
        self.ratio = ratio

    def asked(self, now: float, active: int) -> None:
        pass

    def target_idle(self, now: float, active: int, dial: float, lives: float) -> int:
        return ceil(active * self.ratio - 1e-9) - active

    def changes_at(self, now: float) -> float:
        return inf


class Hikari:
    """HikariCP's rules. `minimum` idle and `maximum` connections, opened at the start; a borrow
    that finds none idle has one added, and whenever one is added, so are those that are missing.
    Every 30 s what is idle for 10 minutes goes (if minimum < maximum), and what is missing is
    added. A connection ends after 30 minutes less up to 2.5 %. That an upstream has closed is
    found out when the connection is to be used: then the next one is taken, and what is missing
    is added.
    """

    def __init__(self, minimum: int, maximum: int, rng: Callable[[], float]) -> None:
        self.minimum = minimum
        self.maximum = maximum
        self._rng = rng
        self._idle: dict[int, float] = {}
        """Connection -> idle since, in the order in which they are looked through."""
        self._ends: dict[int, float] = {}
        """When each of all connections has lived long enough."""
        self._dead: set[int] = set()
        self._waiting: deque[int] = deque()
        self._dialling = 0
        self._adding = True
        """Connections are being added, until there are as many as should be."""
        self._next = HOUSEKEEPING

    def acquire(self, waiter: int, prefer: Prefer, now: float, alive) -> int | None:
        for conn in list(self._idle):
            if conn in self._dead:
                self._forget(conn)
                self._adding = True
                continue
            del self._idle[conn]
            return conn
        self._waiting.append(waiter)
        self._adding = True
        return None

    def release(self, conn: int, now: float) -> int | None:
        return self._offer(conn, now)

    def closed(self, conn: int, reason: CloseReason, now: float) -> None:
        if conn in self._idle:
            self._dead.add(conn)
        else:
            del self._ends[conn]
            self._adding = True

    def evict(self, conn: int, reason: CloseReason, now: float) -> bool:
        dead = conn in self._dead
        self._forget(conn)
        return not dead

    def dial_started(self, now: float) -> None:
        self._dialling += 1

    def dial_succeeded(self, conn: int, cost: float, now: float) -> int | None:
        self._dialling -= 1
        self._ends[conn] = now + MAX_LIFETIME * (1 - 0.025 * self._rng())
        return self._offer(conn, now)

    def plan(self, now: float) -> Plan[int]:
        old = [c for c in self._idle if self._ends[c] <= now]
        if now >= self._next:
            self._next = now + HOUSEKEEPING
            self._adding = True
            if self.minimum < self.maximum:
                surplus = len(self._idle) - self.minimum
                stale = [c for c, since in self._idle.items() if now - since >= IDLE_TIMEOUT]
                old = list(dict.fromkeys(old + stale[: max(0, surplus)]))
        if old:
            self._adding = True
            return Plan(0, tuple((c, CloseReason.MAX_AGE) for c in old), now)
        room = self.maximum - len(self._ends) - self._dialling
        missing = max(self.minimum - len(self._idle), 0) + len(self._waiting) - self._dialling
        dials = max(0, min(missing, room)) if self._adding else 0
        if not self._waiting and len(self._idle) + self._dialling + dials >= self.minimum:
            self._adding = False
        ends = min((self._ends[c] for c in self._idle), default=inf)
        return Plan(dials, (), min(self._next, ends))

    def settled_until(self, now: float) -> float:
        return now if self._adding else self._next

    def _offer(self, conn: int, now: float) -> int | None:
        if self._waiting:
            return self._waiting.popleft()
        self._idle[conn] = now
        return None

    def _forget(self, conn: int) -> None:
        del self._idle[conn], self._ends[conn]
        self._dead.discard(conn)


def oracle(
    requests: Sequence[tuple[float, float]],
    limits: Limits,
    dial: float,
    cap: Callable[[float], int],
    *,
    tunnels: bool,
    since: float = 0.0,
) -> Outcome:
    """What can be reached by one who knows the future: every request that may be a hit is one.

    A connection that has come back and is not closed yet serves the next request. Else one is
    dialled so that it is ready in the moment it is needed, unless `cap(now)` of them are under way
    then. `cap` is asked once for each request, in order.
    """
    outcome = Outcome()
    leases: list[float] = []
    back: list[float] = []
    in_time: deque[float] = deque()
    for at, held in requests:
        allowed = cap(at)
        while leases and leases[0] <= at:
            back.append(heappop(leases))
        while in_time and in_time[0] <= at - dial:
            in_time.popleft()
        wait, idle = 0.0, 0.0
        if back and at - back[-1] < limits.used:
            idle = at - back.pop()
        elif at >= dial and len(in_time) < allowed:
            in_time.append(at)
        else:
            wait = dial
        if at >= since:
            outcome.requests += 1
            outcome.hits += not wait
            outcome.idle_seconds += idle
            outcome.dials += not idle
            if wait:
                outcome.waits.append(wait)
        if not tunnels:
            heappush(leases, at + wait + held)
    return outcome
