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
import random
import shlex
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial

from rig import link, report, stage
from rig.bench import Bench
from rig.client import Burst, Exchange, get, through_proxy, through_tunnel
from rig.daemon import Daemon, NotReady
from rig.rounds import (
    QUIET,
    STATES,
    Cell,
    Round,
    Target,
    measure_direct,
    open_spans,
)
from rig.stage import ORIGIN_IDLE

NAME = "first_request.py"

RTT = 0.040
WARM = 10
BURSTS = (1, 4, 10)

BAR_P50 = 1.05
BAR_SLOWEST = 1.15

KINDS = {"http": through_proxy, "CONNECT": through_tunnel}
KIND_NAMES = {"http": "`http://`", "CONNECT": "`CONNECT` + 1 round trip"}

COLD = ("none", "cold")

PLAIN_PORTS = 8000  # + the lane's number
TUNNEL_PORTS = 9000


def passes(cell: Cell) -> bool:
    return cell.whole and cell.p50 <= BAR_P50 and cell.slowest <= BAR_SLOWEST


class FirstRequest(Bench):
    def proxy(self, lane: int, kind: str) -> tuple[Daemon, Target]:
        plain, tunnel = (link.FAR, PLAIN_PORTS + lane), (link.FAR, TUNNEL_PORTS + lane)
        daemon = Daemon(
            self.options.command or warmproxy_command(self.options.python),
            self.stage.proxy_cpu,
            places={"plain": plain, "tunnel": tunnel},
            asks_readiness=not self.options.command,
        )
        origin = plain if kind == "http" else tunnel
        return daemon, Target(kind, daemon.listen, origin, KINDS[kind](origin))

    def measure_direct(self, n: int) -> None:
        origin = (link.FAR, PLAIN_PORTS)
        self.stage.measure_rtt(origin)
        with Burst(Exchange(get(origin)), n) as connections:
            ask = partial(connections.run, origin)
            self.rounds.append(measure_direct(self.stage, *COLD, ask))

    async def wait_for_moment(self, quiet: float, target: Target) -> None:
        """With --at-change, until the pool is about to replace a connection."""
        if not self.options.at_change:
            await super().wait_for_moment(quiet, target)
            return
        await asyncio.sleep(QUIET)
        spans = open_spans(self.stage.lives(target.origin), secured=False)
        opened = sorted(begin for begin, _ in spans)[-2 * WARM :]
        period = statistics.median(b - a for a, b in zip(opened, opened[WARM:], strict=False))
        # if the next ones come only after the origin has closed the old ones, these became
        # useless one and a half RTT before
        moment = random.choice(opened[-WARM:]) + period + random.uniform(-2.25, 0.75) * RTT
        while moment < time.monotonic():
            moment += period
        await asyncio.sleep(moment - time.monotonic())


def warmproxy_command(python: str) -> str:
    return (
        f"{shlex.quote(python)} -m warmproxy run --listen {{listen}} --admin {{admin}}"
        f" --warm http://{{plain}}={WARM} --warm https://{{tunnel}}={WARM}"
    )


def table(cells: Iterable[Cell]) -> str:
    heads = ["exchange", "pools", "burst", "rounds (disturbed)", "p50, RTT", "slowest, RTT"]
    heads += ["opened before", "bar"]
    rows = []
    for cell in cells:
        cold = cell.state == "cold"
        row = ["direct, no proxy" if cold else KIND_NAMES[cell.kind], cell.state, cell.n]
        row += [f"{cell.rounds} ({cell.disturbed})", *report.times(cell.p50, cell.slowest)]
        row += [f"{cell.opened_before:.4g} %", "" if cold else report.verdict(cell, passes(cell))]
        rows.append(row)
    return report.table(heads, 2, rows)


def held_table(rounds: Iterable[Round]) -> str:
    by_pool: defaultdict[tuple[str, str], list[dict[int, float]]] = defaultdict(list)
    for r in rounds:
        if r.held:
            by_pool[r.kind, r.state].append(r.held)
    rows = []
    for kind, state in itertools.product(KINDS, STATES):
        shares = [statistics.mean(held[n] for held in by_pool[kind, state]) for n in BURSTS]
        rows.append([KIND_NAMES[kind], state, *(f"{100 * share:.2f} %" for share in shares)])
    heads = ["exchange", "pools", *(f">= {n} usable" for n in BURSTS)]
    return report.table(heads, 2, rows)


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
    parser.add_argument(
        "--python",
        default=report.python(),
        help="the Python that runs warmproxy (.venv's, or this one)",
    )
    options = parser.parse_args()
    options.writes_readme = not (
        options.quick or options.rounds or options.at_change or options.command
    )
    options.rounds = options.rounds or (2 if options.quick else 12)
    # undisturbed rounds without which a cell's disturbed ones count too
    options.enough = 1 if options.quick else min(options.rounds, 10)
    options.lanes = options.lanes or (12 if options.quick else 10)
    options.direct_every = 1.0 if options.quick else 5.0
    return options


def main() -> int:
    options = parse_options()
    if refusal := stage.refusal(NAME):
        print(refusal, file=sys.stderr)
        return 2
    told = report.versions(options.python)
    bases = (PLAIN_PORTS, TUNNEL_PORTS)
    ports = [str(base + lane) for base in bases for lane in range(options.lanes)]
    began = time.monotonic()
    try:
        with stage.built(RTT, ports) as built:
            bench = FirstRequest(built, KINDS, BURSTS, options)
            asyncio.run(bench.run())
    except NotReady as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130

    cells = bench.cells([COLD, *itertools.product(KINDS, STATES)]).values()
    passed = all(passes(cell) for cell in cells if cell.state != "cold")
    command = report.command(NAME)
    what = options.command or ", ".join(f"{name} {version}" for name, version in told.items())
    text = (
        f"`{command}`, {datetime.now(UTC):%Y-%m-%d}, {time.monotonic() - began:.0f} s; {what};\n"
        f"RTT measured {built.measured_rtt * 1000:.2f} ms, origin closes after {ORIGIN_IDLE:g} s"
        f" idle, {WARM} warm, quiet {QUIET:g}-{QUIET + ORIGIN_IDLE:g} s.\n"
        f"Bar: 100 % opened before, p50 <= {BAR_P50}, slowest <= {BAR_SLOWEST}:"
        f" **{'met' if passed else 'missed'}**.\n\n" + table(cells) + "\n\n"
        "Share of the last 5 s of quiet in which so many connections were open and usable:\n\n"
        + held_table(bench.rounds)
    )
    everything = {
        "command": command,
        "versions": told,
        "rtt": built.measured_rtt,
        "passed": passed,
        "cells": [asdict(cell) | {"passes": passes(cell)} for cell in cells],
        "rounds": [asdict(r) for r in bench.rounds],
    }
    report.deliver(NAME, text, everything, options)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
