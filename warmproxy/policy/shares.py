"""What one of several processes gets of each number in the settings.

Whatever is held or allowed is dealt like cards: one to each in turn, beginning behind the one who
got the last. So the shares of a number add up to it, no process has two more than another, and
many upstreams with warm = 1 are spread over all of them.
"""

from typing import TypeVar

from warmproxy.settings import (
    DEALT,
    DEALT_BY_ORIGIN,
    OriginSettings,
    Settings,
    UpstreamSettings,
    Warm,
    changed,
)

_Origin = TypeVar("_Origin", bound=OriginSettings)


def deal(count: int, of: int, start: int = 0) -> list[int]:
    """`count` cards for `of` players, the first card to player `start`, from 0."""
    each, left = divmod(count, of)
    return [each + ((player - start) % of < left) for player in range(of)]


def share(settings: Settings, number: int, of: int) -> Settings:
    """The settings of process `number`, from 0, of so many.

    A process that gets none of `learn_warm` does not learn origins. Where requests need TLS (by
    `upgrade` or a gateway) and `tls` is less than `of`, each process that holds a raw connection
    holds one with TLS: no other number grows.
    """
    upstreams, start = [], 0
    for upstream in settings.upstream:
        needs_tls = settings.needs_tls(upstream.origin)
        upstreams.append(_upstream(upstream, needs_tls, number, of, start))
        start += upstream.warm_max if upstream.warm == "auto" else upstream.warm
    learn_warm = deal(settings.learn_warm, of)[number]
    return changed(
        settings,
        **{name: deal(getattr(settings, name), of)[number] for name in DEALT},
        learn_requests=settings.learn_requests if learn_warm else 0,
        learn_warm=max(1, learn_warm),
        defaults=_origin(settings.defaults, number, of, 0),
        upstream=tuple(upstreams),
    )


def _origin(settings: _Origin, number: int, of: int, start: int) -> _Origin:
    names = (*DEALT_BY_ORIGIN, "warm_min", "warm_max")
    dealt = {name: deal(getattr(settings, name), of, start)[number] for name in names}
    dealt["warm_max"] = max(1, dealt["warm_max"])  # whoever has none has no warm = "auto" either
    return changed(settings, **dealt, dial_budget=settings.dial_budget / of)


def _upstream(
    upstream: UpstreamSettings, needs_tls: bool, number: int, of: int, start: int
) -> UpstreamSettings:
    def mine(count: int) -> int:
        return deal(count, of, start)[number]

    def warm(given: Warm) -> Warm:
        if given == "auto":
            return "auto" if mine(upstream.warm_max) else 0
        return mine(given)

    def at_least(tls: Warm, given: Warm, raw: Warm) -> Warm:
        """For tls, 0 means as many as there are raw ones where they are needed."""
        return 1 if needs_tls and given and raw and not tls else tls

    raw = warm(upstream.warm)
    windows = []
    for window in upstream.warm_at:
        count, tls = mine(window.count), mine(window.tls)
        windows.append(changed(window, count=count, tls=at_least(tls, window.tls, count)))
    return changed(
        _origin(upstream, number, of, start),
        warm=raw,
        tls=at_least(warm(upstream.tls), upstream.tls, raw),
        warm_at=tuple(windows),
    )
