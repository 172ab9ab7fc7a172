"""Does a request cost more when there is more of everything else? And how long does all of it take?

    .venv/bin/python benchmarks/growth.py            # some three minutes; README.md and growth.png
    .venv/bin/python benchmarks/growth.py --quick    # half a minute; writes nothing

Needs Linux, nginx and wrk; no root. Rig and cores are those of peers.py. Three questions:

clients   Processor time for each request (512 bytes, 32 connections) while 0 to 10,000 other
          clients are connected and idle, each having made a request, with as many warm connections
          to the origin; and the resident memory of the daemon with these.
origins   The same while 1 to 1,000 origins are configured, each with 2 warm connections: requests
          to one of them, and to one after the other.
start     1,000 origins with 2 warm connections: seconds from the start of the process until all
          are open, and how late the event loop is meanwhile, from when the listeners are open, by
          the processor time that it takes between two firings of a timer (rig/turns.py).

The daemons of one question all run at once, and are asked in turn, round by round: what else the
machine does in a round meets them all. Where a process may not open as many files as the largest
step needs, that step has as many connections as fit.

Exit status 0: all were warm in time and the loop was not late; 1: not; 2: nothing was measured.
"""

import argparse
import contextlib
import importlib.util
import math
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from field import load, plots
from field.contest import Entrant
from field.origin import Origin
from field.proxies import Kind, Place, ours
from field.running import (
    Failed,
    Program,
    established,
    free_port,
    raise_descriptor_limit,
    take_cores,
)
from rig import report, turns

NAME = "growth.py"
QUESTIONS = ("clients", "origins", "start")
CLIENTS = (0, 1_000, 5_000, 10_000)
ORIGINS = (1, 10, 100, 1_000)
WARM_EACH = 2
ACTIVE = 32
SPARE = 400
"""Descriptors beside those of idle connections: of the active ones, of listeners, of files."""
WITHIN = 120.0
BAR_WARM, BAR_LATE = 30.0, 0.010

Values = defaultdict[str, dict[int, list[float]]]
"""Line -> how many -> a value for each round."""


class Growth:
    def __init__(self, kind: Kind, home: Path, core: int | None, options: argparse.Namespace):
        self.kind = kind
        self.home = home
        self.core = core
        self.options = options
        self.values: Values = defaultdict(dict)
        self.numbers = iter(range(1000))

    @contextlib.contextmanager
    def origin(self, **options: Any) -> Iterator[Origin]:
        home = self.home / f"origin-{next(self.numbers)}"
        home.mkdir()
        origin = Origin(home, **options)
        try:
            yield origin
        finally:
            origin.stop()

    def daemon(self, origin: Origin, settings: str) -> Entrant:
        home = self.home / f"daemon-{next(self.numbers)}"
        return Entrant(self.kind, home, origin.port, self.core, settings=settings)

    def ask(self, line: str, count: int, entrant: Entrant, ask: Callable[[], load.Loaded]) -> None:
        before = entrant.processor_seconds()
        loaded = ask()
        cost = (entrant.processor_seconds() - before) / loaded.requests * 1e6
        self.values[line].setdefault(count, []).append(cost)
        print(f"{line}, {count}: {cost:.1f} µs", file=sys.stderr, flush=True)

    # ── the questions ────────────────────────────────────────────────────────────────────────

    def clients(self, steps: Sequence[int]) -> None:
        with contextlib.ExitStack() as held, self.origin() as origin:
            daemons: dict[int, Entrant] = {}
            url = f"http://127.0.0.1:{origin.port}"
            for count in steps:
                most = count + 1000
                settings = (
                    f"max_connections = {most}\nmax_clients = {most}\n"
                    f'[[upstream]]\nurl = "{url}"\nwarm = {count}\nmax_connections = {most}\n'
                )
                entrant = daemons[count] = self.daemon(origin, settings)
                held.callback(entrant.stop)
                entrant.wait_for(lambda e=entrant, n=count: e.idle() >= n, 0.1, WITHIN)
                held.enter_context(load.idle_clients(entrant.address, url + "/small", count))
                time.sleep(1)
                if (there := established(entrant.place.port)) < count:
                    raise Failed(f"{there} of {count} clients are connected")
                memory = entrant.program.resident_kib() / 1024
                self.values["MiB"][count] = [memory]
                print(f"{count} clients, as many warm: {memory:.1f} MiB", file=sys.stderr)
            for count, entrant in self.in_rounds(daemons):
                self.ask(
                    "clients",
                    count,
                    entrant,
                    lambda e=entrant: load.wrk(
                        e.address, url + "/small", ACTIVE, self.options.seconds
                    ),
                )

    def origins(self, steps: Sequence[int]) -> None:
        with contextlib.ExitStack() as held, self.origin(**_many(max(steps))) as origin:
            daemons: dict[int, Entrant] = {}
            for count in steps:
                entrant = daemons[count] = self.daemon(origin, upstreams(origin, count))
                held.callback(entrant.stop)
                entrant.wait_for(lambda e=entrant, n=count: e.idle() >= n, 0.2, WITHIN)
            for count, entrant in self.in_rounds(daemons):
                authorities = authorities_of(origin)[:count]
                for line, asked in (("one origin", authorities[:1]), ("all origins", authorities)):
                    self.ask(
                        line,
                        count,
                        entrant,
                        lambda e=entrant, a=asked: load.wrk_spread(
                            e.address, a, ACTIVE, self.options.seconds
                        ),
                    )

    def in_rounds(self, daemons: dict[int, Entrant]) -> Iterator[tuple[int, Entrant]]:
        for _ in range(self.options.rounds):
            yield from random.sample(sorted(daemons.items()), len(daemons))

    def start(self, count: int) -> None:
        """Notes seconds until all are warm, and ms that the loop was late meanwhile."""
        wanted = WARM_EACH * count
        with self.origin(**_many(count)) as origin:
            for _ in range(self.options.starts):
                home = self.home / f"daemon-{next(self.numbers)}"
                home.mkdir()
                place = Place(home, free_port(2), origin.port, settings=upstreams(origin, count))
                began = time.monotonic()
                notes = home / "turns"
                python, _, _, *arguments = self.kind.start_command(place)  # -m warmproxy
                program = Program(
                    [python, turns.__file__, str(notes), *arguments],
                    home,
                    core=self.core,
                    environment=self.kind.environment,
                )
                try:
                    ended = until_warm(program, origin.ports, wanted)
                    used = program.processor_seconds()
                finally:
                    program.stop()
                rows = turns.read(notes, ended)
                p99, worst = (turns.late(rows, share) * 1e3 for share in (0.99, 1.0))
                for line, value in (
                    *(("warm, s", ended - began), ("processor, s", used)),
                    *(("late p99, ms", p99), ("late worst, ms", worst)),
                ):
                    self.values[line].setdefault(count, []).append(value)
                print(
                    f"{count} origins: all warm after {ended - began:.1f} s, {used:.2f} s of"
                    f" processor; the loop was late by {p99:.1f} ms (p99), {worst:.1f} (worst)",
                    file=sys.stderr,
                )


def _many(count: int) -> dict[str, Any]:
    """An origin that is so many: ports times addresses."""
    ports = min(count, 100)
    return {"ports": ports, "addresses": -(-count // ports)}


def authorities_of(origin: Origin) -> list[str]:
    return [f"{address}:{port}" for address in origin.addresses for port in origin.ports]


def upstreams(origin: Origin, count: int) -> str:
    """Settings with so many of them."""
    each = (
        f'[[upstream]]\nurl = "http://{authority}"\nwarm = {WARM_EACH}\n'
        for authority in authorities_of(origin)[:count]
    )
    return "".join(each)


def until_warm(program: Program, ports: Sequence[int], wanted: int) -> float:
    """When so many connections to the ports were there, by the monotonic clock; inf: not within
    WITHIN. Raises Failed."""
    give_up = time.monotonic() + WITHIN
    while (now := time.monotonic()) < give_up:
        if established(*ports) >= wanted:
            return now
        if not program.runs:
            raise Failed(f"the daemon does not come up: {program.said()}")
        time.sleep(0.05)
    return math.inf


def steps_that_fit(steps: Sequence[int], limit: int) -> list[int]:
    """A daemon needs a descriptor for each client and for each warm connection; we, one for the
    clients of all steps together."""
    fitting: list[int] = []
    for step in steps:
        step = min(step, (limit - SPARE) // 2, limit - SPARE - sum(fitting))
        if step not in fitting:
            fitting.append(step)
    return fitting


def tables(values: Values) -> str:
    parts = []
    if "clients" in values:
        heads = ["idle clients, and as many warm", "µs/req", "against none", "MiB"]
        by_count = {count: statistics.median(v) for count, v in values["clients"].items()}
        none = by_count[min(by_count)]
        rows = [
            [f"{n:,}", f"{cost:.1f}", f"{cost / none:.2f} x", f"{values['MiB'][n][0]:.1f}"]
            for n, cost in sorted(by_count.items())
        ]
        parts.append(report.numbers(heads, rows))
    if "one origin" in values:
        heads = ["configured origins", "one asked, µs/req", "against 1", "all asked, µs/req"]
        one = {n: statistics.median(v) for n, v in values["one origin"].items()}
        each = {n: statistics.median(v) for n, v in values["all origins"].items()}
        first, all_first = one[min(one)], each[min(each)]
        rows = [
            [
                f"{n:,}",
                *(f"{one[n]:.1f}", f"{one[n] / first:.2f} x"),
                *(f"{each[n]:.1f}", f"{each[n] / all_first:.2f} x"),
            ]
            for n in sorted(one)
        ]
        parts.append(report.numbers([*heads, "against 1"], rows))
    if "warm, s" in values:
        heads = ["origins, 2 warm each", "all warm, s", "loop late p99, ms", "worst, ms"]
        rows = [
            [f"{n:,}"]
            + [
                f"{statistics.median(values[line][n]):.{digits}f}"
                for line, digits in (
                    *(("warm, s", 1), ("late p99, ms", 1)),
                    *(("late worst, ms", 1), ("processor, s", 2)),
                )
            ]
            for n in sorted(values["warm, s"])
        ]
        parts.append(report.numbers([*heads, "processor, s"], rows))
    return "\n\n".join(parts)


def missed(values: Values) -> list[str]:
    """The bars of the start, of the most origins."""
    if "warm, s" not in values:
        return []
    most = max(values["warm, s"])
    warm = statistics.median(values["warm, s"][most])
    late = statistics.median(values["late p99, ms"][most]) / 1e3
    said = []
    if warm > BAR_WARM:
        said.append(f"all warm after {warm:.1f} s" if warm < WITHIN else "not all warm")
    if late > BAR_LATE:
        said.append(f"the loop late by {late * 1e3:.1f} ms")
    return said


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer, shorter, smaller steps")
    parser.add_argument("--only", nargs="+", choices=QUESTIONS, default=list(QUESTIONS))
    parser.add_argument("--rounds", type=int, help="5; with --quick 1")
    parser.add_argument("--tree", type=Path, help="measure warmproxy of another tree")
    parser.add_argument("--json", metavar="FILE", help="every value to FILE, - = stdout")
    parser.add_argument("--python", default=report.python(), help="the Python that runs warmproxy")
    options = parser.parse_args()
    options.writes = not (
        options.quick or options.rounds or options.tree or options.only != list(QUESTIONS)
    )
    options.rounds = options.rounds or (1 if options.quick else 5)
    options.seconds = 1 if options.quick else 2
    options.starts = 1 if options.quick else 3
    return options


def main() -> int:
    options = parse_options()
    if sys.platform != "linux":
        print(f"{NAME} needs Linux: it reads /proc", file=sys.stderr)
        return 2
    if options.writes and importlib.util.find_spec("matplotlib") is None:
        print("the plot needs matplotlib (pip install matplotlib): left out", file=sys.stderr)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that all is stopped
    began = time.monotonic()
    limit = raise_descriptor_limit()
    clients = steps_that_fit(CLIENTS[:2] if options.quick else CLIENTS, limit)
    origins = ORIGINS[:3] if options.quick else ORIGINS
    tree = (options.tree or report.ROOT).resolve()
    kind = ours("warmproxy", tree, options.python)
    with tempfile.TemporaryDirectory(prefix="warmproxy-growth-") as folder:
        home = Path(folder)
        home.chmod(0o755)
        growth = Growth(kind, home, take_cores(), options)
        try:
            if "clients" in options.only:
                growth.clients(clients)
            if "origins" in options.only:
                growth.origins(origins)
            if "start" in options.only:
                growth.start(origins[-1])
        except (Failed, OSError) as error:
            print(f"{NAME}: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            return 130
    versions = report.versions(options.python)
    mine = ", ".join(f"{name} {version}" for name, version in versions.items())
    command = report.command(NAME, ".venv/bin/python")
    said = missed(growth.values)
    head = (
        f"`{command}`, {datetime.now(UTC):%Y-%m-%d}, {time.monotonic() - began:.0f} s;"
        f" {options.rounds} rounds of {options.seconds} s;\n{mine}; {limit:,} open files allowed.\n"
    )
    if "start" in options.only:
        head += (
            f"Bar: all warm within {BAR_WARM:g} s, the loop late by {BAR_LATE * 1e3:g} ms at most"
            f" (p99): **{'missed' if said else 'met'}**{' (' if said else ''}{', '.join(said)}"
            f"{')' if said else ''}.\n"
        )
    text = head + "\n" + tables(growth.values)
    if options.json:
        everything = {"command": command, "versions": versions, "values": growth.values}
        report.write_json(options.json, everything)
    if options.json != "-":
        print(text)
    if options.writes:
        report.write_readme(NAME, text)
        plots.growth(growth.values, Path(__file__).with_suffix(".png"))
    return int(bool(said))


if __name__ == "__main__":
    sys.exit(main())
