"""What becomes known of the addresses that connections lead to, told to the pools that have them:
where a name leads now, that an address is not to be trusted, that the network is another one."""

import asyncio
from collections.abc import Callable
from ipaddress import ip_address
from math import inf
from typing import Any

from warmproxy.net.upstream import UpstreamConnection
from warmproxy.observe import CloseReason
from warmproxy.pool.origin_pool import OriginPool
from warmproxy.pool.registry import Registry

SUSPECTED_ONCE = 10.0
"""Seconds in which one host's address is suspected once: what fails together, or what fails
again while its replacements are being dialled, is one event."""

REMEMBERED = 1000
"""Suspicions at most: clients choose the names."""

Pool = OriginPool[UpstreamConnection, Any]
Ended = Callable[[Pool, UpstreamConnection, CloseReason, float], None]


class Places:
    """Tells pools, and says which of them are to be planned again (`changed`) and which of their
    connections turned out to be dead (`ended`)."""

    def __init__(
        self,
        registry: Registry[UpstreamConnection, Any],
        loop: asyncio.AbstractEventLoop,
        ended: Ended,
        changed: Callable[[Pool], None],
    ) -> None:
        self._registry = registry
        self._loop = loop
        self._ended = ended
        self._changed = changed
        self._suspected: dict[tuple[str, str], float] = {}
        """(host, address) -> when."""

    def wanted(self, host: str) -> bool:
        """Whether connections to the host are held, or should be."""
        now = self._loop.time()
        pools = self._registry.at(host)
        return any(pool.idle or pool.dialling or pool.target_idle(now) for pool in pools)

    def located(self, host: str, places: frozenset[str]) -> None:
        """A look-up of the host was answered: connections may stay at these addresses."""
        now = self._loop.time()
        for pool in self._registry.at(host):
            pool.located(places, now)
            self._changed(pool)

    def failed(self, host: str, place: str) -> None:
        """A connection to the address was reset or timed out, or it did not answer a dial: the
        host's other connections there may be dead as well."""
        now = self._loop.time()
        key = (host, place)
        if not place or now - self._suspected.get(key, -inf) < SUSPECTED_ONCE:
            return
        self._suspected.pop(key, None)  # so that the order is that of time
        self._suspected[key] = now
        if len(self._suspected) > REMEMBERED:
            del self._suspected[next(iter(self._suspected))]
        for pool in self._registry.at(host):
            self._suspect(pool, place, now)

    def moved(self) -> int:
        """The way to other machines may be another one than when connections were opened: all
        idle ones are suspect. How many those are."""
        now = self._loop.time()
        return sum(
            self._suspect(pool, place, now)
            for pool in self._registry
            for place in pool.places()
            if place and not ip_address(place).is_loopback
        )

    def _suspect(self, pool: Pool, place: str, now: float) -> int:
        suspects = pool.suspect(place, now)
        for conn in suspects:
            if (dead := conn.check()) is not None:
                self._ended(pool, conn, dead, now)
        if suspects:
            self._changed(pool)
        return len(suspects)
