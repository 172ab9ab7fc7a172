"""Proxies side by side in front of one origin: the same is asked of each in turn, round by round.

A proxy that fails at something is left out of it, and why is kept in `failures`.
"""

import contextlib
import json
import random
import shutil
import socket
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from http.client import HTTPConnection
from pathlib import Path

from field import load
from field.figures import Rounds
from field.origin import MIB, Origin
from field.proxies import Kind, Place, admin_port
from field.running import Failed, Program, established, free_port

STARTS_WITHIN = 30.0
POLL = 0.003
WARM = 50
RATE = 200
LARGE = 3
"""Large bodies one after the other, unless they take longer than LONG together."""
LONG = 6.0
GIB = 2**30


class Entrant:
    """One proxy of the field, running. `started`: seconds from its spawn to its first 200."""

    def __init__(
        self,
        kind: Kind,
        home: Path,
        origin: int,
        core: int | None,
        warm: int = 0,
        settings: str = "",
    ) -> None:
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        home.chmod(0o777)  # some give up root
        self.kind = kind
        self.place = Place(home, free_port(2), origin, warm, settings)
        self.address = ("127.0.0.1", self.place.port)
        self.url = f"http://127.0.0.1:{origin}"
        command = kind.start_command(self.place)
        began = time.perf_counter()
        self.program = Program(command, home, core=core, environment=kind.environment)
        try:
            self.wait_for(self._serves, POLL)
            self.started = time.perf_counter() - began
            if kind.ours and warm:
                self.wait_for(lambda: self.idle() >= warm, 0.02)
        except Failed:
            self.program.stop()
            raise

    def wait_for(
        self, condition: Callable[[], bool], every: float, within: float = STARTS_WITHIN
    ) -> None:
        give_up = time.monotonic() + within
        while not condition():
            if not self.program.runs or time.monotonic() > give_up:
                raise Failed(f"does not come up; it said: {self.program.said()}")
            time.sleep(every)

    def _serves(self) -> bool:
        request = f"GET {self.url}/small HTTP/1.1\r\nHost: {self.url[7:]}\r\nConnection: close\r\n"
        with socket.socket() as probe:
            probe.settimeout(0.5)
            try:
                probe.connect(self.address)
                probe.sendall(f"{request}\r\n".encode())
                return probe.recv(12).endswith(b" 200")
            except OSError:
                return False

    def idle(self) -> int:
        """Ours only."""
        asked = HTTPConnection("127.0.0.1", admin_port(self.place), timeout=10)
        with contextlib.closing(asked):
            asked.request("GET", "/pools")
            totals = json.loads(asked.getresponse().read())["totals"]
            return int(totals["fresh"]) + int(totals["used"])

    def processor_seconds(self) -> float:
        return self.program.processor_seconds()

    def stop(self) -> None:
        self.program.stop()


class Contest:
    """`core` is the proxies' own; `held`: connections whose memory is measured."""

    def __init__(
        self,
        kinds: Sequence[Kind],
        origin: Origin,
        home: Path,
        core: int | None,
        *,
        rounds: int,
        seconds: int,
        held: int,
    ) -> None:
        self.kinds = list(kinds)
        self.origin = origin
        self.home = home
        self.core = core
        self.count = rounds
        self.seconds = seconds
        self.held = held
        self.rounds: Rounds = defaultdict(dict)
        self.failures: dict[tuple[str, str], str] = {}
        self.shares: dict[str, dict[str, list[float]]] = defaultdict(dict)
        """Share of the wall time in which each proxy used its core, by measure."""

    # ── who runs, and what is noted ──────────────────────────────────────────────────────────

    def enter(self, kind: Kind, warm: int = 0, settings: str = "") -> Entrant:
        home = self.home / kind.name
        return Entrant(kind, home, self.origin.port, self.core, warm, settings)

    @contextlib.contextmanager
    def entered(self, kinds: Sequence[Kind], warm: int = 0) -> Iterator[list[Entrant]]:
        """All that come up, at once."""
        running: list[Entrant] = []
        try:
            for kind in kinds:
                try:
                    running.append(self.enter(kind, warm))
                except Failed as error:
                    self.fail("start", kind.name, error)
            yield running
        finally:
            for entrant in running:
                entrant.stop()

    def note(self, measure: str, name: str, value: float) -> None:
        if (measure, name) not in self.failures:
            self.rounds[measure].setdefault(name, []).append(value)

    def fail(self, measure: str, name: str, error: Exception) -> None:
        """It is out of this measure, with all its rounds."""
        reason = (str(error) or type(error).__name__).strip().splitlines()[-1]
        self.failures[measure, name] = reason
        self.rounds[measure].pop(name, None)
        print(f"{name} is left out of {measure}: {reason}", file=sys.stderr)

    def ask_all(
        self,
        measure: str,
        entrants: Sequence[Entrant],
        ask: Callable[[Entrant], float],
    ) -> None:
        """One round of one measure, in an order of its own."""
        told = []
        for entrant in random.sample(entrants, len(entrants)):
            name = entrant.kind.name
            if (measure, name) in self.failures:
                continue
            try:
                value = ask(entrant)
            except (Failed, OSError) as error:
                self.fail(measure, name, error)
            else:
                self.note(measure, name, value)
                told.append(f"{name} {value:.4g}")
        print(f"{measure}: " + ", ".join(sorted(told)), file=sys.stderr, flush=True)

    # ── what is asked ────────────────────────────────────────────────────────────────────────

    def small(self, connections: Sequence[int] = (1, 32, 256)) -> None:
        """512 bytes: µs of processor time for each request, and µs added to an exchange."""
        with self.entered(self.kinds, WARM) as entrants:
            for _ in range(self.count):
                for n in connections:
                    self.ask_all(
                        f"cpu {n}",
                        entrants,
                        lambda e, n=n: self.busy(e, "/small", n, self.seconds) * 1e6,
                    )
                direct = self.median_latency(("127.0.0.1", self.origin.port))
                self.ask_all(
                    "added",
                    entrants,
                    lambda e, direct=direct: (self.median_latency(e.address) - direct) * 1e6,
                )

    def busy(self, entrant: Entrant, path: str, connections: int, seconds: int) -> float:
        """Seconds of processor time for each request."""
        before, began = entrant.processor_seconds(), time.monotonic()
        loaded = load.wrk(entrant.address, entrant.url + path, connections, seconds)
        used = entrant.processor_seconds() - before
        share = used / (time.monotonic() - began)
        key = f"{path[1:]} {connections}"
        self.shares[key].setdefault(entrant.kind.name, []).append(round(share, 3))
        return used / loaded.requests

    def median_latency(self, address: load.Address) -> float:
        count = int(RATE * self.seconds)
        url = f"http://127.0.0.1:{self.origin.port}/small"
        return statistics.median(load.paced(address, url, RATE, count))

    def bodies(self) -> None:
        """Seconds of processor time for a GiB, in bodies of 1 and of 100 MiB and in a tunnel."""
        with self.entered(self.kinds, WARM) as entrants:
            tunnelling = [e for e in entrants if e.kind.tunnels]
            for _ in range(self.count):
                self.ask_all(
                    "1 MiB",
                    entrants,
                    lambda e: self.busy(e, "/1m", 4, self.seconds) * GIB / MIB,
                )
                self.ask_all("100 MiB", entrants, self.large)
                self.ask_all("CONNECT", tunnelling, lambda e: self.large(e, tunnel=True))

    def large(self, entrant: Entrant, *, tunnel: bool = False) -> float:
        before, began = entrant.processor_seconds(), time.monotonic()
        got = 0
        for _ in range(LARGE):
            got += load.download(entrant.address, entrant.url + "/100m", tunnel=tunnel)
            if time.monotonic() - began > LONG:
                break
        return (entrant.processor_seconds() - before) * GIB / got

    def starts(self) -> None:
        """Milliseconds from the spawn to the first 200; ours without any setting for the origin."""
        for _ in range(self.count):
            for kind in random.sample(self.kinds, len(self.kinds)):
                if ("start", kind.name) in self.failures:
                    continue
                with self.entered([kind]) as entrants:
                    for entrant in entrants:
                        self.note("start", kind.name, entrant.started * 1e3)
        told = (f"{name} {values[-1]:.0f}" for name, values in self.rounds["start"].items())
        print("start: " + ", ".join(told), file=sys.stderr, flush=True)

    def memory(self) -> None:
        """Resident size: empty, in MiB, and what each idle connection adds, in KiB."""
        for kind in self.kinds:
            name = kind.name
            try:
                with self.entered([kind]) as entrants:
                    for entrant in entrants:
                        time.sleep(0.5)
                        self.note("empty", name, entrant.program.resident_kib() / 1024)
                        self.ask_all("client", entrants, self.per_client)
                if kind.ours:
                    self.per_warm_upstream(kind)
                else:
                    with self.entered([kind]) as entrants:
                        self.ask_all("upstream", entrants, self.per_used_upstream)
            except (Failed, OSError) as error:
                self.fail("upstream", name, error)

    def per_client(self, entrant: Entrant) -> float:
        url = entrant.url + "/small"
        with load.idle_clients(entrant.address, url, 3):
            pass
        before = entrant.program.resident_kib()
        with load.idle_clients(entrant.address, url, self.held):
            time.sleep(0.5)
            held = established(entrant.place.port)
            if held < self.held:
                raise Failed(f"holds {held} of {self.held} clients")
            return (entrant.program.resident_kib() - before) / held

    def per_used_upstream(self, entrant: Entrant) -> float:
        """A proxy that dials when asked: what so many requests at a time leave behind."""
        before = entrant.program.resident_kib()
        load.together(entrant.address, entrant.url + "/slow", self.held)
        time.sleep(1.5)
        held = established(self.origin.port)
        if held < self.held:
            raise Failed(f"holds {held} of {self.held} connections")
        return (entrant.program.resident_kib() - before) / held

    def per_warm_upstream(self, kind: Kind) -> None:
        """Ours opens them by itself."""
        ways = [("upstream", f"http://127.0.0.1:{self.origin.port}", "warm")]
        if self.origin.tls_port:
            ways.append(("TLS upstream", f"https://127.0.0.1:{self.origin.tls_port}", "tls"))
        for measure, url, word in ways:
            sizes = [self.resident_with(kind, url, word, n) for n in (1, self.held)]
            self.note(measure, kind.name, (sizes[1] - sizes[0]) / (self.held - 1))

    def resident_with(self, kind: Kind, url: str, word: str, count: int) -> int:
        """KiB, with so many idle connections."""
        lines = ["max_connections = 5000", "[[upstream]]", f'url = "{url}"']
        lines += [f"warm = {count if word == 'warm' else 0}", "max_connections = 5000"]
        if word == "tls":
            lines += [f"tls = {count}", f'ca_file = "{self.origin.ca}"']
        entrant = self.enter(kind, settings="\n".join(lines))
        try:
            entrant.wait_for(lambda: entrant.idle() >= count, 0.05)
            return entrant.program.resident_kib()
        finally:
            entrant.stop()
