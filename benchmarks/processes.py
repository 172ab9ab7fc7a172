"""What do several processes cost in hits, and in memory?

    sudo python3 benchmarks/processes.py            # about 2 minutes; writes benchmarks/README.md
    sudo python3 benchmarks/processes.py --quick    # under half a minute; writes nothing
    python3 benchmarks/processes.py --start         # what a process costs at its start

With `processes = N` the warm connections of an origin are divided, and the kernel gives each client
connection to one of the processes by a hash. A burst meets the pools unevenly: some of it finds
nothing warm in its process while another's stays idle.

Each of many origins, behind a link with an RTT of 40 ms, is asked by a burst of 10 new client
connections, and 0.5 s later by another: then the connections of the first are there too, used.
Expected is the share that finds a warm one where each connection goes to one of N pools at random.
"""

import argparse
import asyncio
import math
import os
import random
import re
import shlex
import subprocess
import sys
import time
from datetime import UTC, datetime
from functools import partial

from rig import link, report, stage
from rig.client import Exchange, burst, get, through_proxy
from rig.daemon import ROOT, Daemon

NAME = "processes.py"
RTT = 0.040
BURST = 10
CASES = ((1, 10), (2, 10), (4, 10), (2, 14), (2, 16), (4, 16), (4, 24))
"""processes, warm"""
PORTS = tuple(range(8000, 8003))
"""of the origins"""


def expected(count: int, processes: int, warm: int) -> float:
    """The share of a burst of so many that finds a warm connection."""
    pools = [warm // processes + (i < warm % processes) for i in range(processes)]
    p = 1 / processes
    hits = 0.0
    for k in range(count + 1):
        chance = math.comb(count, k) * p**k * (1 - p) ** (count - k)
        hits += chance * sum(min(k, held) for held in pools)
    return hits / count


class Case:
    """The answers of several daemons, one after the other: a daemon is gone before the origins
    close what is idle."""

    def __init__(self, processes: int, warm: int, python: str, cpu: int) -> None:
        self.processes, self.warm = processes, warm
        settings = f"processes = {processes}\n" + "".join(
            f'[[upstream]]\nurl = "http://{link.FAR}:{port}"\nwarm = {warm}\n' for port in PORTS
        )
        # At one real-time priority on one core, parent and processes can hold each other up for
        # ever: in the kernel, where one is reaped while another is interrupted in /proc.
        command = f"chrt --other 0 {shlex.quote(python)} -m warmproxy run"
        command += " --listen {listen} --admin {admin} --config {config}"
        self.make = partial(Daemon, command, cpu, settings=settings)
        self.hits = [0, 0]
        """of first bursts, and of those that follow"""
        self.asked = [0, 0]

    async def run(self) -> None:
        daemon = self.make()
        try:
            await daemon.start()
            for port in PORTS:
                exchange = through_proxy((link.FAR, port))
                for nth in range(2):
                    await asyncio.sleep(0.5 * nth)
                    before = hits(daemon)
                    errors = [a.error for a in burst(daemon.listen, exchange, BURST) if a.error]
                    if errors:
                        raise SystemExit(f"{len(errors)} failed: {errors[0]}")
                    self.hits[nth] += hits(daemon) - before
                    self.asked[nth] += BURST
        finally:
            daemon.stop()

    def row(self) -> list[object]:
        shares = [expected(BURST, self.processes, self.warm)]
        shares += [hits / asked for hits, asked in zip(self.hits, self.asked, strict=True)]
        return [self.processes, self.warm, *(f"{100 * share:.0f} %" for share in shares)]


def hits(daemon: Daemon) -> int:
    """Requests so far that found a connection open and idle, by the daemon's own count."""
    answer = burst(daemon.admin, Exchange(get(daemon.admin, "/metrics")), 1)[0]
    lines = answer.body.decode().splitlines()
    found = [line for line in lines if re.match("warmproxy_acquires_total.*(fresh|used)", line)]
    return sum(int(float(line.split()[-1])) for line in found)


async def measure(built: stage.Stage, daemons: int, python: str) -> list[Case]:
    cases = [Case(*case, python, built.proxy_cpu) for case in CASES]
    for _ in range(daemons):
        for case in random.sample(cases, len(cases)):
            await case.run()
    return cases


def table(cases: list[Case]) -> str:
    heads = ["processes", "warm", "expected hits", "hits", "again"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "--:|" * len(heads)]
    return "\n".join(lines + ["| " + " | ".join(map(str, case.row())) + " |" for case in cases])


# ── what a process costs at its start ────────────────────────────────────────────────────────

FORKED = """
import gc, os, sys, time
import warmproxy.service, uvloop, asyncio
def own(pid):
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith("Private"))
async def turn():
    os.write(2, b".")
    sys.stdin.read(1)
def child():
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(turn())
if sys.argv[1] == "new":
    child()
gc.collect(); gc.freeze()
r, w = os.pipe()
began = time.perf_counter()
pid = os.fork()
if pid == 0:
    os.dup2(w, 2)
    child()
    os._exit(0)
os.read(r, 1)
print((time.perf_counter() - began) * 1000, own(pid))
"""


def start_costs(python: str) -> str:
    """Milliseconds until its loop turns, and memory of its own: forked from a process that has
    everything imported, and as a new interpreter."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = [python, "-c", FORKED]
    forked = subprocess.run(
        [*run, "fork"], stdout=subprocess.PIPE, input=b"x", env=environment, check=True
    )
    milliseconds, own = map(float, forked.stdout.split())
    began = time.perf_counter()
    pipes = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*run, "new"], env=environment, **pipes) as new:
        new.stderr.read(1)
        anew = (time.perf_counter() - began) * 1000
        with open(f"/proc/{new.pid}/smaps_rollup") as file:
            its = sum(int(line.split()[1]) for line in file if line.startswith("Private"))
        new.kill()
    return (
        f"forked: {milliseconds:.0f} ms, {own / 1024:.1f} MiB of its own;"
        f" a new interpreter: {anew:.0f} ms, {its / 1024:.1f} MiB"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer bursts, writes nothing")
    parser.add_argument("--start", action="store_true", help="what a process costs at its start")
    parser.add_argument("--python", default=report.python(), help="the Python that runs warmproxy")
    options = parser.parse_args()
    if options.start:
        print(start_costs(options.python))
        return 0
    if refusal := stage.refusal(NAME):
        print(refusal, file=sys.stderr)
        return 2
    told = report.versions(options.python)
    daemons = 1 if options.quick else 5
    began = time.monotonic()
    with stage.built(RTT, [str(port) for port in PORTS]) as built:
        cases = asyncio.run(measure(built, daemons, options.python))
    what = ", ".join(f"{name} {version}" for name, version in told.items())
    text = (
        f"`{report.command(NAME)}`, {datetime.now(UTC):%Y-%m-%d}, {time.monotonic() - began:.0f} s;"
        f" {what};\n{daemons * len(PORTS)} times in each line, bursts of {BURST}.\n\n"
        + table(cases)
    )
    print(text)
    if not options.quick:
        report.write_readme(NAME, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
