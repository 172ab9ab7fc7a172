"""What a benchmark stands on, built and taken down: the link, the origin, the places of all."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rig import link
from rig.client import Address, Exchange, burst, get, handshake
from rig.processor import Watch

ORIGIN_IDLE = 5.0

CONTROL: Address = (link.FAR, 7000)
"""A port of the origin that is only asked for its records."""

Life = tuple[float, float | None, float | None]
"""connected, secured, useless since: see rig/origin.py"""


@dataclass
class Stage:
    rtt: float  # as the link is set
    proxy_cpu: int
    load: dict[str, int]  # the processes beside the proxy: client, origin, link
    handshakes: list[float] = field(default_factory=list)

    @property
    def measured_rtt(self) -> float:
        return statistics.median(self.handshakes)

    def measure_rtt(self, origin: Address) -> None:
        self.handshakes += [handshake(origin) for _ in range(3)]

    def watch(self, *proxy: int) -> Watch:
        return Watch([list(self.load.values()), proxy])

    def lives(self, origin: Address) -> list[Life]:
        """The latest connections to this port of the origin."""
        answer = burst(CONTROL, Exchange(get(CONTROL, f"/port/{origin[1]}")), 1)[0]
        if answer.error:
            raise OSError(f"the origin does not tell its records: {answer.error}")
        return json.loads(answer.body)


def refusal(name: str) -> str:
    """Why it cannot be built here; empty where it can."""
    if sys.platform == "linux" and os.geteuid() == 0:
        return ""
    return f"{name} needs Linux and root: it makes network namespaces"


@contextmanager
def built(rtt: float, ports: Sequence[str], certificate: str = "") -> Iterator[Stage]:
    """The link with an origin on these ports behind it (see rig/origin.py); we are before it.

    The proxy gets the last processor core for itself, the rest shares the first one.
    """
    cpus = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cpus[0]})
    link.go_first(link.CLIENT)
    origin = _origin(rtt / 2, certificate, str(CONTROL[1]), *ports)
    far: list[subprocess.Popen[bytes]] = []
    try:
        far += link.join(rtt, origin, cpus[0])
        load = {"client": os.getpid(), "origin": far[0].pid, "link": far[1].pid}
        while burst(CONTROL, Exchange(get(CONTROL)), 1, timeout=1)[0].error:
            if far[0].poll() is not None:
                raise OSError("the origin did not start")
            time.sleep(0.1)
        yield Stage(rtt, cpus[-1], load)
    finally:
        for process in far:
            process.kill()
            process.wait()


@contextmanager
def near(certificate: str, ports: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Another origin on these ports of loopback, with no link before it, where we are."""
    core = min(os.sched_getaffinity(0))
    process = link.spawn(_origin(0.0, certificate, *ports), core, link.ORIGIN)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _origin(one_way: float, certificate: str, *ports: str) -> list[str]:
    script = str(Path(__file__).with_name("origin.py"))
    return [sys.executable, script, str(ORIGIN_IDLE), str(one_way), certificate, *ports]
