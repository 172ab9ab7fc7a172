"""Does a request get lost when it crosses the close of an idle connection? With a bar to pass.

    python3 benchmarks/keepalive_race.py             # some 3 minutes; writes benchmarks/README.md
    python3 benchmarks/keepalive_race.py --quick     # under one; writes nothing
    python3 benchmarks/keepalive_race.py --loopback  # without root, and without a real link

Needs Linux, root (for two network namespaces), `ip`, and a Python that has warmproxy's dependencies
(.venv/bin/python if it is there).

An origin behind a link with an RTT of 40 ms closes each idle connection 2.5 s after its last use,
or after a time of its own between 1.75 and 3.25 s (+-30 %). It tells when; a request is sent so
that it arrives within 5 ms of that moment: too late for the origin, too early for the proxy to have
heard of it, or just in time.
Many lanes side by side, each with its own port at the origin:

    before learning   a daemon that knows nothing, two shots for each of its pools
    learning          another one in quiet, with some traffic where used connections are raced
    after learning    shots as before, at the close of whatever connection the origin has open

POSTs race with the close of connections that never carried a request (they prefer those), GETs
with that of used ones. A POST that crosses a close has to be a 502 and must not come to the origin
twice; a GET is sent again. Where there is no link (--loopback), the FIN waits a round trip instead.
"""

import argparse
import asyncio
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from rig import link, report
from rig.client import Address, Exchange, burst, get
from rig.daemon import Daemon, NotReady
from rig.race import Kind, Result, Shot, Track, summarise

NAME = "keepalive_race.py"

RTT = 0.040
LIMIT = 2.5
# For the connections of a lane that are not raced: fresh ones stay, used ones leave room for those.
LONG, SHORT = 600.0, 0.1
JITTERS = (0.0, 0.3)
KINDS = [Kind(used, jitter) for used in (False, True) for jitter in JITTERS]
SHOTS_BEFORE = 2
WARM = 3
ROUNDS = 12  # times the limit: so long a pool is left to learn

BAR_HITS = 0.99


@dataclass(frozen=True)
class Place:
    """The origin, seen from the proxy."""

    host: str
    control: Address
    one_way: float


@contextmanager
def origin(loopback: bool, limit: float, lanes: dict[int, Kind]) -> Iterator[tuple[Place, int]]:
    """An origin with these ports; with the processor core that is left to the proxy."""
    cpus = sorted(os.sched_getaffinity(0))
    control = free_ports(1)[0] if loopback else 7000
    script = str(Path(__file__).with_name("rig") / "race_origin.py")
    command = [sys.executable, script, str(RTT if loopback else 0.0), str(control)]
    for port, kind in lanes.items():
        raced = (LONG, limit) if kind.used else (limit, SHORT)
        command.append("/".join(map(str, (port, *raced, kind.jitter))))
    far: list[subprocess.Popen[bytes]] = []
    try:
        if loopback:
            far.append(link.spawn(command, cpus[0], 0))
            place = Place("127.0.0.1", ("127.0.0.1", control), 0.0)
        else:
            os.sched_setaffinity(0, {cpus[0]})
            link.go_first(link.CLIENT)
            far += link.join(RTT, command, cpus[0])
            place = Place(link.FAR, (link.FAR, control), RTT / 2)
        while burst(place.control, Exchange(get(place.control)), 1, timeout=1)[0].error:
            if far[0].poll() is not None:
                raise OSError("the origin did not start")
            time.sleep(0.1)
        yield place, cpus[-1]
    finally:
        for process in far:
            process.kill()
            process.wait()


def free_ports(count: int) -> list[int]:
    """Of loopback, that nobody has now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


class Race:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        each = options.lanes
        before, after = 4 * options.lanes_before, 4 * each
        ports = free_ports(before + after) if options.loopback else list(range(8000, 9999))
        self.before = dict(zip(ports, KINDS * options.lanes_before, strict=False))
        self.after = dict(zip(ports[before:], KINDS * each, strict=False))
        self.shots: list[Shot] = []

    def daemon(self, place: Place, cpu: int, lanes: dict[int, Kind], warm: int) -> Daemon:
        tables = [
            f'[[upstream]]\nurl = "http://{place.host}:{port}"\nwarm = {warm}' for port in lanes
        ]
        python = self.options.python
        command = (
            f"{python} -m warmproxy run --listen {{listen}} --admin {{admin}} --config {{config}}"
        )
        ports = (free_ports(2)[0], free_ports(2)[1]) if self.options.loopback else None
        return Daemon(command, cpu, settings="\n".join(tables), ports=ports)

    def track(self, place: Place, daemon: Daemon, learned: bool) -> Track:
        return Track(daemon.listen, place.host, place.control, place.one_way, learned)

    async def run(self, place: Place, cpu: int) -> None:
        novice = self.daemon(place, cpu, self.before, 1)
        learner = self.daemon(place, cpu, self.after, WARM)
        try:
            await novice.start()
            track = self.track(place, novice, learned=False)
            lanes = [track.lane(kind, port, SHOTS_BEFORE) for port, kind in self.before.items()]
            await asyncio.gather(*lanes)
            await self.keep(track)
            novice.stop()

            await learner.start()
            track = self.track(place, learner, learned=True)
            await asyncio.gather(*(self.learn(track, *lane) for lane in self.after.items()))
            self.check_learned(learner)
            count = -(-self.options.shots // self.options.lanes)
            await asyncio.gather(*(track.lane(k, port, count) for port, k in self.after.items()))
            await self.keep(track)
        finally:
            novice.stop()
            learner.stop()

    async def keep(self, track: Track) -> None:
        await track.note_arrivals(track.shots)
        self.shots += track.shots

    async def learn(self, track: Track, port: int, kind: Kind) -> None:
        """In a quiet pool connections are closed by themselves; used ones have to be made first.
        What is closed within half a second is one observation: they are made one by one."""
        ends = time.monotonic() + ROUNDS * self.options.limit
        while kind.used and time.monotonic() < ends - self.options.limit:
            await track.use(port)
            await asyncio.sleep(random.uniform(0.5, 0.7))
        await asyncio.sleep(ends - time.monotonic())

    def check_learned(self, daemon: Daemon) -> None:
        """Raises NotReady where a pool does not know its limit."""
        pools = daemon.pools()
        assert isinstance(pools, dict), pools
        for pool in pools["pools"]:
            kind = self.after[int(pool["origin"].rpartition(":")[2])]
            if pool["idle_limits"]["used" if kind.used else "fresh"] is None:
                raise NotReady(f"{pool['origin']} has learned nothing: {json.dumps(pool)}")

    def results(self, one_way: float) -> dict[tuple[Kind, bool], Result]:
        return {
            (kind, learned): summarise(
                [s for s in self.shots if s.kind == kind and s.learned is learned], one_way
            )
            for learned in (False, True)
            for kind in KINDS
        }


def passes(kind: Kind, learned: bool, result: Result) -> bool:
    if not learned:
        # as many as cross are lost, each is told, and no POST comes twice
        fine = result.doubled == result.wrongly == 0
        return fine and result.crossed >= result.shots / 10 and (kind.used or result.failed > 0)
    return result.failed == result.crossed == result.doubled == 0 and result.hits >= BAR_HITS


def table(results: dict[tuple[Kind, bool], Result]) -> str:
    heads = ["request", "origin closes after", "pool", "shots", "within 5 ms", "crossed a close"]
    heads += ["lost", "came twice", "opened before", "bar"]
    rows = []
    for (kind, learned), r in results.items():
        limit = "its own time, +-30 %" if kind.jitter else "a fixed time"
        what = "GET, used connections" if kind.used else "POST, fresh connections"
        lost = f"{r.failed} (502)" if r.failed and not r.wrongly else f"{r.failed}"
        twice = "" if kind.used else r.doubled
        row = [what, limit, "after learning" if learned else "before", r.shots]
        row += [f"{100 * r.near:.3g} %", r.crossed, lost, twice, f"{100 * r.hits:.4g} %"]
        rows.append([*row, "met" if passes(kind, learned, r) else "**missed**"])
    return report.table(heads, 3, rows)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer shots; writes nothing")
    parser.add_argument("--loopback", action="store_true", help="no link; writes nothing")
    parser.add_argument("--lanes", type=int, help="pools for each line of the table (30)")
    parser.add_argument("--lanes-before", type=int, help="the same, before learning (50)")
    parser.add_argument("--shots", type=int, help="for each line after learning (1,000)")
    parser.add_argument("--limit", type=float, help=f"seconds, {LIMIT:g}")
    parser.add_argument("--json", metavar="FILE", help="write everything measured, - = stdout")
    parser.add_argument(
        "--python", default=report.python(), help="that runs warmproxy (.venv's, or this one)"
    )
    options = parser.parse_args()
    changed = options.lanes or options.lanes_before or options.shots or options.limit
    options.writes_readme = not (options.quick or options.loopback or changed)
    options.lanes = options.lanes or (20 if options.quick else 30)
    options.lanes_before = options.lanes_before or (20 if options.quick else 50)
    options.shots = options.shots or (100 if options.quick else 1000)
    options.limit = options.limit or (1.5 if options.quick else LIMIT)
    return options


def main() -> int:
    options = parse_options()
    if sys.platform != "linux" or (os.geteuid() != 0 and not options.loopback):
        print(f"{NAME} needs Linux and root: it makes network namespaces", file=sys.stderr)
        return 2
    told = report.versions(options.python)
    began = time.monotonic()
    race = Race(options)
    try:
        with origin(options.loopback, options.limit, race.before | race.after) as (place, cpu):
            asyncio.run(race.run(place, cpu))
    except NotReady as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    results = race.results(place.one_way)
    passed = all(passes(*key, result) for key, result in results.items())
    command = report.command(NAME)
    text = (
        f"`{command}`, {datetime.now(UTC):%Y-%m-%d}, {time.monotonic() - began:.0f} s;"
        f" {', '.join(f'{name} {version}' for name, version in told.items())};\n"
        f"RTT {RTT * 1000:.0f} ms, origin closes after {options.limit:g} s idle.\n"
        "Bar: before learning, each POST that crosses is a 502 and none comes twice; after it, none"
        f" crosses, none is lost, >= {BAR_HITS:.0%} on connections opened before:"
        f" **{'met' if passed else 'missed'}**.\n\n" + table(results)
    )
    if options.json:
        everything = {
            "command": command,
            "versions": told,
            "passed": passed,
            "lines": [
                {**asdict(kind), "learned": learned, **asdict(result)}
                for (kind, learned), result in results.items()
            ],
            "shots": [asdict(shot) for shot in race.shots],
        }
        report.write_json(options.json, everything)
    if options.json != "-":
        print(text)
    if options.writes_readme:
        report.write_readme(NAME, text)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
