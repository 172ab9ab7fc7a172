"""`warmproxy warm`: have the running daemon hold more connections for a while, before a burst."""

import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from warmproxy.settings import split_warm
from warmproxy.tools.healthcheck import ask, authority

POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Burst:
    """What is to be held for one URL; None leaves that as it is."""

    url: str
    count: str | None
    tls: str | None


def parse(text: str) -> Burst:
    """`URL=N`, `URL=N,tls=M` or `URL,tls=M`. Raises ValueError, with a sentence for people; what
    is wrong with the URL itself the daemon will say."""
    url, counts = split_warm(text)
    if not counts or not all(re.fullmatch("[0-9]{1,9}", count) for count in counts.values()):
        raise ValueError("must be URL=N or URL=N,tls=M, for example https://api.example.com=20")
    return Burst(url, counts.get("warm"), counts.get("tls"))


def warm(
    address: tuple[str, int], bursts: Sequence[Burst], *, length: str, wait: float | None
) -> int:
    """Ask the daemon whose admin listener is at (host, port), and print how warm each pool is.

    With `wait`, not before all are warm, or so many seconds are over. Returns 0, or 1 (and lines on
    stderr) where one is refused or not warm by then.
    """
    try:
        pools = [pool for burst in bursts for pool in _ask(address, burst, length)]
        if wait is not None:
            pools = _wait(address, pools, time.monotonic() + wait)
    except (OSError, ValueError) as error:
        print(f"warmproxy warm: {error}", file=sys.stderr)
        return 1
    cold = [] if wait is None else [pool for pool in pools if _is_cold(pool)]
    for pool in pools:
        line = f"{pool['origin']} {_idle(pool)} of {pool['target_idle']} warm"
        if pool not in cold:
            print(line)
        else:
            why = f": {pool['last_error']}" if pool["last_error"] else ""
            print(f"warmproxy warm: {line}{why}", file=sys.stderr)
    return 1 if cold else 0


def _ask(address: tuple[str, int], burst: Burst, length: str) -> list[Mapping[str, Any]]:
    """The pools that hold it from now on. Raises OSError, or ValueError with what was said."""
    asked = {"origin": burst.url, "count": burst.count, "tls": burst.tls, "for": length}
    query = urlencode({name: value for name, value in asked.items() if value is not None})
    status, body = ask(address, "POST", f"/warm?{query}")
    return _pools(address, status, body)


def _wait(
    address: tuple[str, int], pools: list[Mapping[str, Any]], deadline: float
) -> list[Mapping[str, Any]]:
    """The same pools, once they are warm or at the deadline."""
    origins = [pool["origin"] for pool in pools]
    while any(map(_is_cold, pools)) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        status, body = ask(address, "GET", "/pools")
        pools = [pool for pool in _pools(address, status, body) if pool["origin"] in origins]
    return pools


def _pools(address: tuple[str, int], status: int, body: bytes) -> list[Mapping[str, Any]]:
    if status not in (200, 202):
        said = body.decode(errors="replace").strip()
        one_line = said.isprintable() and said
        raise ValueError(one_line or f"{authority(address)} says {status}; is that warmproxy?")
    try:
        pools: list[Mapping[str, Any]] = json.loads(body)["pools"]
        for pool in pools:
            _is_cold(pool)
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"what answers on {authority(address)} is not warmproxy") from None
    return pools


def _idle(pool: Mapping[str, Any]) -> int:
    return int(pool["fresh"] + pool["used"])


def _is_cold(pool: Mapping[str, Any]) -> bool:
    """What is in use was warm too."""
    return _idle(pool) + int(pool["active"]) < int(pool["target_idle"])
