"""What does a request cost, here and in the proxies that one could take instead? With bars to pass.

    .venv/bin/python benchmarks/peers.py                 # 15 minutes; README.md, peers.png
    .venv/bin/python benchmarks/peers.py --quick         # under two minutes; writes nothing
    .venv/bin/python benchmarks/peers.py --only a --peers haproxy --tree ../other --rounds 3

Needs Linux, nginx and wrk; the peers are installed by benchmarks/setup.sh, and those that are not
there are left out. All is on loopback: the proxies have the last processor core for themselves,
the load and the origin (nginx) the first one.

a  512 bytes, keep-alive, 1, 32 and 256 connections: processor time (user and system) of the proxy
   for each request; at 200 requests a second on one connection, the time added to the exchange
b  bodies of 1 MiB on 4 connections, of 100 MiB on one, and 100 MiB in a CONNECT tunnel:
   processor time of the proxy for each GiB
c  from the start of the process, without settings, to the first 200, asked every 3 ms
d  resident memory: empty, for each of 1,000 idle clients that made a request, and for each of
   1,000 idle upstream connections: ours are opened warm, the peers' are left by 1,000 requests;
   with --quick 250

All is done in rounds, in each of which every proxy is asked once, in random order; told are
medians, and ratios of medians. `--tree PATH` enters another tree of warmproxy beside the one that
this file is in, and tells the ratios of each round. No root is needed.

Exit status 0: no bar is missed; 1: one is; 2: nothing could be measured.
"""

import argparse
import importlib.util
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from field import figures, plots
from field.contest import Contest
from field.figures import OURS
from field.origin import Origin
from field.proxies import PEERS, Kind, ours
from field.running import Failed, take_cores
from rig import report

NAME = "peers.py"
PLOT = Path(__file__).with_suffix(".png")
TESTS = ("a", "b", "c", "d")
QUICK_PEERS = ("haproxy", "envoy", "squid")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = [kind.name for kind in PEERS]

    def some_of(names: Sequence[str]) -> Callable[[str], list[str]]:
        def parse(text: str) -> list[str]:
            given = [name for name in text.split(",") if name]
            if unknown := [name for name in given if name not in names]:
                raise argparse.ArgumentTypeError(
                    f"{', '.join(unknown)}: not one of {', '.join(names)}"
                )
            return given

        return parse

    parser.add_argument("--quick", action="store_true", help="shorter; haproxy, envoy, squid only")
    parser.add_argument("--only", type=some_of(TESTS), metavar="a,b,c,d", help="these tests")
    parser.add_argument(
        "--peers", type=some_of(known), metavar="X,Y", help=f"of {', '.join(known)}; '' for none"
    )
    parser.add_argument(
        "--tree", action="append", default=[], type=Path, help="another tree of warmproxy; repeat"
    )
    parser.add_argument("--rounds", type=int, help="5; with --quick 2")
    parser.add_argument("--seconds", type=int, help="of load at a time: 2; with --quick 1")
    parser.add_argument("--connections", type=some_of(("1", "32", "256")), metavar="1,32,256")
    parser.add_argument("--json", metavar="FILE", help="every value to FILE, - = stdout")
    parser.add_argument(
        "--latency", metavar="FILE", help="what first_request.py --json wrote, for the plot"
    )
    parser.add_argument("--python", default=report.python(), help="the Python that runs warmproxy")
    options = parser.parse_args()
    options.writes = not (
        options.quick
        or options.only
        or options.peers is not None
        or options.tree
        or options.rounds
        or options.seconds
        or options.connections
    )
    options.only = options.only or list(TESTS)
    if options.peers is None:
        options.peers = QUICK_PEERS if options.quick else known
    options.rounds = options.rounds or (2 if options.quick else 5)
    options.seconds = options.seconds or (1 if options.quick else 2)
    options.connections = [int(n) for n in options.connections or ("1", "32", "256")]
    return options


def entries(options: argparse.Namespace) -> tuple[list[Kind], list[str]]:
    """Who takes part, and the names of those that are not installed."""
    kinds = [ours(OURS, report.ROOT, options.python)]
    for tree in options.tree:
        place = tree.resolve()
        if not (place / "warmproxy/__main__.py").exists():
            raise Failed(f"{tree}: no warmproxy is in there")
        name = place.name
        while name in [kind.name for kind in kinds]:
            name += "'"
        kinds.append(ours(name, place, options.python))
    wanted = [kind for kind in PEERS if kind.name in options.peers]
    kinds += [kind for kind in wanted if kind.found()]
    return kinds, [kind.name for kind in wanted if not kind.found()]


def run(contest: Contest, options: argparse.Namespace) -> None:
    if "a" in options.only:
        contest.small(options.connections)
    if "b" in options.only:
        contest.bodies()
    if "c" in options.only:
        contest.starts()
    if "d" in options.only:
        contest.memory()


def told(contest: Contest, options: argparse.Namespace, head: str) -> str:
    """The text of the page."""
    found = figures.medians(contest.rounds)
    names = [kind.name for kind in contest.kinds]
    peers = [kind.name for kind in contest.kinds if not kind.ours]
    heads, rows = figures.field_rows(found, names)
    parts = [head, report.numbers(heads, rows)]
    if peers:
        rows = figures.bar_rows(found, peers)
        parts.append(report.table(figures.BAR_HEADS, 2, rows))
    trees = [kind.name for kind in contest.kinds if kind.ours and kind.name != OURS]
    if trees:
        parts.append(report.table(figures.TREE_HEADS, 2, figures.tree_rows(contest.rounds, trees)))
    if contest.failures:
        left_out = contest.failures.items()
        parts.append("\n".join(f"* {n} is left out of {m}: {why}" for (m, n), why in left_out))
    return "\n\n".join(parts)


def main() -> int:
    options = parse_options()
    if sys.platform != "linux":
        print(f"{NAME} needs Linux: it reads /proc", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that all is stopped
    began = time.monotonic()
    core = take_cores()
    with tempfile.TemporaryDirectory(prefix="warmproxy-peers-") as folder:
        home = Path(folder)
        home.chmod(0o755)
        try:
            kinds, missing = entries(options)
            for name in missing:
                print(f"{name} is not installed: left out (see setup.sh)", file=sys.stderr)
            (home / "origin").mkdir()
            tls = "d" in options.only and importlib.util.find_spec("trustme") is not None
            origin = Origin(home / "origin", tls=tls)
        except Failed as error:
            print(f"{NAME}: {error}", file=sys.stderr)
            return 2
        try:
            contest = Contest(
                kinds,
                origin,
                home,
                core,
                rounds=options.rounds,
                seconds=options.seconds,
                held=250 if options.quick else 1000,
            )
            run(contest, options)
        except KeyboardInterrupt:
            return 130
        finally:
            origin.stop()
    versions = report.versions(options.python)
    if not contest.rounds:
        return 2
    theirs = ", ".join(f"{kind.name} {kind.told_version()}" for kind in kinds if not kind.ours)
    mine = ", ".join(f"{name} {version}" for name, version in versions.items())
    command = report.command(NAME, ".venv/bin/python")
    head = (
        f"`{command}`, {datetime.now(UTC):%Y-%m-%d}, {time.monotonic() - began:.0f} s;"
        f" {options.rounds} rounds of {options.seconds} s;\n{mine};\n{theirs or 'no peers'}"
        + (f"; not installed: {', '.join(missing)}." if missing else ".")
    )
    text = told(contest, options, head)
    if options.json:
        everything = {
            "command": command,
            "versions": versions,
            "peers": theirs,
            "rounds": contest.rounds,
            "busy": contest.shares,
            "failures": {f"{m}: {n}": why for (m, n), why in contest.failures.items()},
        }
        report.write_json(options.json, everything)
    if options.json != "-":
        print(text)
    if options.writes:
        report.write_readme(NAME, text)
        cells = json.loads(Path(options.latency).read_text())["cells"] if options.latency else []
        names = [kind.name for kind in contest.kinds]
        plots.peers(figures.medians(contest.rounds), names, cells, PLOT)
    return int("**missed**" in text)


if __name__ == "__main__":
    sys.exit(main())
