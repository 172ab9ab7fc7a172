"""Are connections to real servers, with the settings these come with, warm when they are wanted?

    python3 benchmarks/real_servers.py            # 5 minutes; writes docs/reliability.md
    python3 benchmarks/real_servers.py --only nginx --only "Node http" --seconds 120

Needs Linux, node, nginx, apache2, haproxy and squid, and a Python (.venv/bin/python if it is there)
that has warmproxy, uvicorn, gunicorn, hypercorn and waitress. All is on loopback.

One daemon with default settings and `warm = 10` stands in front of each server twice, all at the
same time: one is asked every 7 s, the other gets bursts of 10 requests after 30 s of quiet. Every
other request is a POST; the application takes 50 ms, so that a burst needs ten connections.

The bar, for each of them:
* no error, no 408 or 500 of the server's passed on, no request that reached it twice;
and after the first minute:
* no request waits for a connection, up to the connections there should be;
* none takes longer than a second: idle connections do the server no harm;
* while nothing is asked, there are never fewer idle connections than there should be (by the
  daemon's own account of each second, and seen by a look every 50 ms).
Where an idle connection holds a server's only worker (gunicorn sync), slow requests are forgiven
until the server is left alone.
"""

import argparse
import asyncio
import contextlib
import json
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rig import report, servers
from rig.daemon import ROOT
from rig.servers import KINDS, Kind, Place, free_port, node_backend, running

NAME = "real_servers.py"
PAGE = ROOT / "docs/reliability.md"

EVERY = 7.0
QUIET = 30.0
BURST = 10
SETTLED = 60.0
"""Seconds after which nothing is forgiven."""
LOOK = 0.05
ACCOUNT = 1.0
AFTERMATH = 1.0
"""Seconds after a request in which the pool may be refilled."""
SLOW = 1.0
LONGEST = 120.0
"""Seconds that a client waits."""

_BELOW = re.compile(r'^warmproxy_below_target_seconds_total\{origin="([^"]+)"\} (\S+)', re.M)


@dataclass
class Asked:
    """One request, as its client saw it; times are seconds since the start."""

    method: str
    path: str
    at: float
    seconds: float = LONGEST
    status: int = 0
    ours: str = ""
    """The error that the proxy's own answer names."""


@dataclass
class Watched:
    """One server under one pattern, and what was seen of it."""

    kind: Kind
    pattern: str
    port: int
    asked: list[Asked] = field(default_factory=list)
    looks: list[dict[str, Any]] = field(default_factory=list)
    """What /pools says, `at` which time, where that has changed."""
    least: int | None = None
    """Idle connections in quiet looks, less how many there should be; the worst."""
    below: float = 0.0
    """Seconds of quiet with too few idle connections."""
    beyond: int = 0
    """Requests for which no connection was meant to be there."""
    doubled: int = 0
    in_flight: int = 0
    last: float = 0.0
    """When a request was last under way."""

    @property
    def left_alone_from(self) -> float:
        """When it was first seen that none is to be held; SETTLED where it never was."""
        return next((look["at"] for look in self.looks if look["held_back"]), SETTLED)

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def now(self) -> dict[str, Any]:
        return self.looks[-1]

    def quiet_for(self, now: float) -> float:
        return 0.0 if self.in_flight else now - self.last

    def at(self, moment: float) -> dict[str, Any]:
        """What /pools said at that moment."""
        return [look for look in self.looks if look["at"] <= moment][-1]

    def gained(self, name: str, since: float, until: float) -> int:
        return int(self.at(until)[name] - self.at(since)[name])


class Run:
    """Everything is asked and looked at on one event loop."""

    def __init__(self, watched: list[Watched], proxy: int, admin: int, seconds: float) -> None:
        self.watched = watched
        self.proxy, self.admin = proxy, admin
        self.seconds = seconds
        self.began = 0.0

    @property
    def now(self) -> float:
        return time.monotonic() - self.began

    async def run(self) -> None:
        self.began = time.monotonic()
        watching = [asyncio.create_task(self._look()), asyncio.create_task(self._account())]
        await self._until(LOOK * 10)
        async with asyncio.TaskGroup() as group:
            for number, one in enumerate(self.watched):
                ask = self._steady if one.pattern == "every 7 s" else self._bursts
                # spread, so that no two of them ask at the same moment
                group.create_task(ask(one, group, 1 + EVERY * number / len(self.watched)))
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)

    async def _until(self, moment: float) -> None:
        await asyncio.sleep(max(0.0, moment - self.now))

    async def _steady(self, one: Watched, group: asyncio.TaskGroup, at: float) -> None:
        while at < self.seconds:
            await self._until(at)
            self._count(one, 1)
            group.create_task(self._ask(one))
            at += EVERY

    async def _bursts(self, one: Watched, group: asyncio.TaskGroup, at: float) -> None:
        at += QUIET
        while at < self.seconds:
            await self._until(at)
            self._count(one, BURST)
            await asyncio.gather(*[group.create_task(self._ask(one)) for _ in range(BURST)])
            at = max(at, self.now) + QUIET

    def _count(self, one: Watched, requests: int) -> None:
        if self.now > SETTLED:
            one.beyond += max(0, requests - one.now["target_idle"])

    def _is_quiet(self, one: Watched, since: float) -> bool:
        """Whether it counts what the pool holds, and has since then."""
        settled = since > SETTLED and self.now < self.seconds
        return settled and one.quiet_for(self.now) > AFTERMATH + self.now - since

    async def _ask(self, one: Watched) -> None:
        number = len(one.asked)
        method, body = ("GET", "") if number % 2 == 0 else ("POST", "body")
        path = f"/{one.port}-{number}"
        asked = Asked(method, path, self.now)
        one.asked.append(asked)
        one.in_flight += 1
        head = f"{method} {one.origin}{path} HTTP/1.1\r\nHost: 127.0.0.1:{one.port}\r\n"
        length = f"Content-Length: {len(body)}\r\n" if body else ""
        request = f"{head}{length}Connection: close\r\n\r\n{body}"
        try:
            async with asyncio.timeout(LONGEST):
                answer = await self._exchange(self.proxy, request)
            asked.status = int(answer.split(" ", 2)[1])
            said = re.search(r"^proxy-status: warmproxy; error=(\w+)", answer, re.M | re.I)
            asked.ours = said[1] if said else ""
        except (OSError, TimeoutError, IndexError, ValueError):
            pass  # status 0
        asked.seconds = self.now - asked.at
        one.in_flight -= 1
        one.last = self.now

    async def _exchange(self, port: int, request: str) -> str:
        """Everything that is answered until the end of the connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(request.encode())
            return (await reader.read(-1)).decode("latin-1")
        finally:
            writer.close()

    async def _page(self, path: str) -> str:
        request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
        return (await self._exchange(self.admin, request)).partition("\r\n\r\n")[2]

    async def _look(self) -> None:
        """/pools, all the time."""
        watched = {one.origin: one for one in self.watched}
        while True:
            asked = self.now
            for pool in json.loads(await self._page("/pools"))["pools"]:
                one = watched.get(pool["origin"])
                if one is None:
                    continue
                pool.pop("oldest_age")
                if (last := pool["last_close"]) is not None:
                    del last["ago"]
                if not one.looks or one.now != {**pool, "at": one.now["at"]}:
                    one.looks.append({**pool, "at": self.now})
                missing = pool["fresh"] + pool["used"] - pool["target_idle"]
                if self._is_quiet(one, asked):
                    one.least = missing if one.least is None else min(one.least, missing)
            await self._until(asked + LOOK)

    async def _account(self) -> None:
        """The sum of the seconds below target, where nothing was asked since the last look."""
        watched = {one.origin: one for one in self.watched}
        before: dict[str, float] = {}
        last = self.now
        while True:
            text = await self._page("/metrics")
            now = self.now
            sums = {origin: float(value) for origin, value in _BELOW.findall(text)}
            for origin, one in watched.items():
                if self._is_quiet(one, last):
                    one.below += sums.get(origin, 0.0) - before.get(origin, 0.0)
            before, last = sums, now
            await self._until(now + ACCOUNT)


@dataclass(frozen=True)
class Verdict:
    """What is in a row of the table, and what of it breaks the bar."""

    row: list[object]
    missed: list[str]


def judge(one: Watched, seconds: float) -> Verdict:
    end = one.now
    misses = one.gained("misses", SETTLED, seconds + LONGEST)
    hits = one.gained("hits", SETTLED, seconds + LONGEST)
    errors = [a for a in one.asked if a.status != 200]
    relayed = [a for a in errors if a.status in (408, 500) and not a.ours]
    settled = one.left_alone_from if one.kind.harmed else SETTLED
    times = [asked.seconds for asked in one.asked if asked.at > settled]
    wrong = {
        "errors": len(errors),
        "passed on": len(relayed),
        "twice": one.doubled,
        "misses": max(0, misses - one.beyond),
        "slow": sum(seconds > SLOW for seconds in times),
        "connections short": max(0, -(one.least or 0)),
        "seconds short": round(one.below, 3),
    }
    limits = "/".join(
        "-" if end["idle_limits"].get(kind) is None else f"{end['idle_limits'][kind]:.3g}"
        for kind in ("fresh", "used")
    )
    row = [
        one.kind.name,
        one.pattern,
        len(one.asked),
        f"{hits}, {misses}",
        len(errors),
        len(relayed),
        f"{end['target_idle']}, {'-' if one.least is None else f'{one.least:+d}'}",
        f"{one.below:.3f}",
        f"{60 * one.gained('dials', SETTLED, seconds) / (seconds - SETTLED):.1f}",
        limits,
        f"{max(times, default=0.0) * 1000:.0f}",
    ]
    return Verdict(row, [f"{what} {n:g}" for what, n in wrong.items() if n])


HEADS = [
    *["server", "asked", "requests", "hits, misses", "errors", "408/500 passed on"],
    *["idle should be, least", "seconds below", "dials a minute", "limits fresh/used, s"],
    *["slowest, ms", "bar"],
]


def table(verdicts: list[Verdict]) -> str:
    rows = [[*v.row, f"**missed**: {', '.join(v.missed)}" if v.missed else "met"] for v in verdicts]
    return report.table(HEADS, 2, rows)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [kind.name for kind in KINDS]
    parser.add_argument("--seconds", type=float, default=300.0, help="how long (300)")
    parser.add_argument("--warm", default="10", help="what each [[upstream]] says: 10, or auto")
    parser.add_argument("--only", action="append", choices=names, help="one server; repeatable")
    parser.add_argument("--json", metavar="FILE", help="write everything seen to FILE, - = stdout")
    parser.add_argument("--python", default=report.python(), help="what runs it (.venv's)")
    options = parser.parse_args()
    options.writes = not options.only and (options.seconds, options.warm) == (300.0, "10")
    if options.seconds <= SETTLED:
        parser.error(f"the first {SETTLED:g} s do not count: --seconds must be more")
    return options


def settings(watched: list[Watched], warm: str) -> str:
    warm = warm if warm.isdigit() else json.dumps(warm)
    return "".join(f'[[upstream]]\nurl = "{one.origin}"\nwarm = {warm}\n' for one in watched)


def measure(kinds: list[Kind], options: argparse.Namespace) -> list[Watched]:
    """Start everything, ask, and find what arrived twice."""
    watched = [
        Watched(kind, pattern, free_port())
        for kind in kinds
        for pattern in ("every 7 s", "10 after 30 s")
    ]
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="real-servers-")))
        folder.chmod(0o755)  # servers that were started by root give that up
        seen = folder / "seen"
        seen.touch()
        noted = {"SEEN": str(seen)}

        def start(name: str, command: list[str], port: int, more: Mapping[str, str]) -> None:
            home = folder / name
            home.mkdir(exist_ok=True)
            stack.enter_context(running(command, home, port, more))

        def home(name: str) -> Path:
            made = folder / name
            made.mkdir()
            made.chmod(0o777)
            return made

        backend = free_port()
        start("backend", node_backend(backend), backend, noted)
        for one in watched:
            place = Place(home(str(one.port)), one.port, backend, options.python)
            start(str(one.port), one.kind.command(place), one.port, noted)
        proxy, admin = free_port(), free_port()
        (home("warmproxy") / "warmproxy.toml").write_text(settings(watched, options.warm))
        command = [options.python, "-m", "warmproxy", "run", "--config", "warmproxy.toml"]
        command += ["--listen", f"127.0.0.1:{proxy}", "--admin", f"127.0.0.1:{admin}"]
        # nobody's state file but its own: it knows none of the servers
        environment = {"PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(folder)}
        start("warmproxy", command, proxy, environment)
        asyncio.run(Run(watched, proxy, admin, options.seconds).run())
        arrived = Counter(line.split(" ")[1] for line in seen.read_text().splitlines())
        print((folder / "warmproxy" / "output").read_text(), file=sys.stderr)
    for one in watched:
        one.doubled = sum(arrived[asked.path] > 1 for asked in one.asked)
    return watched


def main() -> int:
    options = parse_options()
    kinds = [kind for kind in KINDS if not options.only or kind.name in options.only]
    found = {kind.needs: servers.version(kind.needs, options.python) for kind in kinds}
    if missing := [needs for needs, version in found.items() if not version]:
        print(f"{NAME} needs {', '.join(missing)}", file=sys.stderr)
        return 2
    told = report.versions(options.python)
    try:
        watched = measure(kinds, options)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    verdicts = [judge(one, options.seconds) for one in watched]
    passed = not any(verdict.missed for verdict in verdicts)
    text = (
        f"`{report.command(NAME)}`, {datetime.now(UTC):%Y-%m-%d};"
        f" {', '.join(f'{name} {version}' for name, version in told.items())};"
        f" {', '.join(found.values())}.\nBar: **{'met' if passed else 'missed'}**.\n\n"
        + table(verdicts)
    )
    if options.json:
        everything = [
            {**asdict(one), "kind": one.kind.name, "missed": verdict.missed}
            for one, verdict in zip(watched, verdicts, strict=True)
        ]
        report.write_json(options.json, everything)
    if options.json != "-":
        print(text)
    if options.writes:
        report.write_page(PAGE, NAME, text)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
