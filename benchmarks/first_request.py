"""How many round trips does the first request after a quiet time take? With a bar to pass.

    python3 benchmarks/first_request.py            # about 5 minutes; writes benchmarks/README.md
    python3 benchmarks/first_request.py --quick    # under a minute; writes nothing

Needs Linux, root (for two network namespaces), `ip`, and a Python that has warmproxy's dependencies
(.venv/bin/python if it is there). No compiler, no network.

An origin that closes connections after 5 s of idling is put behind a link with an RTT of 40 ms.
Several independent daemons, each with its own ports on the origin and 10 warm connections per
pool, go through this cycle, staggered:

    start, be ready -> quiet for 10-15 s -> burst ("untouched")
                    -> 50 requests -> quiet for 10-15 s -> burst ("after traffic") -> stop

A burst is 1, 4 or 10 new client connections at once, each with one request. The quiet times of a
cell are spread evenly over 10-15 s, hence over the origin's close cycle. Cold is the same exchange
without a proxy, in the same run, and so is the RTT, the time of a TCP handshake with the origin.

Whatever uses the processor (a start, the 50 requests, a burst) waits for its turn: it never meets
another daemon's burst. All that is measured or measures has real-time priority: other work on the
machine is not part of the question. Where that was not enough, and the proxy, the client, the link
or the origin was held up for over 0.5 ms (by the kernel's count, see rig/processor.py), the round
gives no times and its cycle is repeated (not with --quick); whether its connections were open
before, and its errors, count all the same.

A burst meets one moment. The second table looks at all of them: from the origin's record of when
each connection began and ended follows how many were open and usable at each moment of the quiet
times, hence the share of moments at which a burst of 1, 4 or 10 would have been served at once.
"""

import argparse
import asyncio
import itertools
import json
import os
import platform
import random
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rig import link
from rig.client import Address, Answer, burst, get, through_proxy, through_tunnel
from rig.processor import Watch

HERE = Path(__file__).resolve().parent
README = HERE / "README.md"
BEGIN = "<!-- first_request.py: begin -->"
END = "<!-- first_request.py: end -->"

RTT = 0.040
ORIGIN_IDLE = 5.0
WARM = 10
QUIET = 10.0  # then up to ORIGIN_IDLE more, so that a burst may meet any phase of its closes
BURSTS = (1, 4, 10)
TRAFFIC = 50
READY_WITHIN = 20.0
DISTURBED = 0.0005  # held up for longer by other work: the round's times say nothing
REPEATS = 0.5  # of all cycles, because of disturbance

BAR_P50 = 1.05
BAR_SLOWEST = 1.15

KINDS = {"http": through_proxy, "CONNECT": through_tunnel}
KIND_NAMES = {"http": "`http://`", "CONNECT": "`CONNECT` + 1 round trip"}
STATES = ("untouched", "after traffic")

CONTROL_PORT = 7000
PLAIN_PORTS = 8000  # + the lane's number
TUNNEL_PORTS = 9000


@dataclass
class Round:
    """One burst and what came of it."""

    kind: str
    state: str
    n: int
    quiet: float
    answers: list[Answer]
    disturbance: float = 0.0
    held: dict[int, float] = field(default_factory=dict)  # n -> share of time with n open
    pools: object = None  # the daemon's own view, asked afterwards if a request missed

    @property
    def disturbed(self) -> bool:
        return self.disturbance > DISTURBED

    def missed(self, one_way: float) -> int:
        return sum(not opened_before(answer, one_way) for answer in self.answers)


def opened_before(answer: Answer, one_way: float) -> bool:
    """Was the upstream connection open before the client called connect()?

    By the origin's record: what it accepts has been open at the dialling side for half an RTT.
    """
    return answer.accepted is not None and answer.accepted - one_way < answer.started


def held(lives: list[tuple[float, float | None]], since: float, until: float) -> dict[int, float]:
    """For each size of burst: the share of this time with that many usable connections.

    The origin accepts half an RTT after the dialling side has its connection. What reaches the
    origin after the end of a connection was sent half an RTT earlier: from then on it was useless.
    """
    one_way = RTT / 2
    changes = [(since, 0), (until, 0)]
    for accepted, ended in lives:
        begin = max(accepted - one_way, since)
        end = min(ended - one_way if ended else until, until)
        if begin < end:
            changes += [(begin, 1), (end, -1)]
    changes.sort()
    enough = dict.fromkeys(BURSTS, 0.0)
    usable = 0
    for (now, change), (following, _) in itertools.pairwise(changes):
        usable += change
        for n in BURSTS:
            enough[n] += following - now if usable >= n else 0.0
    return {n: seconds / (until - since) for n, seconds in enough.items()}


@dataclass
class Cell:
    """All rounds of one line of the table, in units of the measured RTT."""

    kind: str
    state: str
    n: int
    rounds: int = 0
    requests: int = 0
    disturbed: int = 0  # rounds, which give no times ...
    disturbed_used: bool = False  # ... unless too few would be left
    p50: float | None = None
    slowest: float | None = None
    opened_before: float = 0.0  # percent
    errors: list[str] = field(default_factory=list)

    @property
    def cold(self) -> bool:
        return self.state == "cold"

    @property
    def passes(self) -> bool:
        return (
            not self.errors
            and self.opened_before == 100
            and self.p50 is not None
            and self.p50 <= BAR_P50
            and self.slowest is not None
            and self.slowest <= BAR_SLOWEST
        )


def summarise(key: tuple[str, str, int], rounds: list[Round], rtt: float, enough: int) -> Cell:
    answers = [answer for r in rounds for answer in r.answers]
    cell = Cell(*key, rounds=len(rounds), requests=len(answers))
    cell.errors = [answer.error for answer in answers if answer.error]
    cell.opened_before = 100 * sum(opened_before(a, rtt / 2) for a in answers) / len(answers)
    timed = [r for r in rounds if not r.disturbed]
    cell.disturbed = len(rounds) - len(timed)
    if len(timed) < enough:
        timed, cell.disturbed_used = rounds, True
    times = [answer.seconds / rtt for r in timed for answer in r.answers if not answer.error]
    if times:
        cell.p50, cell.slowest = statistics.median(times), max(times)
    return cell


class NotReady(Exception):
    """The proxy did not start, or not in time; says what it printed."""


class Daemon:
    """The proxy under test, as a process in the near namespace."""

    ports = itertools.count(20000, 2)

    def __init__(self, command: str, lane: int, cpu: int, python: str) -> None:
        port = next(self.ports)
        self.listen: Address = ("127.0.0.1", port)
        self.admin: Address = ("127.0.0.1", port + 1)
        self.plain: Address = (link.FAR, PLAIN_PORTS + lane)
        self.tunnel: Address = (link.FAR, TUNNEL_PORTS + lane)
        places = {"listen": self.listen, "admin": self.admin}
        places |= {"plain": self.plain, "tunnel": self.tunnel}
        self.asks_readiness = not command
        self.command = [
            word.format(**{name: f"{host}:{port}" for name, (host, port) in places.items()})
            for word in shlex.split(command or warmproxy_command(python))
        ]
        self.cpu = cpu
        self.process: subprocess.Popen[bytes] | None = None
        self.folder = tempfile.TemporaryDirectory(prefix="first-request-")
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop()

    def start(self) -> None:
        # an empty folder, and no WARMPROXY_ variable: nobody's settings but ours
        environment = {k: v for k, v in os.environ.items() if not k.startswith("WARMPROXY_")}
        environment["PYTHONPATH"] = str(HERE.parent)
        self.process = link.spawn(
            self.command,
            self.cpu,
            cwd=self.folder.name,
            env=environment,
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )

    async def ready(self) -> None:
        give_up = time.monotonic() + READY_WITHIN
        while time.monotonic() < give_up and self.process.poll() is None:
            if self.asks_readiness:
                if not burst(self.admin, [get(self.admin, "/readyz")], 1, timeout=1)[0].error:
                    return
            else:
                with socket.socket() as probe:
                    if probe.connect_ex(self.listen) == 0:
                        return
            await asyncio.sleep(0.05)
        self.log.seek(0)
        told = self.log.read()[-2000:].decode(errors="replace")
        raise NotReady(f"{shlex.join(self.command)}\nis not ready; it said:\n{told}")

    def pools(self) -> object:
        answer = burst(self.admin, [get(self.admin, "/pools")], 1, timeout=1)[0]
        return answer.error or json.loads(answer.body)

    def stop(self) -> None:
        """Not a coroutine: a Ctrl-C that cancels us must not cancel this."""
        if self.process:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout=3)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.folder.cleanup()
        self.log.close()


def warmproxy_command(python: str) -> str:
    return (
        f"{shlex.quote(python)} -m warmproxy run --listen {{listen}} --admin {{admin}}"
        f" --warm http://{{plain}}={WARM} --warm https://{{tunnel}}={WARM}"
    )


class Bench:
    """One run: the lanes, the turn they take at the processor, and what was measured."""

    def __init__(
        self, options: argparse.Namespace, proxy_cpu: int, load_processes: list[int]
    ) -> None:
        self.options = options
        self.proxy_cpu = proxy_cpu
        self.load_processes = load_processes
        self.turn = asyncio.Lock()
        self.rounds: list[Round] = []
        self.handshakes: list[float] = []

        combinations = list(itertools.product(KINDS, BURSTS))
        self.cycles = [c for _ in range(options.rounds) for c in combinations]
        self.repeats_left = 0 if options.quick else int(REPEATS * len(self.cycles))
        # evenly spread within each cell, in random order: few rounds still meet all phases
        self.quiet_times: dict[tuple[str, int, str], list[float]] = {}
        for kind, n in combinations:
            for state in STATES:
                spread = [
                    QUIET + ORIGIN_IDLE * (k + random.random()) / options.rounds
                    for k in range(options.rounds)
                ]
                random.shuffle(spread)
                self.quiet_times[kind, n, state] = spread
        random.shuffle(self.cycles)

    async def run(self) -> None:
        cold = asyncio.create_task(self.measure_cold())
        lanes = min(self.options.lanes, len(self.cycles))
        await asyncio.gather(*(self.lane(number) for number in range(lanes)))
        cold.cancel()

    async def lane(self, number: int) -> None:
        while self.cycles:
            kind, n = self.cycles.pop()
            if not await self.cycle(number, kind, n) and self.repeats_left:
                self.repeats_left -= 1
                self.cycles.insert(0, (kind, n))

    async def cycle(self, lane: int, kind: str, n: int) -> bool:
        """Both of a cycle's rounds; false if something disturbed one of them."""
        undisturbed = True
        daemon = Daemon(self.options.command, lane, self.proxy_cpu, self.options.python)
        origin = daemon.plain if kind == "http" else daemon.tunnel
        requests = KINDS[kind](origin)
        try:
            async with self.turn:
                daemon.start()
                await daemon.ready()
            for state in STATES:
                if state != STATES[0]:
                    async with self.turn:
                        for _ in range(TRAFFIC // WARM):
                            burst(daemon.listen, requests, WARM)
                quiet_since = time.monotonic()
                quiet_times = self.quiet_times[kind, n, state]
                await self.wait_for_moment(
                    quiet_times.pop() if quiet_times else QUIET + ORIGIN_IDLE * random.random(),
                    origin,
                )
                async with self.turn:
                    quiet = time.monotonic() - quiet_since
                    watch = Watch([self.load_processes, [daemon.process.pid]])
                    answers = burst(daemon.listen, requests, n)
                    done = Round(kind, state, n, quiet, answers, watch.disturbance())
                    lives = self.ask_origin(origin)["lives"]
                    began = answers[0].started
                    done.held = held(lives, began - QUIET + ORIGIN_IDLE, began)
                    if done.missed(RTT / 2) and daemon.asks_readiness:
                        done.pools = daemon.pools()
                self.rounds.append(done)
                self.tell(done)
                undisturbed &= not done.disturbed
        finally:
            daemon.stop()
        return undisturbed

    async def wait_for_moment(self, quiet: float, origin: Address) -> None:
        """Be quiet; with --at-change, until the pool is about to replace a connection."""
        if not self.options.at_change:
            await asyncio.sleep(quiet)
            return
        await asyncio.sleep(QUIET)
        accepted = sorted(begin for begin, _ in self.ask_origin(origin)["lives"])[-2 * WARM :]
        period = statistics.median(b - a for a, b in zip(accepted, accepted[WARM:], strict=False))
        # the next ones open half an RTT before they are accepted; if they come only after the
        # origin has closed the old ones, these became useless two RTT before
        moment = random.choice(accepted[-WARM:]) + period + random.uniform(-2.75, 0.25) * RTT
        while moment < time.monotonic():
            moment += period
        await asyncio.sleep(moment - time.monotonic())

    @staticmethod
    def ask_origin(origin: Address) -> dict[str, list[Any]]:
        control = (link.FAR, CONTROL_PORT)
        return json.loads(burst(control, [get(control, f"/port/{origin[1]}")], 1)[0].body)

    async def measure_cold(self) -> None:
        """The same exchange without a proxy, and the RTT, all through the run."""
        origin = (link.FAR, PLAIN_PORTS)
        while True:
            for n in BURSTS:
                async with self.turn:
                    for _ in range(3):
                        self.handshakes.append(handshake(origin))
                    watch = Watch([self.load_processes])
                    answers = burst(origin, [get(origin)], n)
                    cold = Round("none", "cold", n, 0.0, answers, watch.disturbance())
                self.rounds.append(cold)
                await asyncio.sleep(self.options.cold_every)

    def tell(self, done: Round) -> None:
        slowest = max(answer.seconds for answer in done.answers) / RTT
        errors = {answer.error for answer in done.answers if answer.error}
        print(
            f"{done.kind:8} {done.state:14} burst {done.n:2}  quiet {done.quiet:5.2f} s"
            f"  slowest {slowest:.2f} RTT  not open before: {done.missed(RTT / 2)}"
            f"  disturbed for {done.disturbance * 1000:.1f} ms",
            *errors,
            file=sys.stderr,
        )

    def result(self) -> tuple[float, list[Cell]]:
        rtt = statistics.median(self.handshakes)
        by_cell: defaultdict[tuple[str, str, int], list[Round]] = defaultdict(list)
        for r in self.rounds:
            by_cell[r.kind, r.state, r.n].append(r)
        keys = [("none", "cold", n) for n in BURSTS]
        keys += itertools.product(KINDS, STATES, BURSTS)
        return rtt, [summarise(key, by_cell[key], rtt, self.options.enough) for key in keys]


def handshake(address: Address) -> float:
    with socket.socket() as probe:
        started = time.monotonic()
        probe.connect(address)
        return time.monotonic() - started


def table(cells: Iterable[Cell]) -> str:
    lines = [
        "| exchange | pools | burst | rounds (disturbed) | p50, RTT | slowest, RTT"
        " | opened before | bar |",
        "|---|---|--:|--:|--:|--:|--:|---|",
    ]
    for cell in cells:
        exchange = "direct, no proxy" if cell.cold else KIND_NAMES[cell.kind]
        verdict = "" if cell.cold else "met" if cell.passes else "**missed**"
        if cell.disturbed_used:
            verdict += " (disturbed)"
        if cell.errors:
            verdict += f", {len(cell.errors)} failed"
        times = [f"{t:.3f}" if t is not None else "none" for t in (cell.p50, cell.slowest)]
        opened = f"{cell.opened_before:.4g} %"
        rounds = f"{cell.rounds} ({cell.disturbed})"
        columns = [exchange, cell.state, cell.n, rounds, *times, opened, verdict]
        lines.append("| " + " | ".join(map(str, columns)) + " |")
    return "\n".join(lines)


def held_table(rounds: Iterable[Round]) -> str:
    by_pool: defaultdict[tuple[str, str], list[dict[int, float]]] = defaultdict(list)
    for r in rounds:
        if r.held:
            by_pool[r.kind, r.state].append(r.held)
    lines = [
        "| exchange | pools | " + " | ".join(f">= {n} usable" for n in BURSTS) + " |",
        "|---|---" + "|--:" * len(BURSTS) + "|",
    ]
    for kind, state in itertools.product(KINDS, STATES):
        shares = [statistics.mean(held[n] for held in by_pool[kind, state]) for n in BURSTS]
        columns = [KIND_NAMES[kind], state, *(f"{100 * share:.2f} %" for share in shares)]
        lines.append("| " + " | ".join(columns) + " |")
    return "\n".join(lines)


def versions(python: str) -> dict[str, str]:
    """What was measured; `tree` is the commit, with '+' when the tree differed from it."""
    script = (
        "import importlib.metadata as m, platform, warmproxy as w;"
        "print(getattr(w, '__version__', '?'), platform.python_version(), m.version('uvloop'))"
    )
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    asked = subprocess.run([python, "-c", script], capture_output=True, text=True, env=environment)
    answered = asked.stdout.split()
    told = dict(zip(("warmproxy", "Python", "uvloop"), answered, strict=False))

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(HERE.parent), *arguments]
        try:
            return subprocess.run(command, capture_output=True, text=True).stdout.strip()
        except FileNotFoundError:
            return ""

    if commit := git("rev-parse", "--short", "HEAD"):
        changed = git("status", "--porcelain", "--", "warmproxy")
        told["tree"] = commit + ("+" if changed else "")
    told["Linux"] = ".".join(platform.release().split(".")[:2])
    told["cores"] = str(len(os.sched_getaffinity(0)))
    return told


def write_readme(text: str) -> None:
    page = README.read_text() if README.exists() else ""
    if BEGIN not in page or END not in page:
        page = f"{page.rstrip()}\n\n{BEGIN}\n{END}\n".lstrip()
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    README.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two rounds per cell, writes nothing")
    parser.add_argument("--rounds", type=int, help="rounds per cell (12; 2 with --quick)")
    parser.add_argument("--lanes", type=int, help="daemons at a time (10; 12 with --quick)")
    parser.add_argument(
        "--json", metavar="FILE", help="write everything measured to FILE, - = stdout"
    )
    parser.add_argument(
        "--at-change",
        action="store_true",
        help="aim each burst at a moment when the pool replaces a connection; writes nothing",
    )
    parser.add_argument(
        "--command",
        default="",
        help="measure another proxy: its command line, with {listen}, {admin}, {plain}, {tunnel}"
        " where it needs HOST:PORT; writes nothing",
    )
    parser.add_argument("--python", help="the Python that runs warmproxy (.venv's, or this one)")
    options = parser.parse_args()
    options.writes_readme = not (
        options.quick or options.rounds or options.at_change or options.command
    )
    options.rounds = options.rounds or (2 if options.quick else 12)
    # undisturbed rounds without which a cell's disturbed ones count too
    options.enough = 1 if options.quick else min(options.rounds, 10)
    options.lanes = options.lanes or (12 if options.quick else 10)
    options.cold_every = 1.0 if options.quick else 5.0
    return options


def main() -> int:
    options = parse_options()
    if sys.platform != "linux" or os.geteuid() != 0:
        print("first_request.py needs Linux and root: it makes network namespaces", file=sys.stderr)
        return 2
    if not options.python:
        installed = HERE.parent / ".venv/bin/python"
        options.python = str(installed) if installed.exists() else sys.executable
    told = versions(options.python)
    cpus = sorted(os.sched_getaffinity(0))
    load_cpu, proxy_cpu = cpus[0], cpus[-1]
    os.sched_setaffinity(0, {load_cpu})
    link.go_first()

    ports = [CONTROL_PORT]
    ports += [base + lane for base in (PLAIN_PORTS, TUNNEL_PORTS) for lane in range(options.lanes)]
    origin = [sys.executable, str(HERE / "rig/origin.py"), str(ORIGIN_IDLE), *map(str, ports)]
    rig = link.join(RTT, origin, load_cpu)
    began = time.monotonic()
    try:
        while burst((link.FAR, CONTROL_PORT), [get((link.FAR, CONTROL_PORT))], 1)[0].error:
            time.sleep(0.1)
        load_processes = [os.getpid(), *(process.pid for process in rig)]
        bench = Bench(options, proxy_cpu, load_processes)
        asyncio.run(bench.run())
    except NotReady as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    finally:
        for process in rig:
            process.kill()
            process.wait()

    rtt, cells = bench.result()
    passed = all(cell.passes for cell in cells if not cell.cold)
    verdict = "met" if passed else "missed"
    command = " ".join(["python3 benchmarks/first_request.py", *map(shlex.quote, sys.argv[1:])])
    what = options.command or ", ".join(f"{name} {version}" for name, version in told.items())
    text = (
        f"`{command}`, {datetime.now(UTC):%Y-%m-%d}, {time.monotonic() - began:.0f} s; {what};\n"
        f"RTT measured {rtt * 1000:.2f} ms, origin closes after {ORIGIN_IDLE:g} s idle,"
        f" {WARM} warm, quiet {QUIET:g}-{QUIET + ORIGIN_IDLE:g} s.\n"
        f"Bar: 100 % opened before, p50 <= {BAR_P50}, slowest <= {BAR_SLOWEST}:"
        f" **{verdict}**.\n\n" + table(cells) + "\n\n"
        "Share of the last 5 s of quiet in which so many connections were open and usable:\n\n"
        + held_table(bench.rounds)
    )
    if options.json:
        everything = {
            "command": command,
            "versions": told,
            "rtt": rtt,
            "passed": passed,
            "cells": [asdict(cell) | {"passes": cell.passes} for cell in cells],
            "rounds": [asdict(r) for r in bench.rounds],
        }
        written = json.dumps(everything, indent=1, default=lambda body: None)
        if options.json == "-":
            print(written)
        else:
            Path(options.json).write_text(written + "\n")
    if options.json != "-":
        print(text)
    if options.writes_readme:
        write_readme(text)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
