"""Which pools there are: the configured ones always, the others while they are remembered."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Generic, TypeVar

from warmproxy.observe import Observer, Tally
from warmproxy.origin import Origin
from warmproxy.policy.backoff import DialBudget
from warmproxy.policy.learn import Known
from warmproxy.policy.sizing import Auto, Fixed, Learned, Sizing
from warmproxy.pool.origin_pool import OriginPool
from warmproxy.pool.site import Site
from warmproxy.settings import OriginSettings, Settings, Warm

C = TypeVar("C")
W = TypeVar("W")


class Registry(Generic[C, W]):
    """Origin -> OriginPool, in the order of their last use.

    What is left of a pool that was let go is folded into `forgotten`, so that sums over all
    origins never go down.
    """

    def __init__(
        self,
        settings: Settings,
        observer: Observer,
        rng: Callable[[], float],
        now: float,
        recall: Callable[[Origin], Mapping[str, Known]] = lambda origin: {},
    ) -> None:
        """`recall`: what an earlier run knew of an origin's idle limits, by kind."""
        self._settings = settings
        self._recall = recall
        self._observer = observer
        self._rng = rng
        self._pools: OrderedDict[Origin, OriginPool[C, W]] = OrderedDict()
        self._by_host: dict[str, list[OriginPool[C, W]]] = {}
        self._sites: dict[tuple[str, int], Site[C, W]] = {}
        self.forgotten = Tally()
        self._own: dict[Origin, OriginSettings] = {}
        """Settings of origins that are configured but not held warm."""
        for upstream in settings.upstream:
            self._add(upstream.origin, upstream, *_sizing(upstream.warm, upstream), now)
            secure, warm = upstream.secure_origin, settings.tls_warm(upstream)
            if secure is not None and warm:
                self._add(secure, upstream, *_sizing(warm, upstream), now)
            elif secure is not None:
                self._own[secure] = upstream
        self.configured = frozenset(self._pools)

    def __iter__(self) -> Iterator[OriginPool[C, W]]:
        return iter(self._pools.values())

    def __len__(self) -> int:
        return len(self._pools)

    def find(self, origin: Origin) -> OriginPool[C, W] | None:
        return self._pools.get(origin)

    def at(self, host: str) -> list[OriginPool[C, W]]:
        """The pools of one host, whatever their ports and schemes."""
        return self._by_host.get(host, [])

    def site(self, origin: Origin) -> Site[C, W]:
        """Where the pool of that origin is."""
        return self._sites[origin.host, origin.port]

    def use(self, origin: Origin, now: float) -> OriginPool[C, W]:
        """The origin's pool, made if need be; from now on the one that was used last."""
        pool = self._pools.get(origin)
        if pool is None:
            s = self._settings
            auto = Auto(1, s.learn_warm)
            sizing = Learned(s.learn_requests, s.learn_window, s.learn_quiet, auto)
            pool = self._add(origin, self.settings_of(origin), sizing, s.learn_warm, now)
        else:
            self._pools.move_to_end(origin)
        return pool

    def settings_of(self, origin: Origin) -> OriginSettings:
        """What holds for an origin, whether it has a pool or not."""
        pool = self._pools.get(origin)
        return pool.settings if pool else self._own.get(origin, self._settings.defaults)

    def is_full(self) -> bool:
        """Whether max_origins have pools that stay, so that one more would be one too many."""
        stay = sum(p.origin in self.configured or not p.is_let_go() for p in self)
        return stay >= self._settings.max_origins

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
        beside = self._by_host[pool.origin.host]
        beside.remove(pool)
        if not beside:
            del self._by_host[pool.origin.host]
        site = self.site(pool.origin)
        site.pools.remove(pool)
        if not site.pools:
            del self._sites[pool.origin.host, pool.origin.port]
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
        pool.recall(self._recall(origin))
        self._pools[origin] = pool
        self._by_host.setdefault(origin.host, []).append(pool)
        self._sites.setdefault((origin.host, origin.port), Site()).pools.append(pool)
        return pool


def _sizing(warm: Warm, settings: OriginSettings) -> tuple[Sizing, int]:
    """What decides on an upstream's idle connections, and how many there may come to be."""
    if warm != "auto":
        return Fixed(warm), warm
    least, most = settings.warm_range
    return Auto(least, most), most


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
