"""The table of the status page: its columns, their order, and a row for each origin."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qs

from warmproxy.admin.attention import Level, rank, worst
from warmproxy.admin.charts import line, svg, text_of
from warmproxy.admin.words import about, millis, safe, share, span

Said = dict[str, Any]
"""What /pools says of one pool, or of the daemon."""

SQUARES = 8
"""That stand for the target at the most."""
REFRESH = 5
"""Seconds between two pages where nothing else is asked for."""
ERROR = 160
"""Characters of a last error that are shown."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What the page was asked for by."""

    sort: str = ""
    """A column's, with "-" the other way round; "" for what needs attention first."""
    all: bool = False
    refresh: int = REFRESH
    """Seconds; 0: never."""

    def link(self) -> str:
        """The address of the page that is so."""
        words = [f"sort={self.sort}"] * bool(self.sort) + ["all=1"] * self.all
        words += [f"refresh={self.refresh}"] * (self.refresh != REFRESH)
        return "?" + "&".join(words) if words else "/"


def asked(query: str) -> Asked:
    """The query string of a page, in which what makes no sense is as if it were not there."""
    try:
        given = {name: values[0] for name, values in parse_qs(query, max_num_fields=16).items()}
    except ValueError:
        return Asked()
    sort, refresh = given.get("sort", ""), given.get("refresh", "")
    return Asked(
        sort if sort.removeprefix("-") in BY_KEY else "",
        given.get("all", "") in ("1", "true", "yes"),
        min(int(refresh), 3600) if re.fullmatch("[0-9]{1,5}", refresh) else REFRESH,
    )


@dataclass(slots=True)
class Row:
    """One origin."""

    pool: Said
    lately: Sequence[int]
    """How many were warm, oldest first."""
    notes: list[tuple[Level, str]]
    told: int = 0
    """Notes that are said above the table."""


@dataclass(frozen=True, slots=True)
class Column:
    key: str
    """In ?sort=; "" where it cannot be sorted by."""
    title: str
    means: str
    cell: Callable[[Row], str]
    order: Callable[[Said], Any] = bool
    """The least comes first."""
    is_number: bool = False


def _origin(row: Row) -> str:
    pool = row.pool
    tags = []
    if not pool["configured"]:
        tags.append(("learned", "Not configured: pooled because clients ask for it"))
    if pool.get("verified") is False:
        tags.append(("unverified", "Certificates are not verified (verify = false)"))
    if pool.get("intercepted"):
        tags.append(("intercepted", "Clients' TLS ends here (intercept = true)"))
    if pool.get("held_back"):
        tags.append(("held back", "Idle connections did it harm"))
    for boost in pool.get("boosts") or ():
        why = f"{boost['why']}: at least {boost['count']} for {span(boost['seconds_left'])}"
        tags.append((f"at least {boost['count']}", why))
    marks = "".join(f' <span class="tag" title="{text_of(m)}">{text_of(n)}</span>' for n, m in tags)
    return f"<span>{text_of(pool['origin'])}</span>{marks}"


def _warm(row: Row) -> str:
    pool = row.pool
    warm, target = pool["fresh"] + pool["used"], pool["target_idle"]
    squares = min(max(warm, target), SQUARES)
    filled = squares if warm >= target else min(squares - 1, round(squares * warm / target))
    if warm and target:
        filled = max(1, filled)
    drawn = "■" * filled + f"<i>{'□' * (squares - filled)}</i>"
    dialling = f"<br><small>{pool['dialling']} on the way</small>" if pool["dialling"] else ""
    return f'<span class="squares" aria-hidden="true">{drawn}</span> {warm}/{target}{dialling}'


def _lately(row: Row) -> str:
    values = row.lately
    if len(values) < 2:
        return ""
    most = max(1, row.pool["target_idle"], *values)
    label = f"between {min(values)} and {max(values)} warm in the last hour"
    return svg(line([value / most for value in values], "line"), len(values), label)


def _limits(row: Row) -> str:
    known = {k: s for k, s in (row.pool.get("idle_limits") or {}).items() if s is not None}
    return "<br>".join(f"{text_of(kind)} {span(seconds)}" for kind, seconds in known.items()) or "-"


def _last_close(row: Row) -> str:
    close = row.pool.get("last_close")
    if not close:
        return "-"
    return (
        f"{text_of(close['reason'])}<br><small>{about(close['ago'])} ago, after"
        f" {span(close['age'])}</small>"
    )


def _hits(row: Row) -> str:
    hits, misses = row.pool["hits"], row.pool["misses"]
    return f"{share(hits, misses)}<br><small>of {hits + misses:,}</small>"


def _dial(row: Row) -> str:
    dial = row.pool.get("dial_seconds") or {}
    if not dial.get("mean"):
        return "-"
    return f"{millis(dial['mean'])}<br><small>lately {millis(dial['recent'])}</small>"


def _last_error(row: Row) -> str:
    error = safe(row.pool.get("last_error") or "")
    if len(error) > ERROR:
        return f'<span title="{text_of(error)}">{text_of(error[:ERROR])}…</span>'
    return text_of(error) or "-"


def _ratio(pool: Said) -> float:
    asked = pool["hits"] + pool["misses"]
    return pool["hits"] / asked if asked else 2.0


def _number(name: str) -> Callable[[Row], str]:
    return lambda row: f"{row.pool[name]:,}"


def _most(name: str) -> Callable[[Said], Any]:
    return lambda pool: -pool[name]


COLUMNS = (
    Column("origin", "Origin", "What connections go to", _origin, lambda p: p["origin"]),
    Column(
        "warm",
        "Warm",
        "Open and idle, against how many there should be",
        _warm,
        lambda p: p["fresh"] + p["used"] - p["target_idle"],
    ),
    Column("", "Last hour", "How many were warm", _lately),
    *(
        Column(name, title, means, _number(name), _most(name), True)
        for name, title, means in (
            ("fresh", "Fresh", "Idle, never carried a request"),
            ("used", "Used", "Idle, carried a request before"),
            ("active", "Active", "Carry a request or a tunnel now"),
            ("waiting", "Waiting", "Requests that wait for a connection"),
        )
    ),
    Column("hits", "Hit ratio", "Requests that found a warm connection", _hits, _ratio, True),
    Column(
        "dial",
        "Dial",
        "What a dial takes: the mean since the start, and a slow one of the last",
        _dial,
        lambda p: -((p.get("dial_seconds") or {}).get("mean") or 0.0),
        True,
    ),
    Column(
        "saved",
        "Saved",
        "Dial time of the connections that were handed out warm",
        lambda row: span(row.pool["saved_seconds"]),
        _most("saved_seconds"),
        True,
    ),
    Column("", "Idle limits", "After how long the origin closes idle connections", _limits),
    Column(
        "close",
        "Last close",
        "Why a connection ended last, when, and how long it had been idle or active",
        _last_close,
        lambda p: p["last_close"]["ago"] if p.get("last_close") else 1e18,
    ),
    Column(
        "error",
        "Last error",
        "Of a dial; it may be long over",
        _last_error,
        lambda p: (not p.get("last_error"), p.get("last_error") or ""),
    ),
)

BY_KEY = {column.key: column for column in COLUMNS if column.key}


def in_order(rows: list[Row], sort: str) -> list[Row]:
    """The rows as `Asked.sort` wants them."""
    if not sort:
        return sorted(rows, key=lambda row: rank(row.pool, row.notes))
    order = BY_KEY[sort.removeprefix("-")].order
    return sorted(rows, key=lambda row: order(row.pool), reverse=sort.startswith("-"))


def begin_table(how: Asked, count: int) -> str:
    """All that comes before the first of `count` rows."""
    heads = []
    for column in COLUMNS:
        kind = ' class="number"' if column.is_number else ""
        text, current = column.title, ""
        if column.key:
            turned = column.key == how.sort
            link = replace(how, sort=f"-{column.key}" if turned else column.key).link()
            mark = ""
            if how.sort.removeprefix("-") == column.key:
                # numbers begin with the largest, so that one click shows what stands out
                up = column.key in ("origin", "warm", "hits", "close", "error")
                ascends = up is not how.sort.startswith("-")
                current = f' aria-sort="{"ascending" if ascends else "descending"}"'
                mark = f' <span aria-hidden="true">{"▲" if ascends else "▼"}</span>'
            text = f'<a href="{text_of(link)}">{column.title}{mark}</a>'
        heads.append(f'<th scope="col"{kind}{current} title="{text_of(column.means)}">{text}</th>')
    order = ""
    if how.sort:
        order = f' <a href="{text_of(replace(how, sort="").link())}">What needs attention first</a>'
    many = f"{count} origin{'s' * (count != 1)}"
    return (
        '<div class="wide" role="region" aria-labelledby="pools" tabindex="0">\n<table>\n'
        f'<caption id="pools">{many}.{order}</caption>\n'
        f"<thead><tr>{''.join(heads)}</tr></thead>\n<tbody>\n"
    )


def table_row(row: Row) -> str:
    """The row of an origin, and one below it with what is not said above the table."""
    level = worst(row.notes)
    first, *others = COLUMNS
    cells = "".join(
        f"<td{_NUMBER if column.is_number else ''}>{column.cell(row)}</td>" for column in others
    )
    drawn = (
        f'<tr class="is-{level.name.lower()}"><th scope="row">{first.cell(row)}</th>{cells}</tr>\n'
    )
    if notes := ". ".join(text_of(text) for _, text in row.notes[row.told :]):
        drawn += f'<tr><td class="says" colspan="{len(COLUMNS)}"><span>{notes}</span></td></tr>\n'
    return drawn


_NUMBER = ' class="number"'
