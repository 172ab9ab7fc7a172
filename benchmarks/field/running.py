"""Programs under test: started on a core, their processor time and memory read, and ended.

What counts is all that a program started: it leads a session of its own, and whatever is in that
session is its.
"""

import contextlib
import os
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rig import link

TICK = 1 / os.sysconf("SC_CLK_TCK")
"""Seconds; what the kernel tells of processor time is a multiple of it."""

ENDS_WITHIN = 5.0

_PORTS = iter(range(22000, 32000, 4))


class Failed(Exception):
    """A program that was to be measured does not do what it is there for."""


@contextlib.contextmanager
def on_core(core: int | None) -> Iterator[None]:
    """What is started in here runs on this processor core; None: wherever there is room."""
    before = os.sched_getaffinity(0)
    if core is not None:
        os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def take_cores() -> int | None:
    """The last core, for the proxies; we, and what we start without a core, get the first.

    None where there is but one.
    """
    there = sorted(os.sched_getaffinity(0))
    if len(there) < 2:
        return None
    os.sched_setaffinity(0, {there[0]})
    return there[-1]


class Program:
    """A running program. `folder`: an empty one, in which it runs and its output is kept."""

    def __init__(
        self,
        command: Sequence[str],
        folder: Path,
        *,
        core: int | None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.command = command
        self.output = folder / "output"
        with on_core(core), self.output.open("wb") as sink:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={**_clean_environment(), **(environment or {})},
                start_new_session=True,
                preexec_fn=_die_with_us,
            )

    @property
    def runs(self) -> bool:
        return self.process.poll() is None

    def said(self) -> str:
        return self.output.read_bytes()[-800:].decode(errors="replace")

    def processor_seconds(self) -> float:
        """User and system time, that of threads and children that have ended included."""
        return sum(ticks for _, ticks in _session(self.process.pid)) * TICK

    def resident_kib(self) -> int:
        """The sum over its processes."""
        total = 0
        for pid, _ in _session(self.process.pid):
            try:
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            except OSError:  # it has just ended
                continue
            total += int(rollup.partition("\nRss:")[2].split()[0])
        return total

    def stop(self) -> None:
        """May be called again."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            give_up = time.monotonic() + ENDS_WITHIN
            while time.monotonic() < give_up:
                self.process.poll()
                left = [pid for pid, _ in _session(self.process.pid)]
                if not left:
                    return
                if number == signal.SIGKILL:  # those that made a group of their own
                    for pid in left:
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGKILL)
                time.sleep(0.01)


def _die_with_us() -> None:
    link.libc.prctl(link.PR_SET_PDEATHSIG, signal.SIGTERM)


def _session(leader: int) -> list[tuple[int, int]]:
    """(process id, ticks of processor time) of the living processes in it."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.append((int(entry.name), sum(map(int, fields[11:15]))))
    return found


def _clean_environment() -> dict[str, str]:
    """Nobody's settings but ours, and nothing that sends loopback requests elsewhere."""
    return {
        k: v
        for k, v in os.environ.items()
        if not k.startswith("WARMPROXY_") and not k.lower().endswith("_proxy")
    }


def free_port(together: int = 1) -> int:
    """The first of so many free ports, below the range that outgoing connections take."""
    for first in _PORTS:
        with contextlib.ExitStack() as probes, contextlib.suppress(OSError):
            for port in range(first, first + together):
                probes.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
    raise Failed("no free port")


def raise_descriptor_limit() -> int:
    """As far as allowed, for us and what we start; the limit then."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


def established(*ports: int) -> int:
    """Connections on this machine that lead to these ports and are open."""
    ends = {f"{port:04X}" for port in ports}
    count = 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split(maxsplit=4)
        count += fields[3] == "01" and fields[2][-4:] in ends
    return count
