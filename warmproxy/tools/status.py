"""`warmproxy status`: the pools as a table in the terminal."""

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from warmproxy.admin.words import safe, span
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
HINT = "\nWith pip install 'warmproxy[watch]' this fits the window and says what needs attention.\n"


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
    on_terminal = every is not None and sys.stdout.isatty() and not as_json
    if on_terminal and every is not None and (watch := _screen()) is not None:
        watch(lambda: _fetch(address), every)
    while True:
        try:
            pools = _fetch(address)
            shown = json.dumps(pools, indent=2) + "\n" if as_json else table(pools)
        except (OSError, ValueError) as error:
            if every is None:
                print(f"warmproxy status: {error}", file=sys.stderr)
                return 1
            shown = f"{error}\n"
        if on_terminal:
            clock = time.strftime("%H:%M:%S")
            shown = f"{CLEAR}{clock}  {authority(address)}\n\n{shown}{HINT}"
        sys.stdout.write(shown)
        sys.stdout.flush()
        if every is None:
            return 0
        pause(every)


def _screen() -> Callable[[Callable[[], Mapping[str, Any]], float], None] | None:
    """What draws on a terminal, or None where the extra is not installed."""
    try:
        from warmproxy.tools.screen import watch
    except ModuleNotFoundError:
        return None
    return watch


def _fetch(address: tuple[str, int]) -> dict[str, Any]:
    """What /pools says. Raises OSError, or ValueError where that is not what `table` can show."""
    try:
        code, body = get(address, "/pools")
    except ConnectionRefusedError as error:
        raise OSError(f"{error}; is 'warmproxy run' running?") from None
    if code != 200:
        raise ValueError(f"/pools on {authority(address)} says {code}; is that warmproxy?")
    try:
        pools: dict[str, Any] = json.loads(body)
        table(pools)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"/pools on {authority(address)} is not warmproxy's") from None
    return pools


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
        safe(pool["origin"])
        + ("" if pool["configured"] else " *")
        + (" (intercepted)" if pool.get("intercepted") else ""),
        f"{warm}/{pool['target_idle']}",
        *(str(pool[name]) for name in counts),
        span(pool.get("oldest_age")),
        *(str(pool[name]) for name in ("dials", "hits", "misses")),
        span(pool["saved_seconds"]),
        f"{safe(close['reason'])}, {span(close['ago'])} ago, aged {span(close['age'])}"
        if close
        else "-",
    )


def _align(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = zip(COLUMNS, row, widths, strict=True)
    return "  ".join(
        cell.ljust(width) if column in LEFT else cell.rjust(width) for column, cell, width in cells
    ).rstrip()
