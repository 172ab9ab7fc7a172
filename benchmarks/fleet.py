#!/usr/bin/env python3
"""What the pools of several daemons do to one origin: the same traffic, spread over more of them.

    python3 benchmarks/fleet.py          # half a minute; writes the table in docs/scaling.md

The requests of all clients together stay the same; each goes to one of n daemons by chance, as a
client does that has the daemon of its machine. Simulated with the project's own pools
(simulate.py), a dial takes 60 ms and the origin closes idle connections as Node 20 does. Counted is
what comes after the first 10 minutes.
"""

import argparse
import sys
import time
from pathlib import Path
from random import Random

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

from rig import report  # noqa: E402
from simulate import LIMITS, SEEDS, SETTLED, Spec, pool, trace  # noqa: E402
from simulator.traces import Trace  # noqa: E402
from simulator.world import Outcome, World  # noqa: E402

from warmproxy.settings import OriginSettings, share_of  # noqa: E402

NAME = "fleet.py"
PAGE = Path(__file__).parent.parent / "docs/scaling.md"
DAEMONS = (1, 5, 20, 50)
TOTAL = 10
"""Warm, of one daemon or of all."""
WAYS = (f"warm = {TOTAL} each", f"warm_total = {TOTAL}", 'warm = "auto"')
DIAL = 0.06
SEED = SEEDS[0]


def spec(way: str, daemons: int) -> Spec:
    """How each of so many daemons sizes its pool."""
    if way.endswith("each"):
        return "fixed", TOTAL, 0
    if way.startswith("warm_total"):
        return "fixed", share_of(TOTAL, daemons), 0
    return "auto", *OriginSettings().warm_range


def run(arrivals: Trace, way: str, daemons: int) -> Outcome:
    """All daemons, added up."""
    rng, together = Random(f"{SEED} {daemons}"), Outcome()
    mine: list[list[tuple[float, float]]] = [[] for _ in range(daemons)]
    for request in arrivals.origins[0]:
        mine[rng.randrange(daemons)].append(request)
    for requests in mine:
        world = World(pool(spec(way, daemons), arrivals, rng), LIMITS["Node"], DIAL, rng)
        together.add(world.run(requests, arrivals.seconds, SETTLED))
    return together


def table() -> str:
    rows = []
    for name in ("poisson", "cron"):
        arrivals = trace(name, SEED)
        seconds = arrivals.seconds - SETTLED
        for way in WAYS:
            for daemons in DAEMONS:
                found = run(arrivals, way, daemons)
                rows.append(
                    [
                        {"poisson": "5 a second", "cron": "10 at once, every minute"}[name],
                        f"`{way}`",
                        daemons,
                        f"{100 * found.hit_ratio:.1f}",
                        f"{found.idle_seconds / seconds:.1f}",
                        f"{60 * found.dials / seconds:.1f}",
                        f"{1000 * found.p99_wait:.0f}",
                    ]
                )
    heads = ["requests", "each daemon has", "daemons", "hits, %", "idle connections at the origin"]
    return report.table([*heads, "dials a minute", "p99 wait, ms"], 2, rows)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args()
    text = f"`{report.command(NAME)}`, {time.strftime('%Y-%m-%d')}, seed {SEED}.\n\n{table()}"
    print(text)
    if not options.no_write:
        report.write_page(PAGE, NAME, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
