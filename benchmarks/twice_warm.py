"""Are requests that meet a warm connection slowed by as many beside them that meet none?

    python3 benchmarks/twice_warm.py            # about 4 minutes; writes benchmarks/README.md
    python3 benchmarks/twice_warm.py --rounds 2 # writes nothing

The rig is that of first_request.py, with its needs: 10 warm connections, an RTT of 40 ms. After the
quiet time comes a burst of 10, which all meet a warm connection, or one of 20: then half of them
have to be dialled for. The quicker 10 of those 20 are held against the 10.
"""

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime

from first_request import PLAIN_PORTS, RTT, WARM, FirstRequest
from rig import report, stage
from rig.client import through_proxy
from rig.daemon import NotReady
from rig.rounds import STATES, Round
from rig.stage import ORIGIN_IDLE

NAME = "twice_warm.py"
KINDS = {"http": through_proxy}
BURSTS = (WARM, 2 * WARM)
BAR = 1.05
"""Times the p50 of the burst that is all warm."""


def times(rounds: Sequence[Round], first: int, last: int, rtt: float) -> list[float]:
    """Of each burst's answers, in order of their times, those from `first` on, before `last`."""
    timed = [r for r in rounds if not r.disturbed] or rounds
    found = []
    for each in timed:
        found += sorted(answer.seconds / rtt for answer in each.answers)[first:last]
    return found


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, help="of each burst and state (10)")
    parser.add_argument("--python", default=report.python(), help="the Python that runs warmproxy")
    options = parser.parse_args()
    options.writes_readme = not options.rounds
    options.rounds = options.rounds or 10
    options.quick, options.at_change, options.command = False, False, ""
    options.enough, options.lanes, options.direct_every = 1, 8, 5.0
    return options


def main() -> int:
    options = parse_options()
    if refusal := stage.refusal(NAME):
        print(refusal, file=sys.stderr)
        return 2
    told = report.versions(options.python)
    began = time.monotonic()
    try:
        with stage.built(RTT, [str(PLAIN_PORTS + lane) for lane in range(options.lanes)]) as built:
            bench = FirstRequest(built, KINDS, BURSTS, options)
            asyncio.run(bench.run())
    except NotReady as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130

    rows, passed, rtt = [], True, built.measured_rtt
    for state in STATES:
        of = {n: [r for r in bench.rounds if (r.n, r.state) == (n, state)] for n in BURSTS}
        errors = [a.error for n in BURSTS for r in of[n] for a in r.answers if a.error]
        alone = times(of[WARM], 0, WARM, rtt)
        beside = times(of[2 * WARM], 0, WARM, rtt)
        cold = times(of[2 * WARM], WARM, 2 * WARM, rtt)
        ratio = statistics.median(beside) / statistics.median(alone)
        passed &= ratio <= BAR and not errors
        told_times = [(statistics.median(each), max(each)) for each in (alone, beside, cold)]
        cells = [f"{p50:.3f} / {slowest:.3f}" for p50, slowest in told_times]
        rows.append([state, *cells, f"{ratio:.3f}", "met" if ratio <= BAR else "missed"])
    heads = ["pools", f"{WARM} of {WARM}", f"the quicker {WARM} of {2 * WARM}", "the other half"]
    heads += ["ratio of the p50", f"bar: {BAR}"]
    what = ", ".join(f"{name} {version}" for name, version in told.items())
    text = (
        f"`{report.command(NAME)}`, {datetime.now(UTC):%Y-%m-%d}, {time.monotonic() - began:.0f} s;"
        f" {what};\nRTT measured {rtt * 1000:.2f} ms, origin closes after {ORIGIN_IDLE:g} s idle,"
        f" {WARM} warm. p50 / slowest, in RTT:\n\n" + report.table(heads, 1, rows)
    )
    print(text)
    if options.writes_readme:
        report.write_readme(NAME, text)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
