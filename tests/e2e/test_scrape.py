"""For how long a scrape keeps everybody else waiting."""

import socket
import statistics
import sys
import time

import pytest

from tests.e2e.daemon import Metrics, toml, warmproxy_environ
from tests.e2e.harness import Process, accepts, eventually, free_port
from tests.e2e.test_prometheus import PROMETHEUS_3, fetch_admin

DAEMON = """
import sys, time, uvloop
from warmproxy import cli
make = uvloop.new_event_loop
def new_event_loop():
    loop, last = make(), [time.monotonic(), time.thread_time()]
    def beat():
        now = [time.monotonic(), time.thread_time()]
        if now[1] - last[1] > 0.0005:
            print("TURN", last[0], now[1] - last[1], flush=True)
        last[:] = now
        loop.call_soon(beat)
    loop.call_soon(beat)
    return loop
uvloop.new_event_loop = new_event_loop
sys.exit(cli.main())
"""
"""The daemon, with a callback in every turn of its loop that says which turns took long."""


class Beating(Process):
    """A daemon that tells how long its turns take."""

    def turns(self, since: float) -> list[float]:
        """Processor seconds of each long turn that began since then."""
        told = [line.split() for line in self.log_lines("TURN ")]
        return [float(took) for _, began, took in told if float(began) >= since]


@pytest.mark.parametrize(("origins", "most"), [(50, 0.005), (500, 0.020)])
def test_a_scrape_keeps_the_loop_for_a_few_milliseconds(
    origins: int, most: float, home, stack
) -> None:
    """No turn of the loop takes longer while a page is asked for, made and sent: in processor
    time, by the median of seven scrapes, since others use the machine too. The first scrape is not
    counted: it imports what makes the page."""
    backlog = stack.enter_context(socket.socket())  # the kernel accepts, and that is enough
    backlog.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
    backlog.bind(("0.0.0.0", 0))
    backlog.listen(4096)
    port, admin, folder = backlog.getsockname()[1], free_port(), home("daemon")
    urls = [f"http://127.0.{1 + i // 250}.{1 + i % 250}:{port}" for i in range(origins)]
    config = {
        "listen": [f"127.0.0.1:{free_port()}"],
        "admin": f"127.0.0.1:{admin}",
        "log_format": "json",
        "upstream": [{"url": url, "warm": 1} for url in urls],
    }
    (folder / "warmproxy.toml").write_text(toml(config))
    args = [sys.executable, "-c", DAEMON, "run", "--config", str(folder / "warmproxy.toml")]
    daemon = Beating(args, folder / "log", folder, warmproxy_environ())
    stack.callback(daemon.stop)
    eventually(lambda: accepts(admin), says=daemon.log)

    def warm() -> float:
        page = fetch_admin(admin, "text/plain").text
        return Metrics(page).sum("warmproxy_upstream_connections", state="fresh")

    eventually(lambda: warm() == origins, timeout=20)
    worst = []
    for _ in range(7):
        began = time.monotonic()
        assert fetch_admin(admin, PROMETHEUS_3).text.endswith("# EOF\n")
        worst.append(max(daemon.turns(began), default=0.0))
    assert any(worst), "nothing was measured"
    assert statistics.median(worst) < most, worst
