"""What becomes of a connection's congestion window while nothing is sent?

    sudo python3 benchmarks/idle_window.py          # 3 minutes; prints a table

Needs Linux, root (for two network namespaces), `ip` and `ss`. A connection over a link with an RTT
of 40 ms is given 6 MB to send, which opens its window; then it is left alone for 10 s, or carries
a request of 100 bytes now and then, as a prime would; then it sends 200 kB. Each is done with
net.ipv4.tcp_slow_start_after_idle (of the sender's namespace) 1 and 0, by CUBIC and by BBR, where
the kernel has them. The window, in segments, is what `ss -ti` says.
"""

import contextlib
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

from rig import link

RTT = 0.040
PORT = 80
QUIET = 10.0
MUCH = 200_000

SERVER = """
import socket, threading
def serve(sock):
    file = sock.makefile("rb")
    while line := file.readline():
        file.read(int(line))
        sock.sendall(b".")
listener = socket.create_server(("10.77.0.2", 80))
while True:
    sock, _ = listener.accept()
    threading.Thread(target=serve, args=(sock,), daemon=True).start()
"""


def connect(algorithm: str) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, algorithm.encode())
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.connect((link.FAR, PORT))
    return sock


def send(sock: socket.socket, size: int) -> float:
    """Milliseconds until the other side has said that it has all of it."""
    began = time.monotonic()
    sock.sendall(b"%d\n" % size + b"x" * size)
    if not sock.recv(1):
        raise ConnectionError("the other side is gone")
    return (time.monotonic() - began) * 1000


def window(sock: socket.socket) -> str:
    asked = ["ss", "-tin", f"sport = :{sock.getsockname()[1]}"]
    said = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    found = re.search(r"\bcwnd:(\d+)", said)
    return found[1] if found else "?"


def row(algorithm: str, slow_start: int, every: float) -> str:
    setting = Path("/proc/sys/net/ipv4/tcp_slow_start_after_idle")
    setting.write_text(str(slow_start))
    with contextlib.closing(connect(algorithm)) as sock:
        fresh = send(sock, MUCH)
        for _ in range(6):
            send(sock, 1_000_000)
        open_window, before = window(sock), send(sock, MUCH)
        end = time.monotonic() + QUIET
        while time.monotonic() < end:
            time.sleep(every or QUIET)
            if every:
                send(sock, 100)
        idle_window, after = window(sock), send(sock, MUCH)
    small = f"every {every:g} s" if every else "none"
    times = (f"{ms:.0f}" for ms in (fresh, before, after))
    cells = (algorithm, str(slow_start), small, open_window, idle_window, *times)
    return f"| {' | '.join(cells)} |"


def main() -> int:
    if sys.platform != "linux" or os.geteuid() != 0:
        print("idle_window.py needs Linux and root", file=sys.stderr)
        return 2
    known = Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split()
    processes = link.join(RTT, [sys.executable, "-c", SERVER], 0)
    try:
        time.sleep(1)
        print(
            "| by | slow_start_after_idle | small requests | window, open | after 10 s"
            " | 200 kB on the new connection, ms | with the window open | after the 10 s |\n"
            "|---|--:|---|--:|--:|--:|--:|--:|"
        )
        for algorithm in ("cubic", "bbr"):
            for slow_start in (1, 0) if algorithm in known else ():
                for every in (0.0, 1.0, 0.1):
                    print(row(algorithm, slow_start, every), flush=True)
    finally:
        for process in processes:
            process.kill()
    return 0


if __name__ == "__main__":
    sys.exit(main())
