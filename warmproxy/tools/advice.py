"""What `doctor` makes of its findings: an [[upstream]] table, and sentences beside it. Pure."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from warmproxy.policy.learn import MARGIN_SECONDS, MARGIN_SHARE
from warmproxy.settings import OriginSettings
from warmproxy.tools.direct import Url
from warmproxy.tools.examine import Findings
from warmproxy.tools.watch import Limit

WARM = 2
"""Recommended where nothing speaks against it: the default."""
TOO_SHORT = 2.0
"""Seconds: a limit below which holding connections is churn."""
SHORT = 10.0
"""Seconds: a limit below which one connection is enough of it."""
SMALL = 0.001
"""Seconds saved that are not worth the way through a proxy."""
LONG = 60.0
"""Seconds: who watches for less has not seen the limits that servers commonly have."""
AT_ONCE = 0.1
"""Seconds, as `idle_timeout`, for an origin that a used connection keeps from its work."""


@dataclass(frozen=True, slots=True)
class Savings:
    """Seconds that a request gains by a warm connection; None where there is no such way."""

    tunnel: float | None = None
    """By TCP that is there."""
    forwarded: float | None = None
    """By TLS, or for http by TCP, that is there."""


def savings(url: Url, found: Findings) -> Savings:
    dials = [dial.seconds for dial in found.dials if dial.seconds is not None]
    if not dials:
        return Savings()
    tcp = (found.dns or 0.0) + dials[0]
    if url.scheme == "http":
        return Savings(forwarded=tcp)
    return Savings(tcp, tcp + found.tls.seconds if found.tls else None)


def notes(url: Url, found: Findings, limits: dict[str, Limit]) -> list[str]:
    """What the one who configures this origin should know, the most serious first."""
    said = []
    if found.held_by:
        open_then = sum(limit.end == "not measured" for limit in limits.values())
        said.append(
            "WARNING: an idle connection holds a worker of this origin. While "
            f"{_count(open_then)} open, another was not served for {found.held_for:.1f} s, until "
            f"{' and '.join(f'the {kind} one' for kind in found.held_by)} had been closed. Warm "
            "connections of that kind would keep everybody else out; for the same reason the "
            "limits were not measured."
        )
        if url.scheme == "https" and _held(found):
            said.append(
                "Set learn_requests = 0 as well, at the top level: requests with https:// in "
                "absolute-form would have it warmed otherwise."
            )
    elif found.looks_sync:
        said.append(
            "WARNING: gunicorn that closes after each answer has sync workers, most likely: each "
            "idle connection holds one of them. Here others were free. The limits were not "
            "measured, so as to hold none for long."
        )
    if found.beside_error:
        said.append(f"A request beside idle connections failed: {found.beside_error}.")
    elif found.uneven:
        said.append(
            "It answers too unevenly to tell what idle connections do to it: a request took "
            f"{found.alone or 0.0:.1f} s, then {found.beside or 0.0:.1f} s."
        )
    wrote = {limit.said for limit in limits.values() if limit.end in ("fin", "reset", "bytes")}
    said += [
        f"It writes '{line}' on idle connections. Through warmproxy that reaches no client."
        for line in sorted(wrote - {""})
    ]
    said += [
        f"It answered {status}: it may have enough to do already."
        for status in (408, 429, 503)
        if any(asked.status == status for asked in found.asked)
    ]
    if url.scheme == "http" and found.asked and found.asked[0].status == 400:
        said.append("It answered 400 to GET: where it speaks TLS, ask for https://.")
    watched = [limit.seconds for limit in limits.values() if limit.end == "open"]
    if not found.held_by and watched and (shortest := min(w or 0.0 for w in watched)) < LONG:
        for_so_long = f"Idle connections were watched for {at_least(shortest)} only"
        said.append(f"{for_so_long}: common limits are longer.")
    saved = [s for s in _both(savings(url, found)) if s is not None]
    if saved and max(saved) < SMALL and not found.error:
        said.append("It is so near that there is next to nothing to gain.")
    return said


def table(url: Url, found: Findings, limits: dict[str, Limit], ca_file: str | None) -> str | None:
    """An [[upstream]] table with the reasons behind its lines; None while too little is known."""
    if found.error or not found.knows_workers:
        return None
    rows: list[tuple[str, object, str]] = [("url", url.origin, "")]
    held = _held(found)
    if url.scheme == "http":
        rows.append(("warm", *_warm(limits.get("fresh"), held)))
    else:
        raw_held = held or "raw" in found.held_by
        rows.append(("warm", *_warm(limits.get("raw"), raw_held, "tunnels, ")))
        rows.append(("tls", *_warm(limits.get("fresh"), held, "TLS done, ")))
        if ca_file:
            rows.append(("ca_file", ca_file, ""))
    if "used" in found.held_by:
        rows.append(("idle_timeout", AT_ONCE, "used ones hold a worker, too"))
    else:
        rows += _idle_timeout(limits.get("used"), found)
    return _toml(rows)


def _held(found: Findings) -> bool:
    """Whether connections that requests could use hold a worker; raw TCP on a TLS port is none."""
    return bool(set(found.held_by) - {"raw"}) or found.looks_sync


def at_least(seconds: float) -> str:
    """A time that was not over, never rounded up."""
    return f"{int(seconds)} s" if seconds >= 10 else f"{int(seconds * 10) / 10:g} s"


def _warm(limit: Limit | None, held: bool, what: str = "") -> tuple[int, str]:
    """How many, and why."""
    if held:
        return 0, "do not warm: an idle connection holds a worker"
    if limit is None or limit.seconds is None:
        return WARM, ""
    if limit.end == "open":
        return WARM, f"{what}kept for longer than {at_least(limit.seconds)}"
    if limit.seconds < TOO_SHORT:
        return 0, f"{what}closed after {limit.seconds:.1f} s: too soon to hold any"
    dials = 60 / limit.seconds
    if limit.seconds < SHORT:
        return 1, f"{what}kept for {limit.seconds:.1f} s: {dials:.0f} dials a minute"
    return WARM, f"{what}kept for {limit.seconds:.1f} s"


def _idle_timeout(limit: Limit | None, found: Findings) -> list[tuple[str, object, str]]:
    """For used connections: a little less than what the origin does, or says that it does."""
    if limit is None or limit.end == "not kept":
        return []
    seconds, reason = inf, ""
    if found.hint:
        seconds, reason = found.hint, f"it says Keep-Alive: timeout={found.hint:g}"
    if limit.seconds is not None and limit.end != "open" and limit.seconds <= seconds:
        seconds, reason = limit.seconds, f"used ones are closed after {limit.seconds:.1f} s"
    if seconds > OriginSettings().idle_timeout:
        return []
    safe = seconds - max(seconds * MARGIN_SHARE, MARGIN_SECONDS)
    return [("idle_timeout", round(max(safe, AT_ONCE), 1), reason)]


def _count(number: int) -> str:
    return f"{number} were" if number > 1 else "one was"


def _both(saved: Savings) -> tuple[float | None, float | None]:
    return saved.tunnel, saved.forwarded


def _toml(rows: Sequence[tuple[str, object, str]]) -> str:
    lines = [(f"{key} = {json.dumps(value)}", why) for key, value, why in rows]
    width = max((len(line) for line, why in lines if why), default=0)
    text = [f"{line:<{width}}  # {why}" if why else line for line, why in lines]
    return "\n".join(["[[upstream]]", *text, ""])
