"""One hour between origins that close, restart and move: does the daemon stay as it was?

    nice .venv/bin/python benchmarks/soak.py --write     # an hour; the pages and soak.png
    .venv/bin/python benchmarks/soak.py --minutes 3      # what is long becomes shorter; prints only

A daemon with its default settings holds 14 origins warm and finds out about 3 more
(rig/soak_origin.py says what each does), for clients that keep connections or not, send GET, PUT
and POST, go through tunnels, or ask for https:// in absolute-form: 300 requests a second in all,
whether or not the ones before are answered. SIGHUP with other settings comes every 10 minutes.
Every answer is judged (rig/soak_judge.py). Needs Linux, `unshare` with the right to make a mount
namespace (for names that only this daemon knows), and trustme for a certificate (warmproxy's dev
group has it). Everything stays on loopback, and ends with the run; Ctrl-C ends the run and prints
what was seen so far.

Exit status 0: every bar is met; 1: one is not; 2: nothing was measured, or not to the end.
"""

import argparse
import asyncio
import contextlib
import http.client
import importlib.util
import itertools
import os
import random
import shutil
import signal
import ssl
import statistics
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from rig import report, soak_judge, soak_pages
from rig.daemon import ROOT
from rig.soak_clients import Clients
from rig.soak_daemon import (
    ANSWERS_WITHIN,
    HITS,
    Daemon,
    NotMeasured,
    acquires,
    close_waits,
    free_ports,
    loop_lag,
)
from rig.soak_judge import EXCUSED, SERVED, TWICE, UNEXPLAINED, Ask, Origin, Run, Sample, Try
from rig.soak_origin import HABITS, Door

try:
    import trustme
except ImportError:
    trustme = None

PAGES = (report.README, ROOT / "docs/reliability.md")
SAMPLE_EVERY = 10.0
LOOKS = 3
"""In each sample, at the descriptors and the metrics, which are never of one moment."""
REMEMBERED = 60.0
"""Seconds for which what came and ended is remembered, for what comes late."""
RESTARTS = (60.0, 120.0)
"""Seconds between two restarts of an origin, or two moves."""
# Of a run of an hour; a shorter one has as many of them.
RELOAD_EVERY, DOWN_EVERY, DOWN_FOR = 600.0, 1200.0, 180.0
SHOWN = 10
KEPT = 100
"""Violations that are told in full, and kept for that."""


class Soak:
    """One run: what goes on in the world around the daemon, and what is seen of it."""

    def __init__(self, daemon: Daemon, options: argparse.Namespace) -> None:
        self.daemon = daemon
        self.options = options
        self.seconds = options.minutes * 60
        self.stop = asyncio.Event()
        self.samples: list[Sample] = []
        self.lags: list[float] = []
        self.findings: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.by_door: dict[str, Counter[str]] = {h.name: Counter() for h in HABITS}
        self.shown: list[str] = []
        self.stayed = self.asked_reloads = 0
        self.acquired: Counter[tuple[str, str]] = Counter()
        self._tries: dict[int, list[Try]] = {}
        self._judged: set[int] = set()
        self._order: deque[tuple[float, int]] = deque()
        self._waited = set[str]()
        self._errors: Counter[str] = Counter()
        self._began = 0.0
        block = random.randrange(2, 250)
        hosts = (f"127.{block}.{n // 250}.{n % 250 + 1}" for n in itertools.count())
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(daemon.home / "ca.pem"))
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("secure.soak.test").configure_cert(tls)
        ports = free_ports(len(HABITS))
        self.doors = [
            Door(h, lambda: next(hosts), port, self.arrived, tls if h.way == "https" else None)
            for h, port in zip(HABITS, ports, strict=True)
        ]

    # -- what requests come to

    def arrived(self, number: int, method: str, used: bool) -> Try:
        """An origin got this request."""
        seen = Try(used)
        if number in self._judged:
            finding = TWICE if method == "POST" else UNEXPLAINED
            self.findings[finding] += 1
            self._show(finding, f"request {number} came when its client had its answer")
        self._tries.setdefault(number, []).append(seen)
        return seen

    def done(self, ask: Ask, door: Door) -> None:
        """A client got its answer, or none."""
        tries = self._tries.get(ask.number, [])
        finding, how = soak_judge.judge(ask, tries, door.past)
        self.findings[finding] += 1
        self.by_door[door.habit.name][finding] += 1
        self._judged.add(ask.number)
        self._order.append((ask.ended, ask.number))
        if finding == SERVED:
            return
        self._errors[ask.token or ask.outcome] += 1
        if finding == EXCUSED:
            self.reasons[f"{how} ({ask.method})"] += 1
        else:
            self._show(finding, f"{how}: {door.habit.name} {ask} {tries}")

    def _show(self, finding: str, what: str) -> None:
        if len(self.shown) < KEPT:
            self.shown.append(f"{time.monotonic() - self._began:.1f} s: {finding}: {what}")

    def _forget(self) -> None:
        before = time.monotonic() - REMEMBERED
        while self._order and self._order[0][0] < before:
            number = self._order.popleft()[1]
            self._judged.discard(number)
            self._tries.pop(number, None)
        for door in self.doors:
            door.past.forget(before)

    # -- what happens

    async def pause(self, seconds: float) -> bool:
        """Whether the run goes on after that."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.stop.wait(), seconds)
        return not self.stop.is_set()

    async def _now_and_then(self, door: Door, act: Callable[[], Awaitable[None]]) -> None:
        while await self.pause(door.rng.uniform(*RESTARTS)):
            await act()

    async def _downs(self, door: Door) -> None:
        scale = self.seconds / 3600
        while await self.pause((DOWN_EVERY - DOWN_FOR) / 2 * scale):
            await door.be_down(DOWN_FOR * scale)
            await self.pause((DOWN_EVERY - DOWN_FOR) / 2 * scale)

    async def _reloads(self) -> None:
        for number in itertools.count(1):
            if not await self.pause(RELOAD_EVERY * self.seconds / 3600):
                return
            self.daemon.write_settings(self.doors, number % 2)
            self.asked_reloads += 1
            os.kill(self.daemon.pid, signal.SIGHUP)

    # -- what is seen

    async def _look(self) -> None:
        """Each second the loop's lag, each tenth second all the rest."""
        lag, due = 0.0, SAMPLE_EVERY
        self.acquired = acquires((await asyncio.to_thread(self.daemon.get, "/metrics"))[1])
        for second in itertools.count(1):
            if not await self.pause(self._began + second - time.monotonic()):
                return
            try:
                text = (await asyncio.to_thread(self.daemon.get, "/metrics"))[1]
                self.lags.append(loop_lag(text))
                lag = max(lag, self.lags[-1])
                if second >= due:
                    await self._sample(text, lag)
                    lag, due = 0.0, due + SAMPLE_EVERY
            except (OSError, http.client.HTTPException) as error:
                self._show("no metrics", repr(error))
                self.lags.append(ANSWERS_WITHIN)
                if self.daemon.is_over:
                    return

    async def _sample(self, text: str, lag: float) -> None:
        looks = [await asyncio.to_thread(self.daemon.opened) for _ in range(LOOKS)]
        descriptors, _ = looks[0]
        waiting = await asyncio.to_thread(close_waits, descriptors)
        self.stayed += len(waiting & self._waited)
        self._waited = waiting
        before, self.acquired = self.acquired, acquires(text)
        delta = Counter(self.acquired)
        delta.subtract(before)
        now = time.monotonic()
        was_up = [d for d in self.doors if not d.past.was_down(now - SAMPLE_EVERY, now)]
        warm = {door.habit.name for door in was_up if door.habit.warm}
        asked = sum(n for (name, _), n in delta.items() if name in warm)
        hits = sum(n for (name, how), n in delta.items() if name in warm and how in HITS)
        ratio = hits / asked if asked else None
        sample = Sample(
            now - self._began,
            self.daemon.rss(),
            len(descriptors),
            statistics.median(beside for _, beside in looks),
            len(waiting),
            ratio,
            lag,
            dict(self._errors),
        )
        self._errors.clear()
        self.samples.append(sample)
        self._forget()
        if self.options.verbose:
            print(sample, file=sys.stderr)

    async def run(self) -> Run:
        loop = asyncio.get_running_loop()
        for name in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(name, self.stop.set)
        for door in self.doors:
            await door.listen()
        self.daemon.say(self.doors)
        self.daemon.write_settings(self.doors)
        await self.daemon.start()
        self._began = time.monotonic()
        clients = Clients(("127.0.0.1", self.daemon.listen), self.doors, self.done)
        say = lambda: self.daemon.say(self.doors)  # noqa: E731
        happens = [asyncio.create_task(self._reloads()), asyncio.create_task(self._look())]
        for door in self.doors:
            if door.habit.restarts:
                happens.append(asyncio.create_task(self._now_and_then(door, door.restart)))
            if door.habit.moves:
                move = lambda door=door: door.move(say)  # noqa: E731
                happens.append(asyncio.create_task(self._now_and_then(door, move)))
            if door.habit.down:
                happens.append(asyncio.create_task(self._downs(door)))
        load = asyncio.create_task(clients.run(self.options.rate, self.stop))
        try:
            ended = asyncio.create_task(self.pause(self.seconds))
            await asyncio.wait([ended, *happens], return_when=asyncio.FIRST_COMPLETED)
            self.stop.set()
            await load
        finally:
            self.stop.set()
            seconds = time.monotonic() - self._began
            done, ongoing = await asyncio.wait(happens, timeout=1.0)
            for task in ongoing:
                task.cancel()
            for door in self.doors:
                door.close()
        failed = [task.exception() for task in done if task.exception()]
        ended_itself = self.daemon.is_over
        code = self.daemon.stop()
        log = self.daemon.log.read_text()
        if failed and not ended_itself:
            raise NotMeasured(f"the bench failed: {failed}")
        raised = log.count("Traceback") + bool(code or ended_itself)
        if raised:
            self.shown.insert(0, f"the daemon's log (exit {code}): {log[-2000:]}")
        reloads = (self.asked_reloads, self.daemon.reloads())
        counts = dict(self.findings), self.stayed, reloads, raised, dict(self.reasons)
        return Run(seconds, self.samples, self.lags, *counts, [*map(self._told_of, self.doors)])

    def _told_of(self, door: Door) -> Origin:
        name, says = door.habit.name, door.habit.says
        got = {how: n for (of, how), n in self.acquired.items() if of == name}
        hits, findings = sum(got.get(how, 0) for how in HITS), dict(self.by_door[name])
        return Origin(says, door.habit.warm, findings, door.ended, hits, sum(got.values()))


@contextlib.contextmanager
def daemon_in_folder(python: str) -> Iterator[Daemon]:
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        daemon = Daemon(Path(folder), python)
        try:
            yield daemon
        finally:
            daemon.stop()


async def soaked(daemon: Daemon, options: argparse.Namespace) -> tuple[Soak, Run]:
    soak = Soak(daemon, options)
    return soak, await soak.run()


def runner() -> asyncio.Runner:
    """With uvloop where it is: the world takes less of the machine then."""
    if importlib.util.find_spec("uvloop") is None:
        return asyncio.Runner()
    import uvloop

    return asyncio.Runner(loop_factory=uvloop.new_event_loop)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--minutes", type=float, default=60.0, help="(60)")
    add("--rate", type=float, default=300.0, help="requests a second (300)")
    add("--python", default=report.python(), help="that runs warmproxy")
    add("--json", metavar="FILE", help="every sample")
    add("--plot", metavar="FILE", help="a PNG; needs matplotlib")
    add("--write", action="store_true", help="the tables to the pages, the plot beside README.md")
    add("--verbose", action="store_true", help="each sample as it is taken")
    options = parser.parse_args()
    if trustme is None or shutil.which("unshare") is None:
        print("it needs unshare, and trustme: run it with .venv/bin/python", file=sys.stderr)
        return 2
    try:
        with daemon_in_folder(options.python) as daemon, runner() as loop:
            soak, run = loop.run(soaked(daemon, options))
    except NotMeasured as why:
        print(why, file=sys.stderr)
        return 2
    both, more = soak_pages.told(run, options.python)
    print(f"{both}\n\n{more}")
    for line in soak.shown[:SHOWN]:
        print(line, file=sys.stderr)
    if options.json:
        report.write_json(options.json, asdict(run))
    whole = run.seconds >= options.minutes * 60
    to = options.plot or (ROOT / "benchmarks/soak.png" if options.write and whole else None)
    if to and importlib.util.find_spec("matplotlib") is None:
        print("the plot needs matplotlib and is left out", file=sys.stderr)
    elif to and run.samples:
        soak_pages.plot(run, Path(to))
    if options.write and whole:
        report.write_page(PAGES[0], soak_pages.NAME, f"{both}\n\n{more}")
        report.write_page(PAGES[1], soak_pages.NAME, both)
    if not whole and not run.raised:
        print(f"ended after {run.seconds:.0f} s: written nowhere", file=sys.stderr)
        return 2
    return int(not all(bar.met for bar in soak_judge.bars(run)))


if __name__ == "__main__":
    sys.exit(main())
