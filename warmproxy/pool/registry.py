"""Which pools there are: the configured ones always, the others while they are remembered."""

from collections import OrderedDict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from warmproxy.observe import Observer, Tally
from warmproxy.origin import Origin, secured
from warmproxy.policy.backoff import DialBudget
from warmproxy.policy.learn import Known
from warmproxy.policy.sizing import Auto, Fixed, Learned, Sizing
from warmproxy.pool.origin_pool import OriginPool
from warmproxy.pool.site import Site
from warmproxy.settings import OriginSettings, Settings, Warm

C = TypeVar("C")
W = TypeVar("W")


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What an upstream's table says of one of its pools."""

    settings: OriginSettings
    sizing: Sizing
    count: int
    """Idle connections that there may come to be."""


@dataclass(frozen=True, slots=True)
class Adopted(Generic[C, W]):
    """What other settings mean for pools that were there before."""

    renamed: Mapping[Origin, Origin]
    """Origins whose pool goes by another one now: they have another TLS profile."""
    surplus: tuple[tuple[OriginPool[C, W], int], ...]
    """How many idle connections are to be closed at once, being no longer asked for."""


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
        self._own, self._secured = _own(settings), _secured(settings)
        wanted = _wanted(settings)
        for origin, wish in wanted.items():
            self._add(origin, wish, now)
        self.configured = frozenset(wanted)

    def adopt(self, settings: Settings, renewed: Container[str], now: float) -> Adopted[C, W]:
        """Other settings hold from now on. Pools stay, with what they learned and what is open;
        where connections are to be opened in another way, what is open is replaced. `renewed`:
        names of TLS profiles whose files have other contents than before."""
        self._settings, was_configured = settings, self.configured
        self._own, self._secured = _own(settings), _secured(settings)
        wanted = _wanted(settings)
        self.configured = frozenset(wanted)
        renamed, surplus = {}, []
        for pool in list(self):
            before, origin = pool.origin, self._by_now(pool.origin)
            if origin is not before:
                self._rename(pool, origin)
                renamed[before] = origin
            wish = wanted.get(origin) or self._unconfigured(origin)
            another_way = wish.settings.source_address != pool.settings.source_address
            target = pool.target_idle(now)
            pool.adopt(wish.settings, wish.sizing, self._budget(wish), now)
            if origin is not before or another_way or origin.tls in renewed:
                pool.renew(now)
            if before not in was_configured and origin in wanted:
                self.forgotten.add(pool.tally)  # what `other` counts never becomes less
                pool.tally = Tally()
            dropped = before in was_configured and origin not in wanted
            less = pool.idle if dropped else target - pool.target_idle(now)
            surplus.append((pool, min(less, pool.idle - pool.target_idle(now))))
        for origin, wish in wanted.items():
            if origin not in self._pools:
                self._add(origin, wish, now)
        return Adopted(renamed, tuple((pool, count) for pool, count in surplus if count > 0))

    def __iter__(self) -> Iterator[OriginPool[C, W]]:
        return iter(self._pools.values())

    def __len__(self) -> int:
        return len(self._pools)

    def find(self, origin: Origin) -> OriginPool[C, W] | None:
        return self._pools.get(origin) or self._pools.get(self._by_now(origin))

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
            origin = self._by_now(origin)
            pool = self._pools.get(origin) or self._add(origin, self._unconfigured(origin), now)
        else:
            self._pools.move_to_end(origin)
        return pool

    def settings_of(self, origin: Origin) -> OriginSettings:
        """What holds for an origin, whether it has a pool or not."""
        return self._own.get(origin, self._settings.defaults)

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

    def _unconfigured(self, origin: Origin) -> _Wanted:
        """What holds for an origin without an own pool in the settings."""
        s = self._settings
        auto = Auto(1, s.learn_warm, reuse=origin.scheme != "tcp")
        sizing = Learned(s.learn_requests, s.learn_window, s.learn_quiet, auto)
        return _Wanted(self.settings_of(origin), sizing, s.learn_warm)

    def _budget(self, wish: _Wanted) -> DialBudget:
        """A whole pool may be opened at once: it has to be at the start. A number that was given
        holds whatever clients take."""
        given = wish.settings.dial_budget
        rate = given or 2.0 * wish.count
        return DialBudget(rate, max(rate, wish.count), earns=not given)

    def _rename(self, pool: OriginPool[C, W], origin: Origin) -> None:
        """The pool goes by another origin of the same place."""
        before, pool.origin = pool.origin, origin
        del self._pools[before]
        self._pools[origin] = pool

    def _by_now(self, origin: Origin) -> Origin:
        """The same place with the TLS profile that holds for it: requests that began before a
        reload know it by another."""
        if origin.scheme != "https":
            return origin
        known = self._secured.get((origin.host, origin.port))
        return known or secured(origin, self._settings.default_profile.name)

    def _add(self, origin: Origin, wish: _Wanted, now: float) -> OriginPool[C, W]:
        pool: OriginPool[C, W] = OriginPool(
            origin,
            wish.settings,
            wish.sizing,
            self._budget(wish),
            self._observer,
            self._rng,
            now,
        )
        pool.recall(self._recall(origin))
        self._pools[origin] = pool
        self._by_host.setdefault(origin.host, []).append(pool)
        self._sites.setdefault((origin.host, origin.port), Site()).pools.append(pool)
        return pool


def _wanted(settings: Settings) -> dict[Origin, _Wanted]:
    """The pools that the settings ask for."""
    found = {}
    for upstream in settings.upstream:
        reuse = upstream.origin.scheme != "tcp"
        found[upstream.origin] = _Wanted(upstream, *_sizing(upstream.warm, upstream, reuse=reuse))
        secure, warm = upstream.secure_origin, settings.tls_warm(upstream)
        if secure is not None and warm:
            found[secure] = _Wanted(upstream, *_sizing(warm, upstream, reuse=True))
    return found


def _own(settings: Settings) -> dict[Origin, OriginSettings]:
    """The settings of each origin that has some, held warm or not."""
    found: dict[Origin, OriginSettings] = {}
    for upstream in settings.upstream:
        for origin in filter(None, (upstream.origin, upstream.secure_origin)):
            found[origin] = upstream
    return found


def _secured(settings: Settings) -> dict[tuple[str, int], Origin]:
    """Of each https upstream the origin with its TLS profile, by host and port."""
    found = (upstream.secure_origin for upstream in settings.upstream)
    return {(origin.host, origin.port): origin for origin in found if origin is not None}


def _sizing(warm: Warm, settings: OriginSettings, *, reuse: bool) -> tuple[Sizing, int]:
    """What decides on an upstream's idle connections, and how many there may come to be."""
    if warm != "auto":
        return Fixed(warm), warm
    least, most = settings.warm_range
    return Auto(least, most, reuse=reuse), most


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
