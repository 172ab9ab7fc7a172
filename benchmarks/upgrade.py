"""Reloads and upgrades under load: how many requests fail, and how many find nothing warm?

`python3 benchmarks/upgrade.py` (about 3 minutes; `--quick` half a minute). A daemon holds two
nginx origins warm and is asked by GET, POST and CONNECT in turn, with no second try. In the middle
of each round its settings change and it gets SIGHUP, or another process takes over from it. Needs
nginx and Linux; everything stays on loopback.
"""

import argparse
import asyncio
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from rig import report
from rig.daemon import ROOT
from rig.load import Load

HITS = 0.99
NGINX = """
worker_processes 1; daemon off; pid {home}/nginx.pid; error_log stderr crit;
events {{ worker_connections 4096; }}
http {{
    access_log off; keepalive_requests 1000000; client_body_temp_path {home}/body;
    proxy_temp_path {home}/p; fastcgi_temp_path {home}/f; uwsgi_temp_path {home}/u;
    scgi_temp_path {home}/s;
    server {{ listen 127.0.0.1:{plain}; listen 127.0.0.1:{far}; return 200 "warm hello\\n"; }}
}}
"""
SETTINGS = """
listen = ["127.0.0.1:{listen}"]
admin = "127.0.0.1:{admin}"
control = "{home}/control"
state_file = ""
log_format = "json"
[defaults]
dial_budget = 2000
max_connections = 400
[[upstream]]
url = "http://127.0.0.1:{plain}"
warm = {warm}
[[upstream]]
url = "https://127.0.0.1:{far}"
warm = {more}
"""
ANOTHER = """
[[upstream]]
url = "http://localhost:{plain}"
warm = 5
"""


@dataclass
class Round:
    what: str
    requests: int
    failed: int
    hit_ratio: float
    took: float
    """Seconds of the reload, or until the new process had taken over."""
    failures: list[str]


def free_ports(count: int) -> list[int]:
    socks = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in socks]
    for sock in socks:
        sock.close()
    return ports


class Bench:
    def __init__(self, home: Path, options: argparse.Namespace) -> None:
        self.home = home
        self.options = options
        listen, admin, plain, far, third = free_ports(5)
        self.third = third
        self.values = {"home": home, "listen": listen, "admin": admin, "plain": plain, "far": far}
        self.processes: list[subprocess.Popen[bytes]] = []
        self.warm = 60
        self.load = Load(("127.0.0.1", listen), f"127.0.0.1:{plain}", f"127.0.0.1:{far}")

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.terminate()
        for process in self.processes:
            process.wait(20)

    def write_settings(self, *, changed: bool) -> None:
        """A whole reload's worth of difference, and back."""
        warm = self.warm + (10 if changed else 0)
        text = SETTINGS.format(**self.values, warm=warm, more=2 * warm)
        if changed:
            text = text.replace("]\nadmin", f', "127.0.0.1:{self.third}"]\nadmin')
            text += ANOTHER.format(**self.values)
        (self.home / "warmproxy.toml").write_text(text)

    def start_nginx(self) -> None:
        path = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
        if path is None:
            sys.exit("nginx is needed")
        (self.home / "nginx.conf").write_text(NGINX.format(**self.values))
        command = [path, "-p", str(self.home), "-c", str(self.home / "nginx.conf"), "-e", "stderr"]
        self.processes.append(subprocess.Popen(command))

    def start(self, *flags: str) -> tuple[subprocess.Popen[bytes], Path]:
        log = self.home / f"warmproxy-{len(self.processes)}.log"
        command = [self.options.python, "-m", "warmproxy", "run", "--config", "warmproxy.toml"]
        environ = {k: v for k, v in os.environ.items() if not k.startswith("WARMPROXY_")}
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [*command, *flags],
                cwd=self.home,
                env=environ | {"PYTHONPATH": str(ROOT)},
                stdout=sink,
                stderr=sink,
            )
        self.processes.append(process)
        return process, log

    def admin(self) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", self.values["admin"], timeout=5)
        connection.connect()
        return connection

    async def round(self, what: str, number: int) -> Round:
        """Half of the time before the change, half after it."""
        process, log = self.start() if not number or what == "upgrade" else self.running
        self.running = process, log
        await until(lambda: said(log, "ready"), log)
        admins = [self.admin() for _ in range(2)]  # ours, whoever has the listener later
        before = acquires(admins[0])
        load, stop = self.load, asyncio.Event()
        load.sent = load.done = 0
        load.failures.clear()
        loading = asyncio.create_task(load.run(self.options.rate, stop))
        await asyncio.sleep(self.options.seconds / 2)
        began = time.monotonic()
        if what == "reload":
            count = len(said(log, "reloaded"))
            self.write_settings(changed=number % 2 == 0)
            process.send_signal(signal.SIGHUP)
            await until(lambda: len(said(log, "reloaded")) > count, log)
            took = said(log, "reloaded")[-1]["seconds"]
        else:
            held = await self.hold_tunnel()
            successor, new_log = self.start("--takeover")
            await until(lambda: said(new_log, "taken_over"), new_log)
            took = time.monotonic() - began
        await asyncio.sleep(self.options.seconds / 2)
        stop.set()
        await loading
        counts = acquires(admins[1])
        counts.subtract(before)
        if what == "upgrade":
            counts.update(acquires(self.admin()))
            held.close()
            await until(lambda: process.poll() is not None, log)
            if process.returncode or said(log, "stopped")[-1]["cut_short"]:
                load.failures.append(f"the old process left with {process.returncode}")
            successor.terminate()
            await until(lambda: successor.poll() is not None, new_log)
        for admin in admins:
            admin.close()
        if counts.total() < load.done:
            load.failures.append(f"{load.done} requests had {counts.total()} connections")
        hits = counts["fresh"] + counts["used"]
        ratio = hits / max(1, counts.total())
        return Round(what, load.sent, len(load.failures), ratio, took, load.failures[:5])

    async def hold_tunnel(self) -> socket.socket:
        """Keeps the old process from being done, so that it can be asked for its counts."""
        sock = socket.create_connection(("127.0.0.1", self.values["listen"]))
        far = f"127.0.0.1:{self.values['far']}"
        sock.sendall(f"CONNECT {far} HTTP/1.1\r\nHost: {far}\r\n\r\n".encode())
        sock.setblocking(False)
        answer = await asyncio.get_running_loop().sock_recv(sock, 1000)
        assert b" 200 " in answer, answer
        return sock


def said(log: Path, event: str) -> list[dict[str, object]]:
    lines = [line for line in log.read_text().splitlines() if line.startswith("{")]
    return [told for line in lines if (told := json.loads(line))["event"] == event]


async def until(condition, log: Path, timeout: float = 30.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            print(log.read_text(), file=sys.stderr)  # noqa: ASYNC240
            raise SystemExit("waited in vain for what the log does not say")
        await asyncio.sleep(0.02)


def acquires(admin: http.client.HTTPConnection) -> "Counter[str]":
    """Connections asked for of configured origins, by outcome."""
    admin.request("GET", "/metrics")
    text = admin.getresponse().read().decode()
    line = r'^warmproxy_acquires_total\{origin="(?!other)[^"]*",outcome="(\w+)"\} (\S+)$'
    counts: Counter[str] = Counter()
    for outcome, value in re.findall(line, text, re.MULTILINE):
        counts[outcome] += int(float(value))
    return counts


def row(what: str, rounds: list[Round]) -> list[object]:
    failed = sum(r.failed for r in rounds)
    worst = min(r.hit_ratio for r in rounds)
    took = sorted(r.took for r in rounds)[len(rounds) // 2]
    met = not failed and worst >= HITS
    asked = sum(r.requests for r in rounds)
    verdict = "met" if met else "**missed**"
    return [what, len(rounds), asked, failed, f"{100 * worst:.2f} %", f"{took:.3f}", verdict]


async def measure(bench: Bench) -> list[Round]:
    found = []
    for what in bench.options.only or ("reload", "upgrade"):
        for number in range(bench.options.rounds):
            bench.write_settings(changed=False) if not number else None
            found.append(await bench.round(what, number))
            if bench.options.verbose:
                print(found[-1], file=sys.stderr)
        process, log = bench.running
        process.terminate()
        await until(lambda p=process: p.poll() is not None, log)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--rate", type=float, default=500.0, help="requests a second (500)")
    add("--rounds", type=int, default=10, help="of each kind (10)")
    add("--seconds", type=float, default=6.0, help="of load in each round (6)")
    add("--only", action="append", choices=("reload", "upgrade"))
    add("--quick", action="store_true", help="3 rounds of 3 s at 150 requests a second")
    add("--python", default=report.python(), help="that runs warmproxy")
    add("--json", metavar="FILE", help="every round")
    add("--write", action="store_true", help="the table to README.md")
    add("--verbose", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.rate, options.rounds, options.seconds = 150.0, 3, 3.0
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options)
        bench.start_nginx()
        try:
            rounds = asyncio.run(measure(bench))
        finally:
            bench.close()
    kinds = list(dict.fromkeys(r.what for r in rounds))
    rows = [row(what, [r for r in rounds if r.what == what]) for what in kinds]
    heads = ("change", "rounds", "requests", "failed", "lowest hit ratio", "took, s", "bar")
    versions = ", ".join(f"{k} {v}" for k, v in report.versions(options.python).items())
    said = f"`{report.command('upgrade.py')}`, {time.strftime('%Y-%m-%d')},"
    said += f" {time.monotonic() - began:.0f} s; {versions};\n{options.rate:g} requests a second,"
    said += " GET, POST and CONNECT in turn.\n"
    text = f"{said}\n{report.table(heads, 1, rows)}"
    print(text)
    for failure in Counter(f for r in rounds for f in r.failures):
        print(failure)
    if options.json:
        report.write_json(options.json, {"rounds": [asdict(r) for r in rounds]})
    if options.write:
        report.write_readme("upgrade.py", text)
    return int(any(cells[-1] != "met" for cells in rows))


if __name__ == "__main__":
    sys.exit(main())
