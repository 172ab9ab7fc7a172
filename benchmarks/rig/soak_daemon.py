"""The daemon that soak.py watches: started with names of its own, asked, looked at from outside."""

import asyncio
import contextlib
import http.client
import os
import re
import socket
import subprocess
import time
from collections import Counter
from pathlib import Path

from rig.daemon import ROOT
from rig.soak_origin import HABITS, Door

ANSWERS_WITHIN = 10.0
"""Seconds for an answer of its admin listener."""
HITS = ("fresh", "used")
"""Outcomes of an acquire that waited for nothing."""
INSIDE = """
mount --bind "$0" /etc/hosts && mount --bind "$1" /etc/nsswitch.conf && shift && exec "$@"
"""
ACQUIRES = re.compile(
    r'^warmproxy_acquires_total\{origin="\w+://(\w+)\.soak[^"]*",outcome="(\w+)"\} (\S+)$', re.M
)
CONNECTIONS = re.compile(r"^warmproxy_(?:upstream_connections\{.*\}|clients) (\S+)$", re.M)
LAG = re.compile(r"^warmproxy_loop_lag_seconds (\S+)$", re.M)
RELOADED = re.compile(r'"event": ?"reloaded"')


class NotMeasured(Exception):
    """Why there are no figures."""


class Daemon:
    """The daemon, with names of its own."""

    def __init__(self, home: Path, python: str) -> None:
        self.home = home
        self.python = python
        self.listen, self.admin = free_ports(2)
        self.log = home / "warmproxy.log"
        self._hosts = home / "hosts"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def is_over(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def say(self, doors: list[Door]) -> None:
        """From now on this is where the names lead."""
        lines = [f"{door.address} {door.host}\n" for door in doors]
        self._hosts.write_text("".join(["127.0.0.1 localhost\n", *lines]))

    def write_settings(self, doors: list[Door], more: int = 0) -> None:
        """`more` connections for one of them."""
        lines = [
            f'listen = ["127.0.0.1:{self.listen}"]',
            f'admin = "127.0.0.1:{self.admin}"',
            f'control = "{self.home}/control"',
            f'state_file = "{self.home}/state.json"',
            'log_format = "json"',
            f'[defaults]\nca_file = "{self.home}/ca.pem"',
        ]
        for door in doors:
            habit = door.habit
            if habit.warm:
                scheme = "http" if habit.way == "http" else "https"
                kind = "warm = 0\ntls" if habit.way == "https" else "warm"
                count = habit.warm + (more if habit is HABITS[0] else 0)
                lines.append(f'[[upstream]]\nurl = "{scheme}://{door.host}:{door.port}"')
                lines.append(f"{kind} = {count}")
        (self.home / "warmproxy.toml").write_text("\n".join(lines) + "\n")

    def spawn(self) -> None:
        switch = self.home / "nsswitch.conf"
        switch.write_text("hosts: files\n")
        inside = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", INSIDE]
        inside += [str(self._hosts), str(switch)]
        command = [self.python, "-m", "warmproxy", "run", "--config", "warmproxy.toml"]
        environ = {k: v for k, v in os.environ.items() if not k.startswith("WARMPROXY_")}
        with self.log.open("wb") as sink:
            self.process = subprocess.Popen(
                [*inside, *command],
                cwd=self.home,
                env=environ | {"PYTHONPATH": str(ROOT)},
                stdout=sink,
                stderr=sink,
                start_new_session=True,  # a Ctrl-C is for the bench
            )

    async def start(self) -> None:
        """Returns when it is ready. Raises NotMeasured."""
        self.spawn()
        give_up = time.monotonic() + 30
        while await asyncio.to_thread(self.status, "/readyz") != 200:
            if self.is_over or time.monotonic() > give_up:
                raise NotMeasured(f"the daemon is not ready; it said:\n{self.log.read_text()}")
            await asyncio.sleep(0.1)

    def status(self, path: str) -> int:
        try:
            return self.get(path)[0]
        except OSError:
            return 0

    def get(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.admin, timeout=ANSWERS_WITHIN)
        with contextlib.closing(connection):
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def rss(self) -> int:
        pages = Path(f"/proc/{self.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def descriptors(self) -> list[str]:
        """What each open one leads to."""
        found = []
        for entry in Path(f"/proc/{self.pid}/fd").iterdir():
            with contextlib.suppress(OSError):  # closed in between
                found.append(os.readlink(entry))
        return found

    def opened(self) -> tuple[list[str], int]:
        """What its descriptors lead to, and how many are of no pool's and no client's connection:
        about, as both are looked at one after the other."""
        connections = CONNECTIONS.findall(self.get("/metrics")[1])
        found = self.descriptors()
        return found, len(found) - sum(int(float(value)) for value in connections)

    def reloads(self) -> int:
        """How many the log tells of."""
        return len(RELOADED.findall(self.log.read_text()))

    def stop(self) -> int:
        """Its exit status."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


def free_ports(count: int) -> list[int]:
    socks = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in socks]
    for sock in socks:
        sock.close()
    return ports


def close_waits(descriptors: list[str]) -> set[str]:
    """Those of them that are TCP sockets whose other side has closed."""
    inodes = {to[8:-1] for to in descriptors if to.startswith("socket:[")}
    lines = Path("/proc/net/tcp").read_bytes().splitlines()
    waiting = (line.split() for line in lines if b" 08 " in line)
    return {f[9].decode() for f in waiting if f[3] == b"08"} & inodes


def acquires(text: str) -> "Counter[tuple[str, str]]":
    """Connections asked for, by the name of the origin and the outcome."""
    counts: Counter[tuple[str, str]] = Counter()
    for name, outcome, value in ACQUIRES.findall(text):
        counts[name, outcome] += int(float(value))
    return counts


def loop_lag(text: str) -> float:
    """Seconds, by the metrics."""
    return float(LAG.findall(text)[0])
