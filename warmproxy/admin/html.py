"""The status page: what /pools says -> HTML, in pieces. One table that can be read without scripts,
charts drawn inline, nothing loaded from elsewhere. No sockets and no clock here."""

import base64
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from warmproxy.admin.attention import Level, of_daemon, of_pool, rank, worst
from warmproxy.admin.charts import charts, text_of
from warmproxy.admin.history import Lately
from warmproxy.admin.style import STYLE
from warmproxy.admin.table import (
    COLUMNS,
    REFRESH,
    Asked,
    Row,
    Said,
    begin_table,
    in_order,
    table_row,
)
from warmproxy.admin.words import share, span

PIECE = 10
"""Rows that are made at once: less than a millisecond's work."""
SHOWN = 100
"""Rows that are shown where not all are asked for."""
SENTENCES = 12
"""That the list of what needs attention has at the most."""

SECURITY_POLICY = (
    "default-src 'none'; img-src data:; style-src 'sha256-"
    + base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    + "'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

FIELDS = (
    f"Content-Security-Policy: {SECURITY_POLICY}\r\n"
    "X-Content-Type-Options: nosniff\r\n"
    "Referrer-Policy: no-referrer\r\n"
    "Vary: Accept\r\n"
)
"""Of the answer's head."""


def page(
    how: Asked, daemon: Said, lately: Lately, pools: Iterable[tuple[Said, Sequence[int]]]
) -> Iterator[bytes]:
    """The page. `pools` gives what /pools says of each, and how many were warm lately; it is read
    in portions, with an empty piece after each, before the first of the page."""
    rows: list[Row] = []
    rest = iter(pools)
    while some := list(islice(rest, PIECE)):
        rows += (Row(pool, warm, of_pool(pool)) for pool, warm in some)
        yield b""
    troubled = sorted(
        (row for row in rows if worst(row.notes) > Level.NOTE),
        key=lambda row: rank(row.pool, row.notes),
    )
    yield _head(how, daemon, lately, rows, troubled).encode()
    yield begin_table(how, len(rows)).encode()
    ordered = iter(in_order(rows, how.sort)[: None if how.all else SHOWN])
    while some_rows := list(islice(ordered, PIECE)):
        yield "".join(map(table_row, some_rows)).encode()
    yield _end(how, len(rows)).encode()


def _head(how: Asked, daemon: Said, lately: Lately, rows: list[Row], troubled: list[Row]) -> str:
    gone = daemon.get("forgotten") or {}

    def total(name: str) -> Any:
        return sum(row.pool[name] for row in rows) + gone.get(name, 0)

    notes = of_daemon(daemon)
    level = max(worst(notes), worst(troubled[0].notes) if troubled else Level.FINE)
    said = len(notes) + len(troubled)
    title = f"{said} to look at · warmproxy" if said else "warmproxy"
    hits, misses = total("hits"), total("misses")
    facts = [
        ("Saved", span(total("saved_seconds")), "of waiting for dials, since the start"),
        ("Hit ratio", share(hits, misses), f"{hits:,} of {hits + misses:,}"),
        ("Requests", f"{hits + misses + total('failed'):,}", "that asked for a connection"),
        ("Up", span(daemon["uptime"]), f"clients {daemon['clients']}, tunnels {daemon['tunnels']}"),
    ]
    refresh = f'<meta http-equiv="refresh" content="{how.refresh}">' if how.refresh else ""
    color = ("2a9d4a", "2a9d4a", "d98a00", "d33")[level]
    icon = (
        "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 8 8'%3E"
        f"%3Ccircle cx='4' cy='4' r='4' fill='%23{color}'/%3E%3C/svg%3E"
    )
    if how.refresh:
        other, text = replace(how, refresh=0), "stop"
        every = f"shown anew every {how.refresh} s"
    else:
        other, text = replace(how, refresh=REFRESH), "start again"
        every = "not shown anew by itself"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{title}</title>\n{refresh}\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f'<link rel="icon" href="{icon}">\n<style>{STYLE}</style>\n</head>\n<body>\n'
        '<a class="skip" href="#pools">To the table</a>\n'
        f"<header>\n<h1>warmproxy <small>{text_of(daemon['version'])}</small></h1>\n"
        f'<p class="refresh">{every}: <a href="{text_of(other.link())}">{text}</a></p>\n'
        "</header>\n<main>\n<dl>\n"
        + "".join(
            f"<div><dt>{name}</dt><dd>{value}<small>{more}</small></dd></div>\n"
            for name, value, more in facts
        )
        + "</dl>\n"
        + charts(lately)
        + _attention(notes, troubled)
    )


def _attention(notes: list[tuple[Level, str]], troubled: list[Row]) -> str:
    if not notes and not troubled:
        return '<p class="fine"><span aria-hidden="true">✓</span> Nothing needs attention.</p>\n'
    items = [f'<li class="is-{level.name.lower()}">{text_of(text)}</li>' for level, text in notes]
    for row in troubled[:SENTENCES]:
        level, text = row.notes[0]
        row.told = 1
        origin = f"<b>{text_of(row.pool['origin'])}</b>"
        items.append(f'<li class="is-{level.name.lower()}">{origin} {text_of(text)}</li>')
    if len(troubled) > SENTENCES:
        items.append(f"<li>and {len(troubled) - SENTENCES} more origins, in the table</li>")
    return (
        '<section aria-labelledby="attention">\n<h2 id="attention">Needs attention</h2>\n<ul>\n'
        + "\n".join(items)
        + "\n</ul>\n</section>\n"
    )


def _end(how: Asked, count: int) -> str:
    empty, more = "", ""
    if not count:
        text = "Nothing is configured to be warm, and nothing was asked for yet."
        empty = f'<tr><td colspan="{len(COLUMNS)}">{text}</td></tr>\n'
    if count > SHOWN:
        if how.all:
            text = f"Show {SHOWN} only"
        else:
            text = f"The first {SHOWN} are shown. Show all {count}"
        more = f'<p><a href="{text_of(replace(how, all=not how.all).link())}">{text}</a></p>\n'
    return (
        f"{empty}</tbody>\n</table>\n</div>\n{more}</main>\n"
        '<footer><a href="/pools">as JSON</a> <a href="/metrics">for Prometheus</a>'
        ' <a href="/readyz?verbose">ready?</a></footer>\n</body>\n</html>\n'
    )
