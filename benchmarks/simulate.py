#!/usr/bin/env python3
"""How many connections should be open, and who knows best? The policy and its rivals, simulated.

    python3 benchmarks/simulate.py          # some 5 minutes on two cores; README.md and a plot
    python3 benchmarks/simulate.py --full   # more seeds and dial times: most of an hour

The project's own pools and policies, with ints for connections and a heap of events for time: no
socket, no sleep. Arrivals (traces.py) x idle limits of servers x times that a dial takes; rivals
are swept over their parameters. All numbers follow from the seeds; those here were not used to
choose anything in policy/sizing.py (1 to 5 were).

The bar, for each cell: no swept rival has both a better hit ratio and fewer idle socket-seconds,
and ours has 99 % of the hits of an oracle that knows the future and has the same caps. Counted is
what comes after the first 10 minutes, in which demand is seen for the first time. The hosts of the
Zipf trace are not configured but learned from their traffic, by the oracle, too.

Exit status 0: the bar is met; 1: it is missed.
"""

import argparse
import importlib.util
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import inf
from multiprocessing import Pool as Processes
from pathlib import Path
from random import Random

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

from rig import report  # noqa: E402
from simulator import traces  # noqa: E402
from simulator.rivals import Hikari, Ratio, oracle  # noqa: E402
from simulator.world import Limits, Outcome, World  # noqa: E402

from warmproxy.observe import Observer  # noqa: E402
from warmproxy.origin import origin  # noqa: E402
from warmproxy.policy.backoff import DialBudget  # noqa: E402
from warmproxy.policy.sizing import Auto, Fixed, Learned, Sizing  # noqa: E402
from warmproxy.pool.origin_pool import OriginPool  # noqa: E402
from warmproxy.settings import OriginSettings, Settings  # noqa: E402

NAME = "simulate.py"
DOCS = Path(__file__).parent
ORIGIN = origin("http", "h", 80)
LIMITS = {
    one.name: one
    for one in (
        Limits("Node", 82, 5),
        Limits("nginx", 60, 75),
        Limits("uvicorn", inf, 5),
        Limits("gthread", 7, 1.7),
        Limits("hypercorn", 5, 5),
        Limits("none", inf, inf),
    )
}
DIALS = (0.02, 0.06, 0.2)
TRACES = ("every_7_s", "steady", "poisson", "tunnels", "cron", "day", "zipf")
SEEDS = (101, 102)
SETTLED = 600.0
"""Seconds at the start that do not count."""
MOST = 20
"""warm_max of ours, and the oracle's cap."""
SHARE = 0.99
BUSY_RATE = 200.0
"""Requests a second over 10,000 origins, for what the policy costs."""
BUSY_COST = 0.01

FLOOR = 3e-5
"""Share of misses at which the plots end."""

Spec = tuple[str, float, float]
Cell = tuple[str, str, float]


def policies() -> dict[str, Spec]:
    """Name -> kind and parameters."""
    swept: dict[str, Spec] = {"ours": ("auto", 1, MOST), "oracle": ("oracle", MOST, 0)}
    for n in (0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20):
        swept[f"fixed {n}"] = ("fixed", n, 0)
    for n in (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20):
        swept[f"HikariCP {n}"] = ("hikari", n, n)
    for n in (2, 8):
        swept[f"HikariCP {n} of 20"] = ("hikari", n, MOST)
    for ratio in (1, 1.5, 2, 3):
        swept[f"Envoy {ratio:g}"] = ("ratio", ratio, 0)
    return swept


@lru_cache(maxsize=8)
def trace(name: str, seed: int) -> traces.Trace:
    made: traces.Trace = getattr(traces, name)(Random(seed))
    return made


def pool(spec: Spec, arrivals: traces.Trace, rng: Random) -> object:
    """What answers the arrivals of one origin."""
    kind, a, b = spec
    if kind == "hikari":
        return Hikari(int(a), int(b), rng.random)
    settings = OriginSettings()
    sizing: Sizing
    count = a
    if kind == "fixed":
        sizing = Fixed(int(a))
    elif kind == "ratio":
        sizing, count, settings = Ratio(a), 1000, OriginSettings(idle_timeout=3600.0)  # Envoy's
    else:
        least, most = (1, Settings().learn_warm) if arrivals.learned else (int(a), int(b))
        sizing, count = Auto(least, most, reuse=not arrivals.tunnels), most
    if arrivals.learned:
        sizing = learned(sizing)
    rate = max(2.0 * count, 1.0)
    budget = DialBudget(rate, max(rate, count))
    return OriginPool(ORIGIN, settings, sizing, budget, Observer(), rng.random, 0.0)


def learned(sizing: Sizing) -> Learned:
    usual = Settings()
    return Learned(usual.learn_requests, usual.learn_window, usual.learn_quiet, sizing)


def run(spec: Spec, name: str, limits: Limits, dial: float, seed: int) -> Outcome:
    """One policy through one trace, all its origins."""
    arrivals, rng, sum_of_all = trace(name, seed), Random(str(seed)), Outcome()
    for requests in arrivals.origins:
        if not requests:
            continue
        if spec[0] != "oracle":
            world = World(pool(spec, arrivals, rng), limits, dial, rng, tunnels=arrivals.tunnels)
            sum_of_all.add(world.run(requests, arrivals.seconds, SETTLED))
            continue
        most = Settings().learn_warm if arrivals.learned else int(spec[1])
        known: Sizing = learned(Fixed(most)) if arrivals.learned else Fixed(most)

        def cap(now: float, known: Sizing = known) -> int:
            allowed = known.target_idle(now, 0, 0.0, inf)
            known.asked(now, 0)
            return allowed

        kept = Limits("", limits.fresh, min(limits.used, OriginSettings().idle_timeout))
        foresight = oracle(requests, kept, dial, cap, tunnels=arrivals.tunnels, since=SETTLED)
        sum_of_all.add(foresight)
    return sum_of_all


@dataclass(frozen=True)
class Figure:
    """What is left of an Outcome for the table."""

    requests: int
    hits: int
    idle: float
    dials: int
    p99: float


def job(work: tuple[Cell, str, Spec, tuple[int, ...]]) -> tuple[Cell, str, Figure]:
    cell, name, spec, seeds = work
    outcome = Outcome()
    for seed in seeds:
        outcome.add(run(spec, cell[0], LIMITS[cell[1]], cell[2], seed))
    return (
        cell,
        name,
        Figure(
            outcome.requests, outcome.hits, outcome.idle_seconds, outcome.dials, outcome.p99_wait
        ),
    )


def cells(options: argparse.Namespace) -> Iterator[Cell]:
    for name in options.traces:
        for limits in LIMITS:
            for dial in DIALS if options.full and name != "zipf" else DIALS[1:2]:
                if name != "zipf" or limits in ("Node", "none"):  # the largest by far
                    yield name, limits, dial


@dataclass
class Verdict:
    """How ours fared in one cell."""

    cell: Cell
    ours: Figure
    oracle: Figure
    beaten_by: str
    """A rival that is better in both, "" for none."""
    nearest: str
    """The cheapest rival with at least our hits."""
    nearest_idle: float

    @property
    def share(self) -> float:
        return self.ours.hits / self.oracle.hits

    @property
    def met(self) -> bool:
        return not self.beaten_by and self.share >= SHARE


def judge(cell: Cell, figures: dict[str, Figure]) -> Verdict:
    ours, oracle_ = figures["ours"], figures["oracle"]
    rivals = {n: f for n, f in figures.items() if n not in ("ours", "oracle")}
    beaten = [n for n, f in rivals.items() if f.hits > ours.hits and f.idle < ours.idle]
    as_good = {f.idle: n for n, f in rivals.items() if f.hits >= ours.hits}
    idle = min(as_good, default=inf)
    return Verdict(cell, ours, oracle_, beaten[0] if beaten else "", as_good.get(idle, ""), idle)


def table(verdicts: list[Verdict]) -> str:
    """A line for each trace and limit, its dial times added up, the worst of them judged."""
    heads = ["trace", "idle limits", "requests", "hits, %", "of the oracle's, %"]
    heads += ["p99 wait, ms", "idle sockets", "dials/request", "as many hits elsewhere cost", "bar"]
    rows = []
    for group in dict.fromkeys(v.cell[:2] for v in verdicts):
        mine = [v for v in verdicts if v.cell[:2] == group]
        requests = sum(v.ours.requests for v in mine)
        hits = sum(v.ours.hits for v in mine)
        share = min(v.share for v in mine)
        idle = sum(v.ours.idle for v in mine)
        per = requests / sum(v.ours.requests / span(v) for v in mine)
        dear = [v.nearest_idle / v.ours.idle for v in mine if v.nearest_idle < inf]
        least = f"{min(dear):.2f} x" if dear else "nobody has them"
        missed = [f"{v.cell[2] * 1000:g} ms: {why(v)}" for v in mine if not v.met]
        rows.append(
            [
                traces_name(group[0]),
                group[1],
                requests,
                f"{100 * hits / requests:.3f}",
                f"{100 * share:.2f}",
                f"{1000 * max(v.ours.p99 for v in mine):.0f}",
                f"{idle / sum(span(v) for v in mine):.2f}" if per else "",
                f"{sum(v.ours.dials for v in mine) / requests:.3f}",
                least,
                f"**missed** ({'; '.join(missed)})" if missed else "met",
            ]
        )
    return report.table(heads, 2, rows)


def traces_name(name: str) -> str:
    return {"every_7_s": "every 7 s", "poisson": "Poisson", "zipf": "Zipf, 10,000 hosts"}.get(
        name, "day with a sale" if name == "day" else name
    )


def span(verdict: Verdict) -> float:
    """Simulated seconds that count."""
    arrivals = trace(verdict.cell[0], SEEDS[0])
    return (arrivals.seconds - SETTLED) * len(SEEDS)


def why(verdict: Verdict) -> str:
    if verdict.beaten_by:
        return f"{verdict.beaten_by} is better in both"
    return f"{100 * verdict.share:.1f} % of the oracle's hits"


def cost() -> tuple[float, float]:
    """Of one core, what the policy takes of 10,000 origins that are asked BUSY_RATE times a
    second together, the simulated world around it included; and requests a second."""
    seconds = 120.0
    arrivals = traces.zipf(Random(SEEDS[0]), rate=BUSY_RATE, seconds=seconds)
    rng = Random(0)
    worlds = [
        (World(pool(("auto", 0, 0), arrivals, rng), LIMITS["Node"], 0.06, rng), requests)
        for requests in arrivals.origins
    ]
    began = time.process_time()
    for world, requests in worlds:
        world.run(requests, seconds)
    return (time.process_time() - began) / seconds, arrivals.requests / seconds


def plot(found: dict[Cell, dict[str, Figure]], to: Path) -> None:
    """Misses against idle sockets, a panel for each trace: down and left is better."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [c for c in found if c[1] == "Node" and c[2] == DIALS[1]]
    figure, axes = pyplot.subplots(2, 4, figsize=(15, 7.2), layout="constrained")
    families = {"fixed": "fixed N", "HikariCP": "HikariCP", "Envoy": "Envoy's ratio"}
    for axis, cell in zip(axes.flat, shown, strict=False):
        figures = found[cell]
        seconds = (trace(cell[0], SEEDS[0]).seconds - SETTLED) * len(SEEDS)

        def at(one: Figure, seconds: float = seconds) -> tuple[float, float]:
            return one.idle / seconds, max(1 - one.hits / one.requests, FLOOR)

        for family, label in families.items():
            points = [at(f) for n, f in figures.items() if n.startswith(family) and "of" not in n]
            axis.plot(*zip(*sorted(points), strict=True), "o-", ms=4, lw=1, label=label)
        axis.plot(*at(figures["ours"]), "*", ms=17, color="crimson", label="ours", zorder=5)
        axis.plot(*at(figures["oracle"]), "D", ms=7, color="black", label="oracle", zorder=4)
        axis.set_yscale("log")
        axis.set_xscale("symlog", linthresh=1.0)
        axis.set_xlim(left=0)
        axis.set_ylim(FLOOR * 0.8, 1.3)
        axis.set_title(traces_name(cell[0]))
        axis.set_xlabel("idle connections (mean)")
        axis.set_ylabel("misses, share of requests")
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(shown) :]:
        axis.set_axis_off()
    handles, labels = axes.flat[0].get_legend_handles_labels()
    axes.flat[-1].legend(handles, labels, loc="center", fontsize=12)
    axes.flat[-1].text(
        0.5,
        0.12,
        "idle limits of Node 20, a dial takes 60 ms;\nno miss at all is drawn at the bottom",
        ha="center",
        transform=axes.flat[-1].transAxes,
    )
    figure.savefig(to, dpi=80)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="more seeds and dial times")
    parser.add_argument("--traces", nargs="+", choices=TRACES, default=list(TRACES))
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args()
    writes = not options.no_write and options.traces == list(TRACES)
    if writes and importlib.util.find_spec("matplotlib") is None:
        print("the plots need matplotlib (pip install matplotlib); or --no-write", file=sys.stderr)
        return 2
    began = time.monotonic()
    seeds = SEEDS if options.full else SEEDS[:1]
    work = [
        (cell, name, spec, seeds) for cell in cells(options) for name, spec in policies().items()
    ]
    found: dict[Cell, dict[str, Figure]] = {cell: {} for cell in cells(options)}
    with Processes(options.jobs) as processes:
        for done, (cell, name, figure) in enumerate(processes.imap_unordered(job, work, 4), 1):
            found[cell][name] = figure
            if sys.stderr.isatty():
                print(f"\r{done} of {len(work)}", end="\n" * (done == len(work)), file=sys.stderr)
    verdicts = [judge(cell, figures) for cell, figures in found.items()]
    busy, rate = cost()
    met = all(v.met for v in verdicts) and busy < BUSY_COST
    good = sum(v.met for v in verdicts)
    text = (
        f"`{report.command(NAME)}`, {time.strftime('%Y-%m-%d')}, {time.monotonic() - began:.0f} s;"
        f" seeds {', '.join(map(str, seeds))}; {len(policies()) - 2} swept rivals.\n"
        f"Bar: **{'met' if met else 'missed'}** ({good} of {len(verdicts)} cells). 10,000 origins,"
        f" {rate:.0f} requests a second in all: {100 * busy:.2f} % of a core, the simulated world"
        " included.\n\n" + table(verdicts)
    )
    print(text)
    if writes:
        plot(found, DOCS / "simulate.png")
        report.write_page(DOCS / "README.md", NAME, text)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
