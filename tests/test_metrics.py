"""/metrics is made piece by piece, and is one page all the same."""

import json
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from warmproxy.admin.history import History
from warmproxy.admin.pages import POOLS, View, describe, respond
from warmproxy.metrics import render
from warmproxy.observe import Observer, Tally
from warmproxy.pool.registry import Registry
from warmproxy.sample import take
from warmproxy.settings import Settings, UpstreamSettings

LINES = 200
"""Of a piece, at the most: 6 µs each."""


def registry(origins: int) -> Registry[Any, Any]:
    upstreams = [UpstreamSettings(url=f"http://h{i}.example", warm=2) for i in range(origins)]
    made = Registry[Any, Any](
        Settings(upstream=tuple(upstreams)), Observer(), lambda: 0.5, 0.0, lambda origin: {}
    )
    for number, pool in enumerate(made):
        tell(pool.tally, number)
    return made


def tell(tally: Tally, number: int) -> None:
    for phase in ("dns", "tcp", "tls"):
        tally.dial_seconds[phase].observe(0.004)
    tally.closed["upstream_eof"] = number


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text; version=1.0.0"])
@pytest.mark.parametrize("origins", [0, 1, 300])
def test_a_page_is_whole_and_its_pieces_are_small(accept: str, origins: int) -> None:
    """However many origins there are, no piece has more lines than take a millisecond or two; the
    page has each family once, with all origins."""
    made = registry(origins)
    sample = take(made, 1.0, clients=3, tunnels=2, loop_lag=0.0)
    pieces = list(render(sample, accept)[0])
    assert max(piece.count(b"\n") for piece in pieces) <= LINES
    text = b"".join(pieces).decode()
    families = list((read_openmetrics if accept else read_text)(text))
    names = [family.name for family in families]
    assert len(names) == len(set(names))
    assert {"warmproxy_clients", "warmproxy_dial_seconds", "process_open_fds"} <= set(names)
    values = {(s.name, *s.labels.values()): s.value for f in families for s in f.samples}
    for i in range(origins):
        name = f"http://h{i}.example"
        assert values["warmproxy_closed_total", f"{name}:80", "upstream_eof"] == i
        assert values["warmproxy_dial_seconds_count", f"{name}:80", "tcp"] == 1


@pytest.mark.parametrize("origins", [0, 1, POOLS, POOLS + 1, 3 * POOLS])
def test_pools_are_one_document_in_pieces(origins: int) -> None:
    """/pools is what it would be if it were written at once, a few pools in each piece."""
    made = registry(origins)
    view = View(
        pools=lambda: (describe(pool, True, False, 1.0, History(0.0)) for pool in made),
        ready=list,
        draining=lambda: False,
        metrics=lambda accept: (iter(()), ""),
        grant=lambda wish: [],
        about=lambda: {"history": {}, "clients": 3},
    )
    body = respond(view, "/pools", "").body
    assert not isinstance(body, bytes)
    pieces = list(body)
    assert max(piece.count(b'"origin"') for piece in pieces) <= POOLS
    text = b"".join(pieces).decode()
    document = json.loads(text)
    assert text == json.dumps(document, indent=1) + "\n"
    assert [pool["origin"] for pool in document["pools"]] == [str(pool.origin) for pool in made]
    assert document["totals"]["dials"] == 0
