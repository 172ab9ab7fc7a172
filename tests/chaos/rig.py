"""Runs origin, daemon and clients as processes of their own, watches the daemon, and judges."""

import contextlib
import json
import os
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.judge import Judge, Verdict
from tests.chaos.script import MAX_BUFFER
from tests.e2e.daemon import Warmproxy, warmproxy_environ
from tests.e2e.harness import Process, always, eventually, free_port

TEMPERS = ("wild", "busy", "idle", "wild")
"""Of the origins; the last one is not configured, so that the daemon has to learn it."""
RSS_GROWTH = 20 << 20
"""Bytes that resident memory may have grown from the end of the warm-up to the end."""
LOOK_EVERY = 0.1
PATIENCE = 5
"""Seconds that descriptors may take to be back where they began."""
SHOWN = 5
"""Violations of one kind that are shown in full."""
CLOSE_WAIT = b" 08 "


@dataclass
class Result:
    """What a run has shown."""

    seed: int
    requests: int
    seconds: float
    verdict: Verdict
    looks: int
    descriptors: tuple[int, int]
    """Open ones that are no upstream connection, after the warm-up and at the end."""
    rss: tuple[int, int]
    retries: dict[str, int]
    violations: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        verdict = self.verdict
        lines = [
            f"seed {self.seed}: {self.requests} requests in {self.seconds:.1f} s"
            f" ({self.requests / self.seconds:.0f}/s)",
            f"POSTs seen twice {verdict.posts_twice}, idempotent requests lost {verdict.lost},"
            f" answers to the wrong client {verdict.foreign}",
            f"descriptors {self.descriptors[0]} -> {self.descriptors[1]},"
            f" RSS {self.rss[0] >> 10} -> {self.rss[1] >> 10} KiB,"
            f" looks at CLOSE_WAIT {self.looks}, retries {self.retries}",
        ]
        for name, counts in verdict.figures.items():
            lines.append(f"{name}: " + ", ".join(f"{k} {n}" for k, n in counts.most_common()))
        kinds = Counter(text.partition(":")[0] for text in self.violations)
        lines.append(f"violations: {len(self.violations)} {dict(kinds) if kinds else ''}")
        for kind in kinds:
            lines += [text for text in self.violations if text.startswith(kind)][:SHOWN]
        return "\n".join(lines)


class CloseWaitLooks:
    """Looks every 100 ms for sockets to the origins in CLOSE_WAIT with nothing left to read: one
    that is there in two looks has been forgotten."""

    def __init__(self, ports: list[int]) -> None:
        self._remote = [b":%04X" % port for port in ports]
        self.looks = 0
        self.stayed: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="close-wait")

    def __enter__(self) -> "CloseWaitLooks":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def now(self) -> set[bytes]:
        found = set()
        for line in Path("/proc/net/tcp").read_bytes().splitlines():
            if CLOSE_WAIT not in line:
                continue
            fields = line.split()
            unread = int(fields[4].partition(b":")[2], 16)  # the FIN itself counts as one
            if fields[3] == b"08" and unread <= 1 and fields[2][-5:] in self._remote:
                found.add(fields[1] + b" inode " + fields[9])
        return found

    def _watch(self) -> None:
        last, at = set[bytes](), time.monotonic()
        while not self._stop.wait(LOOK_EVERY):
            seen, now = self.now(), time.monotonic()
            self.looks += 1
            self.stayed += [f"{s.decode()} in CLOSE_WAIT for {now - at:.3f} s" for s in seen & last]
            last, at = seen, now


def python(module: str, *args: object) -> list[str]:
    return [sys.executable, "-m", module, *map(str, args)]


class Rig:
    """An origin and a daemon in `home`; `ask` lets clients loose."""

    def __init__(
        self, home: Path, seed: int, stack: contextlib.ExitStack, restart_every: float
    ) -> None:
        self.home = home
        self.seed = seed
        self.ports = [free_port() for _ in TEMPERS]
        self._env = warmproxy_environ()
        self._books = home / "origin.jsonl"
        doors = [f"{port}:{temper}" for port, temper in zip(self.ports, TEMPERS, strict=True)]
        self.origin = self._process(
            "tests.chaos.origin",
            *("--seed", seed, "--books", self._books, "--restart-every", restart_every),
            *doors,
        )
        stack.callback(self.origin.stop)
        self.origin.until(lambda: "ready" in self.origin.log())
        self.daemon = Warmproxy(home, config=self._settings(), env={"PYTHONWARNINGS": "default"})
        stack.callback(self.daemon.stop)
        self._phases: list[Path] = []

    def _settings(self) -> dict[str, Any]:
        """Timeouts that a stalled origin does not make us wait long for."""
        upstreams = [
            {"url": f"http://127.0.0.1:{port}", "warm": warm}
            for port, warm in zip(self.ports[:-1], (4, 8, 6), strict=True)
        ]
        defaults = {"response_timeout": 2, "stall_timeout": 2, "max_connections": 64}
        return {"upstream": upstreams, "defaults": defaults, "max_buffer": MAX_BUFFER}

    def _process(self, module: str, *args: object) -> Process:
        log = self.home / f"{module}-{len(list(self.home.iterdir()))}.log"
        return Process(python(module, *args), log, Path.cwd(), self._env)

    def ask(self, first: int, requests: int, workers: int, timeout: float) -> None:
        """Let clients ask requests `first` and following, and wait for the daemon to be quiet."""
        books = self.home / f"clients-{first}.jsonl"
        clients = self._process(
            "tests.chaos.clients",
            *("--seed", self.seed, "--first", first, "--requests", requests),
            *("--workers", workers, "--proxy", self.daemon.port, "--books", books),
            *self.ports,
        )
        try:
            code = clients.exit_code(timeout)
            assert code == 0, clients.log()
        finally:
            clients.stop()
        self._phases.append(books)
        self.daemon.until(self._quiet)

    def _quiet(self) -> bool:
        pools = self.daemon.pools().values()
        busy = any(p["active"] or p["waiting"] or p["dialling"] for p in pools)
        return not busy and not self.daemon.count("warmproxy_clients")

    def descriptors(self) -> int:
        """The daemon's open descriptors, its connections to upstreams not counted: what is seen
        most often in a second, because the origin goes on ending connections and looking takes
        descriptors too. What has leaked is there in every look."""
        counts: list[int] = []
        pooled = self._pooled()

        def look() -> bool:
            nonlocal pooled
            open_now = len(os.listdir(f"/proc/{self.daemon.pid}/fd"))
            before, pooled = pooled, self._pooled()
            if pooled == before:  # nothing came or went in between
                counts.append(open_now - pooled)
            return True

        always(look, during=1.0)
        return statistics.mode(counts)

    def _pooled(self) -> int:
        kinds = ("fresh", "used", "active", "dialling", "canaries")
        return sum(pool[kind] for pool in self.daemon.pools().values() for kind in kinds)

    def rss(self) -> int:
        text = Path(f"/proc/{self.daemon.pid}/status").read_text()
        return next(
            int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith("VmRSS")
        )

    def books(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """The clients' lines and the origin's, once the origin has ended."""
        self.origin.popen.terminate()
        code = self.origin.exit_code()
        assert code == 0, self.origin.log()
        asks = [line for phase in self._phases for line in _read(phase)]
        return asks, list(_read(self._books))


def _read(file: Path) -> Iterator[dict[str, Any]]:
    with file.open() as lines:
        yield from map(json.loads, lines)


def run(
    home: Path,
    seed: int,
    requests: int,
    *,
    workers: int = 100,
    restart_every: float = 2.5,
    timeout: float = 45.0,
) -> Result:
    """A warm-up of a tenth, then the rest; everything is judged, memory from the warm-up on."""
    with contextlib.ExitStack() as stack:
        rig = Rig(home, seed, stack, restart_every)
        began = time.monotonic()
        with CloseWaitLooks(rig.ports) as looks:
            warm_up = requests // 10
            rig.ask(0, warm_up, workers, timeout)
            descriptors, rss = rig.descriptors(), rig.rss()
            rig.ask(warm_up, requests - warm_up, workers, timeout)
            seconds = time.monotonic() - began
            end_rss = rig.rss()
            for _ in range(PATIENCE):
                if (end_descriptors := rig.descriptors()) == descriptors:
                    break
            # the origin still ends idle connections: none of them may be left behind
            eventually(lambda: not looks.now(), 1.0, lambda: f"CLOSE_WAIT: {looks.now()}")
        retries = {
            kind: int(rig.daemon.count("warmproxy_retries_total", reason=kind))
            for kind in ("stale", "dial")
        }
        log = rig.daemon.log()
        asks, origin = rig.books()
        code = rig.daemon.terminate()
        log = rig.daemon.log()
    result = Result(
        seed,
        requests,
        seconds,
        Judge(asks, origin).verdict,
        looks.looks,
        (descriptors, end_descriptors),
        (rss, end_rss),
        retries,
    )
    result.violations += looks.stayed
    if len(asks) != requests:
        result.violations.append(f"{len(asks)} requests came to an end of {requests}")
    if end_descriptors != descriptors:
        result.violations.append(f"descriptors: {descriptors} became {end_descriptors}")
    if end_rss - rss > RSS_GROWTH:
        result.violations.append(f"RSS grew by {(end_rss - rss) >> 10} KiB")
    if code or "Traceback" in log or "ResourceWarning" in log or "never retrieved" in log:
        result.violations.append(f"the daemon's log (exit {code}): {log[-3000:]}")
    result.violations += result.verdict.violations
    return result
