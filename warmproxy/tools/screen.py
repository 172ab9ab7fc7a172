"""`warmproxy status --watch` on a terminal: the status page in text, drawn by rich, which is the
extra `warmproxy[watch]`. The only importer of it."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

from warmproxy.admin.attention import Level, of_daemon, of_pool, rank, worst
from warmproxy.admin.words import about, millis, safe, share, span

Said = Mapping[str, Any]

SQUARES = 8
"""That stand for the target at the most."""
CHART = 30
"""Characters of the chart of requests."""
REDRAWS = 2
"""A second: after so long a window of another size is filled."""
COLORS = {Level.FINE: "green", Level.NOTE: "", Level.WARN: "yellow", Level.BAD: "red"}
COLUMNS = (
    ("ORIGIN", 0),
    ("WARM", 0),
    ("FRESH", 5),
    ("USED", 5),
    ("ACTIVE", 3),
    ("WAITING", 3),
    ("HITS", 1),
    ("DIAL", 4),
    ("SAVED", 2),
    ("IDLE LIMITS", 7),
    ("LAST CLOSE", 6),
    ("LAST ERROR", 8),
)
"""(title, rank): where not all have room those with the highest rank are left out first."""
TEXTS = ("ORIGIN", "WARM", "IDLE LIMITS", "LAST CLOSE", "LAST ERROR")
ERROR = 40
"""Characters of a last error."""


def watch(fetch: Callable[[], Said], every: float) -> None:
    """Draw what `fetch` gives, again each so many seconds, until Ctrl-C; whatever the window's size
    is. `fetch` may raise OSError and ValueError: what was there stays, with the reason above it."""
    said: Said | None = None
    with Live(Text("..."), console=Console(), screen=True, refresh_per_second=REDRAWS) as live:
        while True:
            try:
                said, error = fetch(), ""
            except (OSError, ValueError) as problem:
                error = str(problem)
            live.update(Screen(said, error, time.strftime("%H:%M:%S")), refresh=True)
            time.sleep(every)


class Screen:
    """What /pools says, in the room that there is."""

    def __init__(self, said: Said | None, error: str, clock: str) -> None:
        self._said = said
        self._error = error
        self._clock = clock

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, height = options.max_width, options.height or console.height
        lines = [Text(safe(self._error), style="red")] if self._error else []
        if self._said is None:
            yield from lines
            return
        pools = sorted(
            ((pool, of_pool(pool)) for pool in self._said["pools"]),
            key=lambda one: rank(*one),
        )
        lines += header(self._said, self._clock)
        lines += _troubles(self._said, pools, most=max(1, height // 4))
        for line in lines:
            line.truncate(width, overflow="ellipsis")
        room = height - len(lines) - 2  # the titles, and what is not shown
        rows = [_cells(pool, worst(notes)) for pool, notes in pools]
        shown = rows if len(rows) <= room + 1 else rows[: max(0, room)]
        parts: list[Text | Table] = [*lines, table(shown, width)]
        if len(shown) < len(rows):
            parts.append(Text(f"and {len(rows) - len(shown)} more", style="dim"))
        yield Group(*parts)


def header(said: Said, clock: str) -> list[Text]:
    """Two lines: what it is, and what it is worth."""
    daemon, totals = said.get("daemon") or {}, said["totals"]
    gone = daemon.get("forgotten") or {}
    hits, misses, saved = (
        totals[name] + gone.get(name, 0) for name in ("hits", "misses", "saved_seconds")
    )
    first = Text.assemble(
        ("warmproxy ", "bold"), safe(said["version"]), f"  up {span(daemon.get('uptime'))}", "  "
    )
    first.append(clock, "dim")
    second = Text.assemble(
        "saved ", (span(saved), "bold"), "  hit ratio ", (share(hits, misses), "bold")
    )
    rates = (said.get("history") or {}).get("per_second") or []
    if rates:
        second.append("  requests/s ")
        second.append(f"{rates[-1]:.3g} ", "bold")
        second.append(bars(rates[-CHART:]), "cyan")
    return [first, second]


def bars(values: Sequence[float]) -> str:
    """A chart one character high."""
    most = max(values)
    return "".join("▁▂▃▄▅▆▇█"[round(7 * value / most) if most else 0] for value in values)


def _troubles(
    said: Said, pools: Sequence[tuple[Said, list[tuple[Level, str]]]], most: int
) -> list[Text]:
    """What needs attention, a line for each."""
    found = [(level, text) for level, text in of_daemon(said.get("daemon") or {})]
    for pool, notes in pools:
        if notes and notes[0][0] > Level.NOTE:
            found.append((notes[0][0], f"{safe(pool['origin'])}: {notes[0][1]}"))
    lines = [Text(f"! {text}", style=COLORS[level]) for level, text in found[:most]]
    if len(found) > most:
        lines.append(Text(f"and {len(found) - most} more", style="dim"))
    return [Text(), *lines, Text()]


def table(rows: Sequence[Sequence[Text]], width: int) -> Table:
    """The rows with as many columns as `width` characters hold."""
    widths = [
        max(len(title), *(row[i].cell_len for row in rows)) if rows else len(title)
        for i, (title, _) in enumerate(COLUMNS)
    ]
    there = fitting(widths, width)
    found = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for i in there:
        title = COLUMNS[i][0]
        found.add_column(
            title,
            justify="left" if title in TEXTS else "right",
            no_wrap=True,
            overflow="ellipsis",
        )
    for row in rows:
        found.add_row(*(row[i] for i in there))
    return found


def fitting(widths: Sequence[int], width: int) -> list[int]:
    """Which columns are shown, two characters apart: the first two always."""
    there = list(range(len(widths)))
    while sum(widths[i] + 2 for i in there) - 2 > width:
        last = max(there, key=lambda i: COLUMNS[i][1])
        if not COLUMNS[last][1]:
            break
        there.remove(last)
    return there


def _cells(pool: Said, level: Level) -> list[Text]:
    warm, target = pool["fresh"] + pool["used"], pool["target_idle"]
    squares = min(max(warm, target), SQUARES)
    filled = squares if warm >= target else min(squares - 1, round(squares * warm / target))
    drawn = f"{'■' * filled}{'□' * (squares - filled)} {warm}/{target}"
    color = COLORS[level]
    close, dial = pool.get("last_close"), pool.get("dial_seconds") or {}
    limits = (pool.get("idle_limits") or {}).items()
    error = safe(pool.get("last_error") or "-")
    origin = safe(pool["origin"]) + ("" if pool["configured"] else " *")
    return [
        Text(origin, style=color if level > Level.NOTE else ""),
        Text(drawn.strip(), style=color or "green"),
        *(Text(str(pool[name])) for name in ("fresh", "used", "active", "waiting")),
        Text(share(pool["hits"], pool["misses"])),
        Text(millis(dial["mean"]) if dial.get("mean") else "-"),
        Text(span(pool["saved_seconds"])),
        Text(", ".join(f"{safe(k)} {span(s)}" for k, s in limits if s is not None) or "-"),
        Text(f"{safe(close['reason'])}, {about(close['ago'])} ago" if close else "-"),
        Text(error if len(error) <= ERROR else f"{error[:ERROR]}…"),
    ]
