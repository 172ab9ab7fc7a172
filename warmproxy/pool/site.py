"""The pools of one host and port: connections of every scheme wait for the same workers there."""

from typing import Generic, TypeVar

from warmproxy.policy.trial import OVERDUE, Trial
from warmproxy.pool.origin_pool import OriginPool

C = TypeVar("C")
W = TypeVar("W")

APART = 0.05
"""Seconds between two connections whose order at the upstream is sure."""


class Site(Generic[C, W]):
    """Finds out whether idle connections keep the others from being answered (policy/trial.py)."""

    def __init__(self) -> None:
        self.pools: list[OriginPool[C, W]] = []
        self._trial = Trial()

    def answered(self, pool: OriginPool[C, W], conn: C, now: float) -> list[OriginPool[C, W]]:
        """The first byte came on a leased connection that had been fresh; the pools for which
        that changes something."""
        lease = pool.leased(conn)
        before = lease.opened - lease.cost - APART
        older = [pool for pool in self.pools for _, e in pool.unasked() if e.opened < before]
        waited = now - lease.since
        if self._trial.answered(waited, len(older), now):
            return self._harmed(now)
        if waited >= OVERDUE:
            return []
        return [pool for pool in dict.fromkeys(older) if pool.guard.proved(now)]

    def handshaken(self, waited: float, now: float) -> list[OriginPool[C, W]]:
        """The same of TLS, which an acceptor may speak whose workers are all kept: no proof that
        they are not."""
        return self._harmed(now) if self._trial.answered(waited, 0, now) else []

    def overdue(
        self, pool: OriginPool[C, W], conn: C | None, waited: float, now: float
    ) -> list[tuple[OriginPool[C, W], C]]:
        """Nothing came for so many seconds, on a leased connection that had been fresh or (None)
        one that is still shaking hands: the idle connections to close, to see if it comes then."""
        until = now if conn is None else pool.leased(conn).opened
        older = [
            (its, idle)
            for its in self.pools
            for idle, entry in its.unasked()
            if entry.opened - entry.cost <= until
        ]
        return older if self._trial.tries(waited, len(older), pool.rtt, now) else []

    def _harmed(self, now: float) -> list[OriginPool[C, W]]:
        harmed = [pool for pool in self.pools if pool.idle or pool.target_idle(now)]
        for pool in harmed:
            pool.harmed("an idle connection kept its worker from answering others", now)
        return harmed
