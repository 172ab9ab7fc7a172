"""What holds pools above their own size for a while: windows of the settings, and wishes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from math import inf

from warmproxy import log
from warmproxy.admin.wish import Wish
from warmproxy.cron import Cron, zone
from warmproxy.errors import BadRequest, DialError, RequestDenied
from warmproxy.net.housekeeper import Housekeeper, Pool
from warmproxy.origin import Origin, secured
from warmproxy.policy.schedule import Window
from warmproxy.protocol.exchange import Terms
from warmproxy.settings import Settings, UpstreamSettings

LOOK_SECONDS = 60.0
"""So often at the least it is looked what holds, whatever was found before: a clock may be set."""
ASKED = "asked"
"""Why a pool holds more, as /pools says it; a window has its times there."""


@dataclass(slots=True)
class _Scheduled:
    """A window, for one of the origins that it is of."""

    origin: Origin
    count: int
    window: Window
    why: str
    holds: bool = False


class Warming:
    """`clock` is the loop's."""

    def __init__(
        self,
        settings: Settings,
        terms: Terms,
        housekeeper: Housekeeper,
        clock: Callable[[], float],
    ) -> None:
        self._housekeeper = housekeeper
        self._clock = clock
        self._scheduled: list[_Scheduled] = []
        self._seen = -inf
        """the wall clock at the last tick"""
        self.adopt(settings, terms)

    def adopt(self, settings: Settings, terms: Terms) -> None:
        """These hold from now on: windows that are no more end here, the others go on."""
        self._settings = settings
        self._terms = terms
        before = {(each.origin, each.why): each for each in self._scheduled if each.holds}
        self._scheduled = [s for up in settings.upstream for s in _scheduled(settings, up)]
        for each in self._scheduled:
            each.holds = before.pop((each.origin, each.why), None) is not None
        for gone in before.values():
            self._housekeeper.boost(gone.origin, 0, 0.0, gone.why)
        self._look_at = -inf

    def tick(self, wall: float) -> None:
        """Begin and end windows: to be called about once a second with the wall clock's time, in
        seconds since the epoch."""
        was_set_back, self._seen = wall < self._seen, wall
        if wall < self._look_at and not was_set_back:
            return
        self._look_at = wall + LOOK_SECONDS
        now = datetime.fromtimestamp(wall, UTC)
        for each in self._scheduled:
            look = each.window.look(now)
            seconds = (look.until - now).total_seconds() if look.until else 0.0
            if seconds or each.holds:
                self._housekeeper.boost(each.origin, each.count, seconds, each.why)
            if seconds and not each.holds:
                log.event(
                    "window_began",
                    origin=str(each.origin),
                    count=each.count,
                    seconds=round(seconds, 3),
                    window=each.why,
                )
            each.holds = seconds > 0
            self._look_at = min(self._look_at, look.again.timestamp())

    def grant(self, wish: Wish) -> list[Pool]:
        """Hold what is wished for; the pools that do. Raises RequestDenied (403) where requests
        may not go there, and BadRequest (409) where the settings or the upstream stand against it.
        """
        tls = wish.tls
        if tls is None and self._settings.needs_tls(wish.origin):
            tls = wish.count
        wished = [] if wish.count is None else [(wish.origin, wish.count)]
        if tls is not None:
            wished.append((self._secured(wish.origin), tls))
        registry = self._housekeeper.registry
        # what nobody knows has nothing to end
        wished = [(o, count) for o, count in wished if count or registry.find(o) is not None]
        for origin, count in wished:
            if count:
                self._check(origin, count)
        pools = []
        for origin, count in wished:
            log.event(
                "warm_asked",
                client=wish.client,
                origin=str(origin),
                count=count,
                seconds=wish.seconds if count else None,
            )
            pools.append(self._housekeeper.boost(origin, count, wish.seconds, ASKED))
        return pools

    def _secured(self, place: Origin) -> Origin:
        known = self._terms.places.get((place.host, place.port))
        return known or secured(place, self._terms.default_tls or "")

    def _check(self, origin: Origin, count: int) -> None:
        self._terms.destinations.check_origin(origin)
        if _is_address(origin.host):  # of a name it is asked when it is resolved
            try:
                self._terms.destinations.check_address(origin, origin.host)
            except DialError as error:
                raise RequestDenied(error.reason) from None
        registry, now = self._housekeeper.registry, self._clock()
        most = min(registry.settings_of(origin).max_connections, self._settings.max_connections)
        pool = registry.find(origin)
        if count > most:
            why = f"{count} connections are more than max_connections allows, {most}"
        elif pool is None and registry.is_full():
            why = f"all max_origins ({self._settings.max_origins}) are in use"
        elif pool is not None and now < pool.guard.until:
            left = pool.guard.until - now
            why = f"it is left alone for {left:.0f} s more, since {pool.guard.why}"
        else:
            return
        raise BadRequest(f"{origin}: {why}", status=409)


def _scheduled(settings: Settings, upstream: UpstreamSettings) -> Iterator[_Scheduled]:
    for given in upstream.warm_at:
        window = Window(Cron(given.at, zone(upstream.timezone)), given.seconds)
        lasts = given.length if isinstance(given.length, str) else f"{given.length:g}s"
        why = f"schedule {given.at} for {lasts}"
        if given.count:
            yield _Scheduled(upstream.origin, given.count, window, why)
        needs_tls = settings.needs_tls(upstream.origin)
        tls = given.tls or (given.count if needs_tls else 0)
        if tls and upstream.secure_origin is not None:
            yield _Scheduled(upstream.secure_origin, tls, window, why)


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
