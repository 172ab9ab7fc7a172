"""`warmproxy status`: the pools as a table in the terminal."""

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from warmproxy.tools.healthcheck import authority, get

COLUMNS = (
    "ORIGIN",
    "WARM",
    "FRESH",
    "USED",
    "ACTIVE",
    "DIALLING",
    "WAITING",
    "OLDEST",
    "DIALS",
    "HITS",
    "MISSES",
    "SAVED",
    "LAST CLOSE",
)
LEFT = ("ORIGIN", "LAST CLOSE")
CLEAR = "\x1b[H\x1b[2J"


def status(
    address: tuple[str, int],
    *,
    as_json: bool = False,
    every: float | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> int:
    """Print the pools of the daemon whose admin listener is at (host, port).

    With `every`, again each so many seconds, until Ctrl-C, also while nothing answers. Returns 0,
    or 1 (and one line on stderr) where there is no answer to show.
    """
    while True:
        try:
            shown = _fetch(address, as_json)
        except (OSError, ValueError) as error:
            if every is None:
                print(f"warmproxy status: {error}", file=sys.stderr)
                return 1
            shown = f"{error}\n"
        if every is not None and sys.stdout.isatty():
            shown = f"{CLEAR}{time.strftime('%H:%M:%S')}  {authority(address)}\n\n{shown}"
        sys.stdout.write(shown)
        sys.stdout.flush()
        if every is None:
            return 0
        pause(every)


def _fetch(address: tuple[str, int], as_json: bool) -> str:
    try:
        code, body = get(address, "/pools")
    except ConnectionRefusedError as error:
        raise OSError(f"{error}; is 'warmproxy run' running?") from None
    if code != 200:
        raise ValueError(f"/pools on {authority(address)} says {code}; is that warmproxy?")
    try:
        pools = json.loads(body)
        return json.dumps(pools, indent=2) + "\n" if as_json else table(pools)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"/pools on {authority(address)} is not warmproxy's") from None


def table(pools: Mapping[str, Any]) -> str:
    """What /pools says, as aligned text: a row per origin, its last error below, the totals."""
    rows = [COLUMNS, *(_row(pool) for pool in pools["pools"])]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    lines = [_align(row, widths) for row in rows]
    if not pools["pools"]:
        lines = ["No pools: nothing is configured to be warm, and nothing was asked for yet."]
    errors = [pool for pool in pools["pools"] if pool.get("last_error")]
    if errors:
        lines.append("")
        lines += [f"{safe(pool['origin'])}: {safe(pool['last_error'])}" for pool in errors]
    totals = [
        f"{safe(key)} {value:.6g}"
        for key, value in (pools.get("totals") or {}).items()
        if isinstance(value, int | float)
    ]
    note = "" if all(pool["configured"] for pool in pools["pools"]) else "* not configured; "
    summary = f"totals of warmproxy {safe(pools['version'])}: {', '.join(totals) or 'none'}"
    lines += ["", note + summary]
    return "\n".join(lines) + "\n"


def _row(pool: Mapping[str, Any]) -> tuple[str, ...]:
    warm = pool["fresh"] + pool["used"]
    counts = ("fresh", "used", "active", "dialling", "waiting")
    close = pool.get("last_close")
    return (
        safe(pool["origin"]) + ("" if pool["configured"] else " *"),
        f"{warm}/{pool['target_idle']}",
        *(str(pool[name]) for name in counts),
        _seconds(pool.get("oldest_age")),
        *(str(pool[name]) for name in ("dials", "hits", "misses")),
        _seconds(pool["saved_seconds"]),
        f"{safe(close['reason'])}, {_seconds(close['ago'])} ago, aged {_seconds(close['age'])}"
        if close
        else "-",
    )


def _align(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = zip(COLUMNS, row, widths, strict=True)
    return "  ".join(
        cell.ljust(width) if column in LEFT else cell.rjust(width) for column, cell, width in cells
    ).rstrip()


def _seconds(value: float | None) -> str:
    """A duration in three digits or so."""
    if value is None:
        return "-"
    if value < 100:
        return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s"


def safe(text: object) -> str:
    """Text that came over the network, without what would move the terminal's cursor."""
    return "".join(c if c.isprintable() else "?" for c in str(text))
