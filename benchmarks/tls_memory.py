"""What does an idle TLS connection cost, and do many handshakes at once hold others up?

    .venv/bin/python benchmarks/tls_memory.py                 # 1,000 connections, stall with 200
    .venv/bin/python benchmarks/tls_memory.py --memory 300 --stall 200 --json

Needs Linux, nginx, and the development dependencies. The daemon holds finished TLS connections to
an nginx on loopback. Memory is the resident size of the daemon with N of them less that of one
with a single one, by N - 1. Stall is the longest turn of the daemon's event loop from its first
turn to the time when all handshakes are done: in processor time, which is the daemon's own doing,
and by the clock, which on a busy machine is more. On loopback all handshakes come at once, which
no network with a delay makes better: what is dialled together is answered together.
"""

import argparse
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import trustme

NGINX = """
daemon off; master_process off; pid {home}/pid; error_log stderr crit;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_timeout 300s; client_header_timeout 300s;
  client_body_temp_path {home}/1; proxy_temp_path {home}/2; fastcgi_temp_path {home}/3;
  uwsgi_temp_path {home}/4; scgi_temp_path {home}/5;
  server {{
    listen 127.0.0.1:{port} ssl backlog=4096;
    ssl_certificate {home}/crt; ssl_certificate_key {home}/key; ssl_protocols TLSv{version};
    return 200 ok;
  }}
}}
"""

# The daemon, with a callback that comes in every turn of its loop and notes how long the turn took.
DAEMON = """
import sys, time, uvloop
from warmproxy import cli
make, how = uvloop.new_event_loop, sys.argv.pop(1)
def new_event_loop():
    loop, worst, last, turns = make(), [0.0, 0.0], [0.0, 0.0], iter(range(3))
    def beat():
        now = [time.thread_time(), time.monotonic()]
        if next(turns, None) is not None:
            last[:] = now  # the first turn makes the daemon, before it listens
        if now[0] - last[0] > worst[0] or now[1] - last[1] > worst[1]:
            worst[:] = [max(w, n - l) for w, n, l in zip(worst, now, last)]
            print("TURN", *worst, flush=True)
        last[:] = now
        loop.call_soon(beat)
    if how == "beat":
        loop.call_soon(beat)
    return loop
uvloop.new_event_loop = new_event_loop
sys.exit(cli.main())
"""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--memory", type=int, default=1000, metavar="N")
    arguments.add_argument("--stall", type=int, default=200, metavar="N")
    arguments.add_argument("--json", action="store_true")
    given = arguments.parse_args()
    rows = []
    for version in ("1.2", "1.3"):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(Path(folder), version, given.memory, given.stall))
    if given.json:
        print(json.dumps(rows))
        return
    print("| TLS | KiB per idle connection | longest turn, processor ms | by the clock, ms |")
    print("|---|---|---|---|")
    for row in rows:
        print(f"| {row['tls']} | {row['kib']:.1f} (of {given.memory:,})", end="")
        print(f" | {row['stall_cpu_ms']:.1f} | {row['stall_ms']:.1f} (of {given.stall:,}) |")


def measure(home: Path, version: str, memory: int, stall: int) -> dict[str, Any]:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(home / "ca"))
    issued = ca.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(str(home / "key"))
    issued.cert_chain_pems[0].write_to_path(str(home / "crt"))
    port = free_port()
    (home / "conf").write_text(NGINX.format(home=home, port=port, version=version))
    program = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin") or "nginx"
    nginx = subprocess.Popen([program, "-p", str(home), "-c", str(home / "conf"), "-e", "stderr"])
    try:
        wait_for(lambda: answers(port))
        small, _, _ = run(home, port, 1, beat=False)
        large, _, _ = run(home, port, memory, beat=False)
        _, cpu, clock = run(home, port, stall, beat=True)
    finally:
        nginx.terminate()
        nginx.wait()
    return {
        "tls": version,
        "kib": (large - small) / (memory - 1),
        "stall_cpu_ms": cpu * 1e3,
        "stall_ms": clock * 1e3,
    }


def run(home: Path, port: int, count: int, *, beat: bool) -> tuple[int, float, float]:
    """One life of the daemon: KiB resident once it is warm, and its longest turn."""
    admin = free_port()
    file = home / "warmproxy.toml"
    file.write_text(
        f'listen = ["127.0.0.1:{free_port()}"]\n'
        f'admin = "127.0.0.1:{admin}"\n'
        'max_connections = 5000\nlog_format = "json"\nready_timeout = 120\n'
        f'[[upstream]]\nurl = "https://127.0.0.1:{port}"\nwarm = 0\ntls = {count}\n'
        f'max_connections = 5000\nca_file = "{home}/ca"\n'
    )
    how = "beat" if beat else "still"
    log = home / "log"
    with log.open("w") as sink:
        daemon = subprocess.Popen(
            [sys.executable, "-c", DAEMON, how, "run", "--config", str(file)],
            stdout=sink,
            stderr=subprocess.DEVNULL,
        )
    try:
        wait_for(lambda: answers(admin))
        wait_for(lambda: idle(admin) == count)
        status = Path(f"/proc/{daemon.pid}/status").read_text()
    finally:
        daemon.terminate()
        daemon.wait()
    turns = [line.split() for line in log.read_text().splitlines() if line.startswith("TURN")]
    cpu, clock = map(float, turns[-1][1:]) if turns else (0.0, 0.0)
    return int(status.partition("VmRSS:")[2].split()[0]), cpu, clock


def idle(admin: int) -> int:
    connection = HTTPConnection("127.0.0.1", admin, timeout=30)
    try:
        connection.request("GET", "/pools")
        return int(json.loads(connection.getresponse().read())["totals"]["fresh"])
    finally:
        connection.close()


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit("not within 120 s")
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
