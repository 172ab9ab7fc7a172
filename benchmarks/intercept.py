"""How long does the first request through CONNECT take where its TLS ends in the proxy?

    .venv/bin/python benchmarks/intercept.py            # some 6 minutes; writes README.md
    .venv/bin/python benchmarks/intercept.py --quick    # a minute; writes nothing

Needs what first_request_tls.py needs, and warmproxy[intercept]. The clients are the rig's own, in
bursts of 1 and 10, and as single requests curl, Python's requests, Node and Chromium (with
certutil); which of them is not installed is left out.

A TLS 1.3 origin that closes connections after 5 s of idling is behind a link with an RTT of 40 ms.
Each daemon goes through the cycle of first_request.py, and is asked four times after each quiet
time, by the same client, one after the other: CONNECT to a port of the origin

    intercepted   with `intercept`, and 10 warm connections whose handshake is done,
    tunnel        with 10 warm TCP connections: a blind tunnel with the client's own handshake,
    cold          of which it knows nothing,
    local         with `intercept`, of an origin on loopback: no round trip at all.

All times are those from before the client's connect() to the first byte of the answer. The client
tells when its own handshake with the proxy was done, too: an intercepted request may take that and
1.05 round trips. That no round trip hides in the handshake is seen at `local`, where there is none.
The origin decides whether a connection's handshake was done before the client came.
"""

import argparse
import asyncio
import itertools
import shlex
import ssl
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from rig import link, pki, programs, report, stage
from rig.bench import Bench
from rig.client import Address, through_tunnel
from rig.daemon import Daemon, NotReady
from rig.rounds import QUIET, STATES, Cell, Round, Target, measure, measure_direct
from rig.stage import ORIGIN_IDLE, Stage

NAME = "intercept.py"

RTT = 0.040
WARM = 10
BURSTS = (1, 10)
SETTLE = 0.1  # s: between two askings, until the pools are full again

BAR = 1.05
"""Round trips, beside the local handshake."""
HIDDEN = 0.5
"""Round trips by which the handshake may seem longer than without a distance."""

RIG = "rig"
WAYS = ("intercepted", "tunnel", "cold", "local")

NEAR = "127.0.0.1"
FIRST_PORT = 8000
PORTS_OF_A_LANE = 10


def origin_of(lane: int, way: str) -> Address:
    port = FIRST_PORT + PORTS_OF_A_LANE * lane + WAYS.index(way)
    return (NEAR if way == "local" else link.FAR), port


def settings(lane: int, ca_file: Path, ca_dir: Path) -> str:
    lines = ["learn_requests = 0", f'ca_dir = "{ca_dir}"']
    for way, pool in (
        ("intercepted", f"intercept = true\ntls = {WARM}\nwarm = 0"),
        ("local", f"intercept = true\ntls = {WARM}\nwarm = 0"),
        ("tunnel", f"warm = {WARM}"),
    ):
        url = "https://{}:{}".format(*origin_of(lane, way))
        lines += ["[[upstream]]", f'url = "{url}"', f'ca_file = "{ca_file}"', pool]
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Keys:
    """Whom the daemon and the clients trust, and how."""

    ca_file: Path
    """The authority of the origins."""
    ca_dir: Path
    """The folder of the daemon's own."""
    trust: programs.Trust
    """Both, for the clients."""
    context: ssl.SSLContext
    """The rig's client's."""


class Intercept(Bench):
    def __init__(
        self, stage: Stage, clients: Sequence[str], options: argparse.Namespace, keys: Keys
    ) -> None:
        super().__init__(stage, clients, BURSTS, options, SETTLE)
        self.cycles = [(client, n) for client, n in self.cycles if n == 1 or client == RIG]
        self.keys = keys

    def proxy(self, lane: int, kind: str) -> tuple[Daemon, Target]:
        daemon = Daemon(
            f"{shlex.quote(self.options.python)} -m warmproxy run"
            " --listen {listen} --admin {admin} --config {config}",
            self.stage.proxy_cpu,
            settings=settings(lane, self.keys.ca_file, self.keys.ca_dir),
        )
        return daemon, self.target(daemon, lane, kind, WAYS[0])

    def target(self, daemon: Daemon, lane: int, client: str, way: str) -> Target:
        origin = origin_of(lane, way)
        program = None
        if client != RIG:
            kind = programs.PROGRAMS[client]
            program = partial(kind, self.keys.trust, self.options.python)
        exchange = through_tunnel(origin, self.keys.context)
        secured = way == "intercepted"
        return Target(f"{client} {way}", daemon.listen, origin, exchange, secured, program)

    async def ask(
        self, daemon: Daemon, target: Target, state: str, n: int, quiet_since: float
    ) -> list[Round]:
        """All four ways; that of the target first."""
        client = target.kind.rpartition(" ")[0]
        lane = (target.origin[1] - FIRST_PORT) // PORTS_OF_A_LANE
        done = [measure(self.stage, target, state, n, quiet_since, daemon, BURSTS)]
        for way in WAYS[1:]:
            await asyncio.sleep(SETTLE)
            other = self.target(daemon, lane, client, way)
            if way == "local":
                with other.clients(n) as ask:
                    done += [measure_direct(self.stage, other.kind, state, ask, daemon.pid)]
            else:
                done += [measure(self.stage, other, state, n, quiet_since, daemon, BURSTS)]
        return done

    def measure_direct(self, n: int) -> None:
        """The RTT alone: cold is asked through the proxy here."""
        self.stage.measure_rtt(origin_of(0, "cold"))


@dataclass(frozen=True)
class Line:
    """What one client saw in one state, by the ways."""

    client: str
    n: int
    state: str
    cells: Mapping[str, Cell]

    @property
    def handshake(self) -> float | None:
        """The client's own, with the proxy, in RTT."""
        return self.cells["intercepted"].shaken

    @property
    def no_distance(self) -> float | None:
        """The same where no origin is far away."""
        return self.cells["local"].shaken

    @property
    def beside(self) -> float | None:
        """What each request took beside its own: what the bar is for."""
        return self.cells["intercepted"].beside

    @property
    def passes(self) -> bool:
        if any(cell.errors for cell in self.cells.values()):
            return False
        if self.beside is None or self.handshake is None or self.no_distance is None:
            return False
        is_local = self.handshake - self.no_distance <= HIDDEN
        is_warm = self.cells["intercepted"].opened_before == 100
        return is_local and is_warm and self.beside <= BAR


def lines_of(bench: Intercept, clients: Sequence[str]) -> list[Line]:
    kinds = [f"{client} {way}" for client, way in itertools.product(clients, WAYS)]
    cells = bench.cells(itertools.product(kinds, STATES))
    lines = []
    for client, n, state in itertools.product(clients, BURSTS, STATES):
        ways = {way: cells[f"{client} {way}", state, n] for way in WAYS}
        if ways["intercepted"].rounds:
            lines.append(Line(client, n, state, ways))
    return lines


def table(lines: Sequence[Line]) -> str:
    heads = ["client", "pools", "burst", "rounds (disturbed)", "cold", "tunnel", "intercepted"]
    heads += ["slowest", "handshake", "at no distance", "beside it", "opened before", "bar"]
    rows = []
    for line in lines:
        cell = line.cells["intercepted"]
        p50s = [line.cells[way].p50 for way in ("cold", "tunnel", "intercepted")]
        row = [line.client, line.state, line.n, f"{cell.rounds} ({cell.disturbed})"]
        row += report.times(*p50s, cell.slowest, line.handshake, line.no_distance, line.beside)
        rows.append([*row, f"{cell.opened_before:.4g} %", report.verdict(cell, line.passes)])
    return report.table(heads, 2, rows)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one round a line, writes nothing")
    parser.add_argument("--rounds", type=int, help="rounds per line (6; 1 with --quick)")
    parser.add_argument("--lanes", type=int, default=12, help="daemons at a time (12)")
    parser.add_argument(
        "--clients",
        default=",".join((RIG, *programs.PROGRAMS)),
        help="some of %(default)s; writes nothing",
    )
    parser.add_argument(
        "--json", metavar="FILE", help="write everything measured to FILE, - = stdout"
    )
    parser.add_argument(
        "--python",
        default=report.python(),
        help="the Python that runs warmproxy (.venv's, or this one)",
    )
    options = parser.parse_args()
    every = options.clients == parser.get_default("clients")
    options.writes_readme = every and not (options.quick or options.rounds)
    options.rounds = options.rounds or (1 if options.quick else 6)
    # undisturbed rounds without which a line's disturbed ones count too
    options.enough = 1 if options.quick else min(options.rounds, 4)
    options.direct_every = 1.0 if options.quick else 5.0
    return options


def prepare(folder: Path) -> tuple[Keys, Path]:
    """In this folder; beside the keys the origins' certificate."""
    from warmproxy.net import authority  # what this needs, trustme needs too

    ca_file, certificate = pki.make(folder, link.FAR, NEAR)
    ca_dir = folder / "ca"
    authority.create(ca_dir, [link.FAR, NEAR], now=time.time(), days=30)
    trust = programs.trust(folder, [ca_file, ca_dir / authority.TRUST])
    return Keys(ca_file, ca_dir, trust, pki.client_context()), certificate


def main() -> int:
    options = parse_options()
    if refusal := stage.refusal(NAME) or pki.refusal(NAME):
        print(refusal, file=sys.stderr)
        return 2
    told = report.versions(options.python)
    asked = options.clients.split(",")
    found = {
        name: version
        for name, program in programs.PROGRAMS.items()
        if name in asked and (version := program.version(options.python))
    }
    clients = [name for name in asked if name == RIG or name in found]
    left_out = [name for name in asked if name not in clients]
    ports = {
        is_near: [
            f"{origin_of(lane, way)[1]}/1.3"
            for lane in range(options.lanes)
            for way in WAYS
            if (way == "local") == is_near
        ]
        for is_near in (False, True)
    }
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="intercept-") as folder:
        keys, certificate = prepare(Path(folder))
        try:
            with (
                stage.built(RTT, ports[False], str(certificate)) as built,
                stage.near(str(certificate), ports[True]),
            ):
                bench = Intercept(built, clients, options, keys)
                asyncio.run(bench.run())
        except NotReady as error:
            print(error, file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            return 130

    lines = lines_of(bench, clients)
    passed = all(line.passes for line in lines)
    command = report.command(NAME, ".venv/bin/python")
    what = ", ".join(f"{name} {version}" for name, version in told.items())
    longest = max(r.quiet for r in bench.rounds)
    text = (
        f"`{command}`, {datetime.now(UTC):%Y-%m-%d}, {time.monotonic() - began:.0f} s; {what};\n"
        f"{', '.join(found.values())}.\n"
        f"RTT measured {built.measured_rtt * 1000:.2f} ms, origin closes after {ORIGIN_IDLE:g} s"
        f" idle, {WARM} warm, quiet {QUIET:g}-{longest:.1f} s; p50 (and the slowest of what is"
        " intercepted) in RTT.\n"
        f"Bar: 100 % opened before, p50 beside the local handshake <= {BAR}:"
        f" **{'met' if passed else 'missed'}**.\n\n{table(lines)}"
    )
    if left_out:
        text += f"\n\nNot installed, and left out: {', '.join(left_out)}."
    everything = {
        "command": command,
        "versions": told | found,
        "rtt": built.measured_rtt,
        "passed": passed,
        "missed": [(line.client, line.n, line.state) for line in lines if not line.passes],
        "lines": [asdict(line) for line in lines],
        "rounds": [asdict(r) for r in bench.rounds],
    }
    report.deliver(NAME, text, everything, options)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
