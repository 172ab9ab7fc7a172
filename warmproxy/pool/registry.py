"""Which pools there are: the configured ones always, the others while they are remembered."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from warmproxy.observe import Observer, Tally
from warmproxy.origin import Origin
from warmproxy.policy.backoff import DialBudget
from warmproxy.policy.sizing import Fixed, Learned, Sizing
from warmproxy.pool.origin_pool import OriginPool
from warmproxy.pool.place import Place
from warmproxy.settings import OriginSettings, Settings

C = TypeVar("C")
W = TypeVar("W")


class Registry(Generic[C, W]):
    """Origin -> OriginPool, in the order of their last use.

    What is left of a pool that was let go is folded into `forgotten`, so that sums over all
    origins never go down.
    """

    def __init__(
        self, settings: Settings, observer: Observer, rng: Callable[[], float], now: float
    ) -> None:
        self._settings = settings
        self._observer = observer
        self._rng = rng
        self._pools: OrderedDict[Origin, OriginPool[C, W]] = OrderedDict()
        self._places: dict[tuple[str, int], Place[C, W]] = {}
        self.forgotten = Tally()
        self._own: dict[Origin, OriginSettings] = {}
        """Settings of origins that are configured but not held warm."""
        for upstream in settings.upstream:
            self._add(upstream.origin, upstream, Fixed(upstream.warm), upstream.warm, now)
            secure, count = upstream.secure_origin, settings.tls_warm(upstream)
            if secure is not None and count:
                self._add(secure, upstream, Fixed(count), count, now)
            elif secure is not None:
                self._own[secure] = upstream
        self.configured = frozenset(self._pools)

    def __iter__(self) -> Iterator[OriginPool[C, W]]:
        return iter(self._pools.values())

    def __len__(self) -> int:
        return len(self._pools)

    def find(self, origin: Origin) -> OriginPool[C, W] | None:
        return self._pools.get(origin)

    def place(self, origin: Origin) -> Place[C, W]:
        """Where the pool of that origin is."""
        return self._places[origin.host, origin.port]

    def use(self, origin: Origin, now: float) -> OriginPool[C, W]:
        """The origin's pool, made if need be; from now on the one that was used last."""
        pool = self._pools.get(origin)
        if pool is None:
            s = self._settings
            sizing = Learned(s.learn_requests, s.learn_window, s.learn_warm, s.learn_quiet)
            settings = self._own.get(origin, s.defaults)
            pool = self._add(origin, settings, sizing, s.learn_warm, now)
        else:
            self._pools.move_to_end(origin)
        return pool

    def beyond_cap(self) -> list[OriginPool[C, W]]:
        """The pools to let go: those over max_origins that were used least recently and that
        nobody would miss. `let_go` each after its connections were closed."""
        excess = len(self._pools) - self._settings.max_origins
        gone: list[OriginPool[C, W]] = []
        if excess > 0:
            for origin, pool in self._pools.items():
                if origin not in self.configured and pool.is_let_go():
                    gone.append(pool)
                    if len(gone) == excess:
                        break
        return gone

    def let_go(self, pool: OriginPool[C, W]) -> None:
        del self._pools[pool.origin]
        place = self.place(pool.origin)
        place.pools.remove(pool)
        if not place.pools:
            del self._places[pool.origin.host, pool.origin.port]
        self.forgotten.add(pool.tally)

    def least_recent_with_idle(self) -> OriginPool[C, W] | None:
        """Whose idle connection makes room under the global cap: not configured origins first."""
        pools = [p for p in self if p.oldest_idle() is not None]
        others = (p for p in pools if p.origin not in self.configured)
        return next(others, None) or next(iter(pools), None)

    def _add(
        self, origin: Origin, settings: OriginSettings, sizing: Sizing, count: int, now: float
    ) -> OriginPool[C, W]:
        rate = settings.dial_budget or 2.0 * count
        pool: OriginPool[C, W] = OriginPool(
            origin,
            settings,
            sizing,
            # a whole pool may be opened at once: it has to be at the start
            DialBudget(rate, max(rate, count)),
            self._observer,
            self._rng,
            now,
        )
        self._pools[origin] = pool
        self._places.setdefault((origin.host, origin.port), Place()).pools.append(pool)
        return pool


def tallies(
    configured: Iterable[Origin], pools: Iterable[tuple[Origin, Tally]], forgotten: Tally
) -> dict[str, Tally]:
    """Tallies by metric label: one for each configured origin, `other` for all the rest."""
    named = set(configured)
    by_label: dict[str, Tally] = {}
    other = Tally()
    other.add(forgotten)
    for origin, tally in pools:
        if origin in named:
            by_label[str(origin)] = tally
        else:
            other.add(tally)
    by_label["other"] = other
    return by_label
