"""What the admin listener says, from what is. No sockets here."""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from math import inf
from typing import Any
from urllib.parse import parse_qs

from warmproxy import __version__
from warmproxy.admin.history import History, Lately
from warmproxy.admin.wish import Wish, parse
from warmproxy.errors import ShuttingDown
from warmproxy.observe import Outcome, Tally
from warmproxy.origin import Origin
from warmproxy.pool.origin_pool import OriginPool

AnyPool = OriginPool[Any, Any]
Said = dict[str, Any]
"""What /pools says of one pool."""


@dataclass(frozen=True, slots=True)
class Page:
    status: int
    content_type: str
    body: bytes | Iterator[bytes]
    """In pieces where all of it at once would keep the loop for too long."""
    fields: str = ""
    """More of the head, each line with its CR LF."""


@dataclass(slots=True)
class Readiness:
    """Ready once each configured pool was warm, or its time to become so is over.

    A pool that was warm once counts as warm: a burst that takes its connections is what they are
    for, and no reason to send traffic elsewhere.
    """

    deadline: float
    draining: bool = False
    _warmed: set[Origin] = field(default_factory=set)

    def look(self, pools: list[AnyPool], now: float) -> list[tuple[Origin, bool, str]]:
        """(origin, ready, why) for each of the configured pools."""
        said = []
        for pool in pools:
            target = pool.target_idle(now)
            if pool.idle + pool.active - pool.taken >= target:
                self._warmed.add(pool.origin)
            have = f"{pool.idle} of {target} warm"
            if pool.origin in self._warmed:
                said.append((pool.origin, True, have))
            elif now >= self.deadline:
                said.append((pool.origin, True, f"{have}, waited long enough"))
            else:
                said.append((pool.origin, False, have))
        return said


def awaited(pools: Iterable[AnyPool], configured: frozenset[Origin]) -> list[AnyPool]:
    """The pools that readiness waits for: what is configured, if only for a window."""
    return [pool for pool in pools if pool.origin in configured or pool.boosts]


@dataclass(slots=True)
class View:
    """Where the pages look: each is asked when a page is. A reload changes `configured`."""

    pools: Callable[[], Iterable[Said]]
    """Each is described when its turn comes."""
    ready: Callable[[], list[tuple[str, bool, str]]]
    """(what is waited for, ready, why)"""
    draining: Callable[[], bool]
    metrics: Callable[[str], tuple[Iterator[bytes], str]]
    """`Accept` -> text, in pieces, and content type."""
    grant: Callable[[Wish], list[Said]]
    """The pools that fulfil a wish; raises WarmproxyError."""
    about: Callable[[], Said]
    """What /pools says of the daemon itself, with its `history`."""
    silent: list[int] = field(default_factory=list)
    """Processes of this daemon of which nothing is known now."""


TEXT = "text/plain; charset=utf-8"

INDEX = (
    f"warmproxy {__version__}, admin listener\n"
    "  /                 in a browser: the status page\n"
    "  /metrics          for Prometheus\n"
    "  /healthz          the daemon runs\n"
    "  /readyz?verbose   each configured pool is warm\n"
    "  /pools            the pools as JSON\n"
    "  /warm             POST: hold more connections to an origin for a while\n"
)


def respond(view: View, target: str, accept: str) -> Page:
    """The page for a GET of `target`."""
    path, _, query = target.partition("?")
    match path:
        case "/":
            if wants_html(accept):
                return _status(view, query)
            return Page(200, TEXT, INDEX.encode(), "Vary: Accept\r\n")
        case "/metrics":
            body, content_type = view.metrics(accept)
            return Page(200, content_type, body)
        case "/healthz":
            return Page(200, TEXT, b"ok\n")
        case "/readyz":
            return _readyz(view, "verbose" in parse_qs(query, keep_blank_values=True))
        case "/pools":
            return Page(200, "application/json", _pools(view))
        case _:
            return Page(404, TEXT, f"nothing at {path}\n{INDEX}".encode())


def wants_html(accept: str) -> bool:
    """Whether an `Accept` field names text/html and does not refuse it (RFC 9110, 12.5.1)."""
    for part in accept.lower().split(","):
        name, *parameters = (word.strip() for word in part.split(";"))
        if name == "text/html":
            return not any(re.fullmatch(r"q=0(\.0*)?", word) for word in parameters)
    return False


def submit(view: View, target: str, client: str) -> Page:
    """The page for a POST to /warm: 200 where all of it is warm already, else 202. `client` is
    the address of whoever asks. Raises WarmproxyError."""
    if view.draining():
        raise ShuttingDown("this proxy is shutting down")
    return granted(view.grant(parse(target.partition("?")[2], client)))


def granted(pools: list[Said]) -> Page:
    """What a POST to /warm is answered."""
    warm = all(pool["fresh"] + pool["used"] >= pool["target_idle"] for pool in pools)
    return _json(200 if warm else 202, {"pools": [_short(pool) for pool in pools]})


def _short(pool: Said) -> Said:
    """Without what is for the charts only."""
    return {name: value for name, value in pool.items() if name != "warm_lately"}


def _json(status: int, value: object) -> Page:
    return Page(status, "application/json", json.dumps(value, indent=1).encode() + b"\n")


def _readyz(view: View, verbose: bool) -> Page:
    said = view.ready()
    ready = all(is_ready for _, is_ready, _ in said) and not view.draining()
    lines = ["ready" if ready else "draining" if view.draining() else "not ready"]
    if verbose:
        lines += [f"{'[+]' if ok else '[-]'} {what} {why}" for what, ok, why in said]
    return Page(200 if ready else 503, TEXT, "\n".join(lines).encode() + b"\n")


POOLS = 20
"""That one piece of the page has: they take about a millisecond."""


def _pools(view: View) -> Iterator[bytes]:
    """The page of all pools, as `_json` would write it."""
    counted = ("fresh", "used", "active", "dialling", "waiting", "dials", "hits", "misses")
    totals: dict[str, Any] = dict.fromkeys((*counted, "saved_seconds"), 0)
    pools = iter(view.pools())
    silent = f' "silent": {json.dumps(view.silent)},\n' if view.silent else ""
    yield f'{{\n "version": {json.dumps(__version__)},\n{silent} "pools": ['.encode()
    before, after = "\n  ", ""
    while some := list(islice(pools, POOLS)):
        for name in totals:
            totals[name] += sum(pool[name] for pool in some)
        texts = (json.dumps(_short(pool), indent=1).replace("\n", "\n  ") for pool in some)
        yield (before + ",\n  ".join(texts)).encode()
        before, after = ",\n  ", "\n "
    totals["saved_seconds"] = round(totals["saved_seconds"], 6)
    about = view.about()
    rest = {"totals": totals, "history": about.pop("history"), "daemon": about}
    texts = (
        f'"{name}": ' + json.dumps(value, indent=None if name == "history" else 1)
        for name, value in rest.items()
    )
    yield (after + "],\n " + ",\n ".join(text.replace("\n", "\n ") for text in texts)).encode()
    yield b"\n}\n"


def _status(view: View, query: str) -> Page:
    """The page for people."""
    # here and not above: for those that look at it
    from warmproxy.admin import html
    from warmproxy.admin.table import asked

    daemon = view.about() | {"version": __version__, "silent": view.silent}
    lately = Lately(**daemon["history"])
    pools = ((pool, pool["warm_lately"]) for pool in view.pools())
    body = html.page(asked(query), daemon, lately, pools)
    return Page(200, "text/html; charset=utf-8", body, html.FIELDS)


def forgotten(tally: Tally) -> dict[str, Any]:
    """What was counted of pools that are no more, as far as the page adds it up."""
    hits, misses = _hits_and_misses(tally)
    failed = tally.acquires[Outcome.FAILED]
    saved = round(tally.saved_seconds, 6)
    return {"hits": hits, "misses": misses, "failed": failed, "saved_seconds": saved}


def _hits_and_misses(tally: Tally) -> tuple[int, int]:
    counts = tally.acquires
    hits = counts[Outcome.FRESH] + counts[Outcome.USED]
    return hits, counts[Outcome.WAITED] + counts[Outcome.DIALLED]


def describe(
    pool: AnyPool, configured: bool, intercepted: bool, now: float, history: History
) -> Said:
    """What /pools says of a pool."""
    pool.account(now)
    tally, last, tls = pool.tally, pool.last_close, pool.origin.tls
    hits, misses = _hits_and_misses(tally)
    seconds = sum(phase.total for phase in tally.dial_seconds.values())
    return {
        "origin": str(pool.origin),
        "configured": configured,
        "verified": None if tls is None else "unverified" not in tls.split(" "),
        "intercepted": intercepted,
        "target_idle": pool.target_idle(now),
        "boosts": [
            {"count": count, "seconds_left": round(until - now, 3), "why": why}
            for why, (count, until) in pool.boosts.items()
            if until > now
        ],
        "fresh": pool.fresh,
        "used": pool.used,
        "active": pool.active,
        "dialling": pool.dialling,
        "waiting": pool.waiting,
        "oldest_age": round(pool.oldest_age(now), 3),
        "idle_limits": {
            kind: round(limit.seconds, 3) if limit.seconds < inf else None
            for kind, limit in pool.idle_limits.items()
        },
        "canaries": pool.canaries,
        "below_target_for": round(history.below_for(pool.origin, now), 3),
        "warm_lately": history.warm_of(pool.origin),
        "closes_at_once": pool.churn.failures > 0,
        "costly": pool.is_costly,
        "held_back": {
            "reason": pool.guard.why,
            "seconds": round(max(0.0, pool.guard.until - now), 3),
        }
        if pool.guard.is_wary
        else None,
        "last_close": last
        and {
            "reason": last.reason,
            "ago": round(now - last.at, 3),
            "age": round(last.age, 3),
        },
        "closed": dict(tally.closed),
        "primes": dict(tally.primes),
        "dials": sum(tally.dials.values()),
        "dial_seconds": {
            "mean": round(seconds / dials, 6) if (dials := tally.dials["ok"]) else None,
            "recent": round(pool.dial_time, 6),
        },
        "dial_failures": pool.dial_failures.failures,
        "dials_failed": sum(n for result, n in tally.dials.items() if result != "ok"),
        "hits": hits,
        "misses": misses,
        "failed": tally.acquires[Outcome.FAILED],
        "saved_seconds": round(tally.saved_seconds, 6),
        "last_error": pool.last_error,
    }
