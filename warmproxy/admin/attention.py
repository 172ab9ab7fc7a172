"""What needs a person's attention, in sentences: of what /pools says. Shown by the status page and
by `warmproxy status`."""

from collections.abc import Mapping
from enum import IntEnum
from typing import Any

from warmproxy.admin.words import about, millis, safe, span

Said = Mapping[str, Any]
"""What /pools says of one pool, or of the daemon."""

BELOW = 30.0
"""Seconds below its target after which a pool is worth a word: a restart of its origin is not."""
EXPIRES = 14 * 86400.0
"""Seconds before the end of our authority from which on somebody should make another."""
LAG = 0.1
"""Seconds by which the event loop is late that requests feel."""


class Level(IntEnum):
    """How bad it is."""

    FINE = 0
    NOTE = 1
    """It works, and costs more than it should."""
    WARN = 2
    BAD = 3
    """Requests suffer, or soon will."""


def of_pool(pool: Said) -> list[tuple[Level, str]]:
    """Sentences about one origin, the worst first. They do not name it."""
    found = []
    failures = pool.get("dial_failures") or 0
    if failures:
        often = "the last dial failed" if failures == 1 else f"the last {failures} dials failed"
        found.append((Level.BAD, f"{often}: {safe(pool.get('last_error') or 'no reason known')}"))
    if held := pool.get("held_back"):
        reason = safe(held["reason"])
        if held["seconds"] > 0:
            text = f"left alone for {span(held['seconds'])}, idle connections did it harm: {reason}"
        else:
            text = f"on probation with one idle connection, they did it harm before: {reason}"
        found.append((Level.WARN, text))
    if pool.get("closes_at_once"):
        text = "it closes connections right after they are opened, so refills pause"
        found.append((Level.WARN, text))
    warm, target = pool["fresh"] + pool["used"], pool["target_idle"]
    below_for = pool.get("below_target_for") or 0.0
    if warm < target and below_for >= BELOW and not found:
        text = f"{warm} of {target} warm, below its target for {about(below_for)}"
        found.append((Level.WARN, text))
    if waiting := pool["waiting"]:
        text = f"{waiting} request{' waits' if waiting == 1 else 's wait'} for a connection"
        found.append((Level.WARN, text))
    if pool.get("costly"):
        limits = [s for s in (pool.get("idle_limits") or {}).values() if s is not None]
        after = f" after {span(min(limits))}" if limits else ""
        text = f"it closes idle connections{after}: keeping {target} warm takes many dials"
        found.append((Level.NOTE, text))
    return sorted(found, key=lambda one: -one[0])


def of_daemon(daemon: Said) -> list[tuple[Level, str]]:
    """Sentences about the daemon itself."""
    found = []
    if daemon.get("draining"):
        found.append((Level.BAD, "It is stopping: no new clients, the last exchanges end."))
    elif not daemon.get("accepting", True):
        text = (
            "It does not accept clients now: max_clients or the file descriptors are used up"
            f" ({daemon.get('clients', 0)} clients)."
        )
        found.append((Level.BAD, text))
    if silent := daemon.get("silent"):
        numbers = ", ".join(map(str, silent))
        text = f"Of its processes these do not answer: {numbers}. Their numbers are not here."
        found.append((Level.BAD, text))
    if not daemon.get("reload_is_good", True):
        text = "The last reload failed: the settings from before it hold. The log says why."
        found.append((Level.BAD, text))
    left = daemon.get("authority_seconds_left")
    if left is not None and left < EXPIRES:
        ends = f"expires in {about(left)}" if left > 0 else "has expired, so nobody is intercepted"
        text = f"The authority of intercepted origins {ends}: warmproxy ca rotate."
        found.append((Level.WARN if left > 0 else Level.BAD, text))
    if (lag := daemon.get("loop_lag") or 0.0) >= LAG:
        text = f"Its event loop was {millis(lag)} late a moment ago: it lacks CPU time."
        found.append((Level.WARN, text))
    return found


def worst(found: list[tuple[Level, str]]) -> Level:
    return max((level for level, _ in found), default=Level.FINE)


def rank(pool: Said, found: list[tuple[Level, str]]) -> tuple[int, bool, str]:
    """What comes first where pools are shown: what needs attention, then what is configured."""
    return -worst(found), not pool["configured"], pool["origin"]
