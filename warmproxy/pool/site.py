"""The pools of one host and port: connections of every scheme wait for the same workers there."""

from math import inf
from typing import Generic, TypeVar

from warmproxy.policy.trial import OVERDUE, Trial
from warmproxy.pool.origin_pool import OriginPool

C = TypeVar("C")
W = TypeVar("W")


class Site(Generic[C, W]):
    """Finds out whether idle connections keep the others from being answered (policy/trial.py)."""

    def __init__(self) -> None:
        self.pools: list[OriginPool[C, W]] = []
        self._trial = Trial()

    def answered(self, pool: OriginPool[C, W], conn: C, now: float) -> list[OriginPool[C, W]]:
        """The first byte came on a leased connection that had been fresh; the pools for which
        that changes something."""
        lease = pool.leased(conn)
        trial, pools = self._trial, self.pools
        at_most = sum(its.unasked_before(lease.number) for its in pools)
        if at_most <= trial.harmless and not any(its.guard.is_wary for its in pools):
            # so many were harmless before: who they are does not matter, and to find it out
            # takes 1 ms with 10,000
            return self._harmed(now) if trial.answered(now - lease.since, 0, now) else []
        older = [its for its, _ in self._unasked(before=lease.number)]
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
        older = self._unasked(before=inf if conn is None else pool.leased(conn).number)
        return older if self._trial.tries(waited, len(older), pool.rtt, now) else []

    def _unasked(self, before: float) -> list[tuple[OriginPool[C, W], C]]:
        """The idle connections that were opened before one of that number."""
        pools = self.pools
        return [(pool, c) for pool in pools for c, entry in pool.unasked() if entry.number < before]

    def _harmed(self, now: float) -> list[OriginPool[C, W]]:
        harmed = [pool for pool in self.pools if pool.idle or pool.target_idle(now)]
        for pool in harmed:
            pool.harmed("an idle connection kept its worker from answering others", now)
        return harmed
