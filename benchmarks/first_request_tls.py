"""The same for https: how many round trips does the first request after a quiet time take?

    .venv/bin/python benchmarks/first_request_tls.py            # 6-7 minutes; writes README.md
    .venv/bin/python benchmarks/first_request_tls.py --rtt 200  # the same on a longer way
    .venv/bin/python benchmarks/first_request_tls.py --quick    # a minute; writes nothing

Needs what first_request.py needs, and trustme for the certificates (warmproxy's dev group has it).

Origins that speak TLS 1.3, and others that speak TLS 1.2, close connections after 5 s of idling.
A daemon has one pool of 50 connections, for one of the ways to reach them (WAYS), and verifies
their certificates by a ca_file. Several daemons, each with its own ports on the origins, go through
the cycle of first_request.py. A burst is 1, 10 or 50 new client connections at once, each with one
request.

The origin decides whether a connection was open before the client came: for a tunnel when it was
connected, for the other ways when its handshake was done.

Handshakes of the client's own, inside tunnels, cost more processor time in this one client and this
one origin than the bar leaves for all: fifty programs on as many machines would not wait for each
other. So the same bursts are also made without a proxy, on connections that this client itself held
open: the floor, which is what the rig takes. In bursts of 10 and 50 the tunnels' bar is for what
the proxy adds to that; all other bars are for the times as they are.
"""

import argparse
import asyncio
import itertools
import shlex
import ssl
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from rig import link, pki, report, stage
from rig.bench import Bench
from rig.client import Address, Burst, Exchange, get, through_proxy, through_tunnel
from rig.daemon import Daemon, NotReady
from rig.rounds import QUIET, STATES, Cell, Round, Target, measure_direct
from rig.stage import ORIGIN_IDLE, Stage

NAME = "first_request_tls.py"

WARM = 50
BURSTS = (1, 10, 50)
SETTLE = 0.1  # s: after a burst, until its pool is full again

BAR_P50 = {1: 1.05, 10: 1.05, 50: 1.10}
BAR_TUNNEL = 2.10
BAR_SPREAD = {0.040: 0.15, 0.200: 0.05}  # p99 - p50, by RTT

FIRST_PORT = 8000
PORTS_OF_A_LANE = 10


@dataclass(frozen=True)
class Way:
    kind: str
    version: str  # of TLS, at the origin

    @property
    def name(self) -> str:
        return f"{self.kind} {self.version}"

    @property
    def tunnel(self) -> bool:
        return self.kind == "tunnel"


_ALL = [Way(kind, v) for kind in ("forwarded", "upgraded", "gateway") for v in ("1.3", "1.2")]
WAYS = {way.name: way for way in (*_ALL, Way("tunnel", "1.3"))}

TITLES = {
    "forwarded": "`https://` in absolute-form",
    "upgraded": "`http://`, upgraded",
    "gateway": "base URL (gateway)",
    "tunnel": "`CONNECT`, client's own TLS",
    "request": "the same connections, again",
    "handshake": "TLS on held TCP",
    "cold": "direct, no proxy",
}
FLOOR = {False: ("request 1.3", "floor"), True: ("handshake 1.3", "floor")}  # by Way.tunnel


def origin_of(lane: int, way: Way) -> Address:
    return link.FAR, FIRST_PORT + PORTS_OF_A_LANE * lane + list(WAYS).index(way.name)


def gateway_of(origin: Address) -> Address:
    return "127.0.0.1", origin[1]


def settings(way: Way, origin: Address, ca_file: Path) -> str:
    """One pool of 50, of the kind that this way takes from."""
    url = "https://{}:{}".format(*origin)
    lines = ["[[upstream]]", f'url = "{url}"', f'ca_file = "{ca_file}"']
    lines += [f"warm = {WARM}"] if way.tunnel else ["warm = 0", f"tls = {WARM}"]
    if way.kind == "upgraded":
        lines += ["upgrade = true"]
    if way.kind == "gateway":
        listen = "{}:{}".format(*gateway_of(origin))
        lines += ["[[gateway]]", f'listen = "{listen}"', f'upstream = "{url}"']
    return "\n".join(lines) + "\n"


class FirstRequestTls(Bench):
    def __init__(
        self, stage: Stage, options: argparse.Namespace, ca_file: Path, context: ssl.SSLContext
    ) -> None:
        super().__init__(stage, WAYS, BURSTS, options, SETTLE)
        self.ca_file = ca_file
        self.context = context

    def proxy(self, lane: int, kind: str) -> tuple[Daemon, Target]:
        way = WAYS[kind]
        origin = origin_of(lane, way)
        daemon = Daemon(
            f"{shlex.quote(self.options.python)} -m warmproxy run"
            " --listen {listen} --admin {admin} --config {config}",
            self.stage.proxy_cpu,
            settings=settings(way, origin, self.ca_file),
        )
        address = daemon.listen
        match way.kind:
            case "forwarded":
                exchange = through_proxy(origin, "https")
            case "upgraded":
                exchange = through_proxy(origin)
            case "gateway":
                address = gateway_of(origin)
                exchange = Exchange(get(address))
            case _:
                exchange = through_tunnel(origin, self.context)
        return daemon, Target(kind, address, origin, exchange, secured=not way.tunnel)

    def measure_direct(self, n: int) -> None:
        """Cold, and on connections that are there."""
        modern, old = (origin_of(0, WAYS[f"forwarded {version}"]) for version in ("1.3", "1.2"))
        self.stage.measure_rtt(modern)
        cold = Exchange(get(modern), tls=self.context)
        with Burst(cold, n) as connections:
            self.direct("cold 1.3", "cold", modern, connections)
            connections.prepare(Exchange(get(modern)))
            self.direct(*FLOOR[False], modern, connections)
        with Burst(Exchange(get(old), tls=self.context), n) as connections:
            self.direct("cold 1.2", "cold", old, connections)
        with Burst(Exchange(b""), n) as connections:
            connections.run(modern)
            connections.prepare(cold)
            self.direct(*FLOOR[True], modern, connections)

    def direct(self, kind: str, state: str, origin: Address, connections: Burst) -> None:
        ask = partial(connections.run, origin)
        self.rounds.append(measure_direct(self.stage, kind, state, ask))


class Judge:
    """The bars of issue 5 on the cells of one run."""

    def __init__(self, cells: dict[tuple[str, str, int], Cell], rtt: float) -> None:
        self.cells = cells
        self.spread = BAR_SPREAD[rtt]

    def passes(self, cell: Cell) -> bool:
        if not cell.whole:
            return False
        p50, spread = cell.p50, cell.p99 - cell.p50
        tunnel = cell.kind.startswith("tunnel")
        if tunnel and cell.n > 1:
            floor = self.cells[(*FLOOR[True], cell.n)]
            if floor.p50 is None:
                return False
            p50 -= floor.p50 - 2
            spread -= floor.p99 - floor.p50
        return p50 <= (BAR_TUNNEL if tunnel else BAR_P50[cell.n]) and spread <= self.spread

    @property
    def passed(self) -> bool:
        return all(self.passes(cell) for cell in self.judged)

    @property
    def judged(self) -> list[Cell]:
        return [cell for cell in self.cells.values() if cell.state in STATES]

    def above_floor(self, cell: Cell) -> str:
        if cell.state not in STATES:
            return ""
        floor = self.cells[(*FLOOR[cell.kind.startswith("tunnel")], cell.n)]
        if cell.p50 is None or floor.p50 is None:
            return "none"
        return f"{cell.p50 - floor.p50:+.3f}"


def table(judge: Judge) -> str:
    heads = ["exchange", "TLS", "pools", "burst", "rounds (disturbed)", "p50, RTT", "above floor"]
    heads += ["p99, RTT", "opened before", "bar"]
    rows = []
    for cell in judge.cells.values():
        kind, _, version = cell.kind.partition(" ")
        judged = cell.state in STATES
        p50, p99 = report.times(cell.p50, cell.p99)
        row = [TITLES[kind], version, cell.state, cell.n, f"{cell.rounds} ({cell.disturbed})", p50]
        row += [judge.above_floor(cell), p99, f"{cell.opened_before:.4g} %" if judged else ""]
        row += [report.verdict(cell, judge.passes(cell)) if judged else ""]
        rows.append(row)
    return report.table(heads, 3, rows)


def held_line(rounds: Iterable[Round]) -> str:
    """The worst pools' share of time at full strength: one number for each state."""
    by_state: defaultdict[str, list[float]] = defaultdict(list)
    for r in rounds:
        if r.held:
            by_state[r.state].append(r.held[WARM])
    said = [
        f"{state}: {100 * sum(shares) / len(shares):.2f} % (worst round {100 * min(shares):.2f} %)"
        for state, shares in by_state.items()
    ]
    return (
        f"Share of the last 5 s of quiet in which {WARM} connections were open and usable: "
        + "; ".join(said)
        + "."
    )


def processor_table(judge: Judge) -> str:
    """Who computed for how long in a burst of 50."""
    names = ("proxy", "client", "origin", "link")
    rows = []
    for cell in judge.cells.values():
        if cell.n == max(BURSTS) and cell.state in ("cold", "floor", STATES[1]):
            kind, _, version = cell.kind.partition(" ")
            spent = [f"{1000 * cell.cpu[k]:.1f}" if k in cell.cpu else "-" for k in names]
            rows.append([*spent, f"{TITLES[kind]}, TLS {version}"])
    return report.table([*(f"{name}, ms" for name in names), "burst of 50"], 0, rows)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one round a cell, writes nothing")
    parser.add_argument("--rtt", type=int, choices=(40, 200), default=40, help="in ms (40)")
    parser.add_argument(
        "--rounds", type=int, help="rounds per cell (5; 3 with an RTT of 200 ms; 1 with --quick)"
    )
    parser.add_argument("--lanes", type=int, help="daemons at a time (12; 21 with --quick)")
    parser.add_argument(
        "--json", metavar="FILE", help="write everything measured to FILE, - = stdout"
    )
    parser.add_argument(
        "--python",
        default=report.python(),
        help="the Python that runs warmproxy (.venv's, or this one)",
    )
    options = parser.parse_args()
    options.writes_readme = not (options.quick or options.rounds)
    options.rounds = options.rounds or (1 if options.quick else 5 if options.rtt == 40 else 3)
    # undisturbed rounds without which a cell's disturbed ones count too
    options.enough = 1 if options.quick else options.rounds - 1
    options.lanes = options.lanes or (21 if options.quick else 12)
    options.direct_every = 1.0 if options.quick else 8.0
    return options


def main() -> int:
    options = parse_options()
    if refusal := stage.refusal(NAME) or pki.refusal(NAME):
        print(refusal, file=sys.stderr)
        return 2
    told = report.versions(options.python)
    rtt = options.rtt / 1000
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="first-request-tls-") as folder:
        ca_file, certificate = pki.make(Path(folder), link.FAR)
        ports = [
            f"{origin_of(lane, way)[1]}/{way.version}"
            for lane in range(options.lanes)
            for way in WAYS.values()
        ]
        try:
            with stage.built(rtt, ports, str(certificate)) as built:
                bench = FirstRequestTls(built, options, ca_file, pki.client_context())
                asyncio.run(bench.run())
        except NotReady as error:
            print(error, file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            return 130

    lines = [("cold 1.3", "cold"), ("cold 1.2", "cold"), *FLOOR.values()]
    judge = Judge(bench.cells([*lines, *itertools.product(WAYS, STATES)]), rtt)
    command = report.command(NAME, ".venv/bin/python")
    what = ", ".join(f"{name} {version}" for name, version in told.items())
    longest = max(r.quiet for r in bench.rounds)
    text = (
        f"`{command}`, {datetime.now(UTC):%Y-%m-%d}, {time.monotonic() - began:.0f} s; {what};\n"
        f"RTT measured {built.measured_rtt * 1000:.2f} ms, origins close after {ORIGIN_IDLE:g} s"
        f" idle, {WARM} warm, quiet {QUIET:g}-{longest:.1f} s.\n"
        f"Bar: 100 % opened before; p50 <= {BAR_P50[1]} ({BAR_P50[50]:.2f} at a burst of 50), with"
        f" the client's own TLS 1.3 <= {BAR_TUNNEL:.2f}; p99 within {judge.spread} RTT of p50:"
        f" **{'met' if judge.passed else 'missed'}**.\n\n"
        f"{table(judge)}\n\n{held_line(bench.rounds)}\n\n"
        f"Processor time of one burst of 50, after traffic:\n\n{processor_table(judge)}"
    )
    everything = {
        "command": command,
        "versions": told,
        "rtt": built.measured_rtt,
        "passed": judge.passed,
        "cells": [asdict(cell) for cell in judge.cells.values()],
        "missed": [(c.kind, c.state, c.n) for c in judge.judged if not judge.passes(c)],
        "rounds": [asdict(r) for r in bench.rounds],
    }
    report.deliver(f"{NAME}, {options.rtt} ms", text, everything, options)
    return 0 if judge.passed else 1


if __name__ == "__main__":
    sys.exit(main())
