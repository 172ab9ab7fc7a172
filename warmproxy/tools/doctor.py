"""`warmproxy doctor`: what an origin does with connections that are opened ahead of requests.

It asks the origin itself; the daemon need not run. Exit status: 0, 1 where the origin cannot be
asked, 130 after Ctrl-C; what was found until then is printed all the same.
"""

import json
import os
import signal
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from warmproxy.admin.words import safe
from warmproxy.net.tls import make_context
from warmproxy.settings import TlsProfile
from warmproxy.tools.advice import at_least, notes, savings, table
from warmproxy.tools.direct import Url
from warmproxy.tools.examine import Examination, Findings

SHOW_EVERY = 0.2
"""Seconds between two looks at the progress, on a terminal."""
SAY_EVERY = 30.0
"""Seconds between two lines of it elsewhere."""
WIDTH = 79
LABEL = 12
KINDS = {"fresh": "fresh (never used)", "used": "used (one request)", "raw": "raw TCP"}
CLEAR_LINE = "\r\x1b[K"

Report = dict[str, Any]


def doctor(url: Url, *, wait: float, as_json: bool, ca_file: str | None = None) -> int:
    """Examine an origin for at most `wait` seconds and print what was found.

    `ca_file` (PEM) is trusted instead of the system's authorities. Returns the exit status. Raises
    StartError for a wrong `ca_file`.
    """
    trusted = str(Path(ca_file).absolute()) if ca_file else ""
    examination = Examination(url, make_context(TlsProfile(ca_file=trusted)))
    began = time.monotonic()
    examination.start()
    interrupted = False
    try:
        _wait(examination, wait)
    except KeyboardInterrupt:
        interrupted = True
    found = examination.found
    ended = time.monotonic()
    said = {**_report(url, found, ended, trusted), "seconds": round(ended - began, 3)}
    examination.stop()
    if said["stopped_while"] and not said["error"] and not interrupted:
        said["error"] = f"{wait:g} s were over while {said['stopped_while']}"
    if as_json:
        print(json.dumps(said, indent=2))
    elif said["addresses"] or not said["error"]:
        print("\n".join(_text(said)))
    if said["error"]:
        sys.stdout.flush()
        print(f"warmproxy doctor: {url}: {safe(said['error'])}", file=sys.stderr)
    if interrupted:
        return 128 + signal.SIGINT
    return 1 if said["error"] else 0


# ── while it waits ───────────────────────────────────────────────────────────────────────────


def _wait(examination: Examination, seconds: float) -> None:
    """Until all is known or the time is over. Shows the progress on stderr: one line that is
    rewritten on a terminal, a line now and then elsewhere."""
    began = time.monotonic()
    terminal = sys.stderr.isatty()
    every = SHOW_EVERY if terminal else SAY_EVERY
    shown = ""
    try:
        while (left := began + seconds - time.monotonic()) > 0:
            if terminal:
                columns = os.get_terminal_size(sys.stderr.fileno()).columns or WIDTH + 1
                line = _progress(examination.found, seconds - left, seconds)
                line = f"{line} (Ctrl-C prints what is known)"[: columns - 1]
                if line != shown:
                    print(CLEAR_LINE + line, end="", file=sys.stderr, flush=True)
                shown = line
            if examination.done.wait(min(every, left)):
                break
            if not terminal and left > every:
                line = _progress(examination.found, time.monotonic() - began, seconds)
                print(f"warmproxy doctor: {line}", file=sys.stderr, flush=True)
    finally:
        if terminal:
            print(CLEAR_LINE, end="", file=sys.stderr, flush=True)


def _progress(found: Findings, waited: float, seconds: float) -> str:
    now = time.monotonic()
    kinds = [
        f"{kind} open" if limit.end == "open" else f"{kind} {limit.seconds:.1f} s"
        for kind, limit in found.limits(now).items()
        if limit.seconds is not None
    ]
    what = ", ".join(kinds) if found.beside is not None and kinds else found.doing
    return f"{waited:.0f} of {seconds:.0f} s: {what}"


# ── what came out ────────────────────────────────────────────────────────────────────────────


def _report(url: Url, found: Findings, now: float, ca_file: str) -> Report:
    limits = found.limits(now)
    saved = savings(url, found)
    tls = found.tls
    return {
        "url": str(url),
        "server": found.server,
        "dns_ms": _ms(found.dns),
        "addresses": found.addresses,
        "connect": [
            {"family": d.family, "address": d.address, "ms": _ms(d.seconds), "error": d.error}
            for d in found.dials
        ],
        "tls": {
            "ms": _ms(tls.seconds) if tls else None,
            "version": tls.version if tls else None,
            "alpn": tls.alpn if tls else None,
            "tickets": tls.tickets if tls else None,
            "resumes": tls.resumes if tls else None,
            "verified": tls is not None,
            "error": found.tls_error,
        }
        if tls or found.tls_error
        else None,
        "answers": [
            {
                "method": asked.method,
                "status": asked.status,
                "http": asked.version,
                "keeps": asked.keeps,
                "ms": _ms(asked.seconds),
                "error": asked.error,
            }
            for asked in found.asked
        ],
        "keep_alive_timeout": found.hint,
        "workers": {
            "held_by": list(found.held_by) if found.knows_workers else None,
            "held_ms": _ms(found.held_for) if found.held_by else None,
            "alone_ms": _ms(found.alone),
            "beside_idle_ms": _ms(found.beside),
            "error": found.beside_error,
        },
        "limits": {
            kind: {
                "seconds": None if limit.seconds is None else round(limit.seconds, 3),
                "end": limit.end,
                "said": limit.said,
            }
            for kind in KINDS
            if (limit := limits.get(kind))
        },
        "saves_ms": {"tunnel": _ms(saved.tunnel), "forwarded": _ms(saved.forwarded)},
        "recommended": table(url, found, limits, ca_file),
        "notes": notes(url, found, limits),
        "connections": found.connections,
        "requests": found.requests,
        "stopped_while": "" if found.beside_error or found.beside else found.doing,
        "error": found.error,
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)


def _text(said: Report) -> Iterator[str]:
    """The report's lines, for 80 columns."""
    cost = f"{_count(said['connections'], 'connection')}, {_count(said['requests'], 'request')}"
    yield f"{safe(said['url'])}: {cost}, {said['seconds']:.0f} s"
    yield ""
    if said["addresses"]:
        name = "no name to look up" if said["dns_ms"] is None else f"{said['dns_ms']:.1f} ms"
        yield _row("DNS", f"{name} ({', '.join(said['addresses'])})")
    for dial in said["connect"]:
        took = dial["error"] or f"{dial['ms']:.1f} ms"
        yield _row(dial["family"], f"{took} ({dial['address']})")
    if said["tls"]:
        yield _row("TLS", _tls(said["tls"]))
    if said["answers"]:
        hint = said["keep_alive_timeout"]
        hinted = "" if hint is None else f"; it says timeout={hint:g}"
        yield _row("Keep-alive", ", ".join(map(_answer, said["answers"])) + hinted)
    if said["server"]:
        yield _row("Server", said["server"])
    if not said["stopped_while"] and not said["error"]:
        yield _row("Workers", _workers(said["workers"]))
    if said["limits"]:
        yield ""
        yield f"{'Idle connections':<22}{'are kept for':<22}and end in"
        yield from (_limit(kind, limit) for kind, limit in said["limits"].items())
    for note in [*_savings(said["saves_ms"]), *said["notes"]]:
        yield ""
        yield textwrap.fill(safe(note), WIDTH, break_on_hyphens=False)
    if said["recommended"]:
        yield ""
        yield "For the settings file:"
        yield ""
        yield said["recommended"].rstrip()
    elif not said["error"]:
        early = said["stopped_while"] and f": it was ended while {said['stopped_while']}"
        yield ""
        yield f"No settings to recommend{early}."


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' * (number != 1)}"


def _row(label: str, text: str) -> str:
    return textwrap.fill(
        safe(text),
        WIDTH,
        initial_indent=label.ljust(LABEL),
        subsequent_indent=" " * LABEL,
        break_on_hyphens=False,
    )


def _tls(tls: Report) -> str:
    if tls["error"]:
        return str(tls["error"])
    tickets = "" if tls["tickets"] is None else f", {_count(tls['tickets'], 'ticket')}"
    resumes = {None: "", True: ", sessions are resumed", False: ", sessions are not resumed"}
    return (
        f"{tls['ms']:.1f} ms; {tls['version']}, ALPN {tls['alpn'] or 'none'}, certificate "
        f"verified{tickets}{resumes[tls['resumes']]}"
    )


def _answer(asked: Report) -> str:
    if asked["error"]:
        return f"{asked['method']} fails ({asked['error']})"
    version = " by HTTP/1.0" if asked["http"] == "1.0" else ""
    return (
        f"{asked['method']} {'keeps' if asked['keeps'] else 'CLOSES'} ({asked['status']}{version})"
    )


def _workers(workers: Report) -> str:
    if workers["error"]:
        return "not known: a request beside idle connections failed, see below"
    if workers["held_by"]:
        return "AN IDLE CONNECTION HOLDS ONE, see below"
    alone, beside = workers["alone_ms"], workers["beside_idle_ms"]
    return f"{beside:.1f} ms for a request beside idle connections, {alone:.1f} ms without"


def _limit(kind: str, limit: Report) -> str:
    kept = {
        "open": f"longer than {at_least(limit['seconds'] or 0.0)}",
        "not kept": "not at all",
        "not measured": "(not measured)",
    }.get(limit["end"], f"{limit['seconds'] or 0.0:.1f} s")
    said = safe(limit["said"])[:40]
    wrote = f"'{said}', then " if said else ""
    ends = {
        "fin": f"{wrote}FIN",
        "reset": f"{wrote}RST",
        "bytes": f"'{said}', left open",
        "alert": f"TLS alert: {said}",
        "error": f"TLS error: {said}",
    }.get(limit["end"], "")
    return f"  {KINDS[kind]:<20}{kept:<22}{ends}".rstrip()


def _savings(saved: Report) -> list[str]:
    if saved["forwarded"] is None:
        return []
    warm = "A warm connection would save a request"
    if saved["tunnel"] is None:
        return [f"{warm} {saved['forwarded']:.1f} ms: DNS and TCP."]
    tunnel = f"{saved['tunnel']:.1f} ms in a tunnel (DNS, TCP)"
    return [f"{warm} {tunnel} and {saved['forwarded']:.1f} ms forwarded (and TLS)."]
