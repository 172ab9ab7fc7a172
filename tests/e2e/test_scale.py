"""What many origins, many connections and long pages cost: memory, turns of the loop, start-up."""

import contextlib
import http.client
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.daemon import Metrics, Warmproxy, wait_warm
from tests.e2e.harness import Process, eventually, free_port, missing

ORIGINS = 1000
IDLE = 3000
NEEDED = 2 * IDLE + 500
"""Descriptors of the busiest process here."""

LATE = 0.1
"""Seconds: 0.005 where the machine has nothing else to do; this is for one that has."""

SERVER = """
import asyncio, socket, sys

class Hello(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: 5\\r\\n\\r\\nhello")

async def main():
    sock = socket.socket()
    # every address of loopback, and nothing else
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
    sock.bind(("0.0.0.0", int(sys.argv[1])))
    sock.listen(4096)
    server = await asyncio.get_running_loop().create_server(Hello, sock=sock, backlog=4096)
    print("up", flush=True)
    await server.serve_forever()

asyncio.run(main())
"""


@pytest.fixture(autouse=True)
def _descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < NEEDED:
        missing(f"a limit of {NEEDED} file descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def everywhere(home: Callable[[str], Path], stack: contextlib.ExitStack) -> int:
    """The port of a server that is at every address of loopback, a process of its own."""
    port, folder = free_port(), home("server")
    server = Process([sys.executable, "-c", SERVER, str(port)], folder / "log", folder)
    stack.callback(server.stop)
    eventually(lambda: "up" in server.log(), says=server.log)
    return port


class Probe:
    """Asks /healthz over and over: what a turn of the daemon's loop takes at the most."""

    def __init__(self, proxy: Warmproxy) -> None:
        self.took: list[float] = []
        self._proxy = proxy
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Probe":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._proxy.admin_port, timeout=30)
        is_up = False
        while not self._over.wait(0.002):
            began = time.monotonic()
            try:
                connection.request("GET", "/healthz")
                connection.getresponse().read()
            except ConnectionRefusedError:  # it does not listen yet
                connection.close()
                continue
            if is_up:  # the first waits for the start itself: it is bound early
                self.took.append(time.monotonic() - began)
            is_up = True
        connection.close()

    def quantile(self, share: float) -> float:
        assert len(self.took) >= 20, self.took
        return sorted(self.took)[int(share * len(self.took))]


def rss(proxy: Warmproxy) -> int:
    """Bytes."""
    pages = int(Path(f"/proc/{proxy.pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def test_a_thousand_origins_are_warm_soon_and_nobody_waits_for_it(warmproxy, everywhere) -> None:
    """1,000 origins with two connections each are warm within 30 s; meanwhile, and while pages of
    all of them are written, the loop turns: the start begins its dials a few at a time, the pages
    come in pieces, and they are whole."""
    hosts = [f"127.0.{1 + i // 250}.{1 + i % 250}" for i in range(ORIGINS)]
    urls = [f"http://{host}:{everywhere}" for host in hosts]
    proxy = warmproxy(
        config={
            "upstream": [{"url": url, "warm": 2} for url in urls],
            "max_connections": 3 * ORIGINS,
            "ready_timeout": 60,
        },
        ready=False,
    )
    with Probe(proxy) as probe:
        eventually(lambda: proxy.admin_status("/readyz") == 200, timeout=30)
    assert probe.quantile(0.9) < LATE, probe.took

    with Probe(proxy) as probe:
        metrics, pools = Metrics(proxy.admin_get("/metrics").text), proxy.pools()
    assert probe.quantile(0.9) < LATE, probe.took
    assert metrics.sum("warmproxy_upstream_connections", state="fresh") == 2 * ORIGINS
    assert metrics.sum("warmproxy_dials_total", origin=urls[-1]) == 2
    assert [pools[url]["fresh"] for url in urls] == [2] * ORIGINS
    assert proxy.fetch(f"{urls[500]}/").text == "hello"


def test_what_idle_connections_take(warmproxy, everywhere, stack) -> None:
    """An idle connection to an upstream takes 2 KiB of memory, that of a client which has asked
    once 6 KiB at most, and thousands of both delay nobody."""
    url = f"http://127.0.0.1:{everywhere}"
    own = {"max_connections": IDLE + 100}
    proxy = warmproxy(
        config={"max_connections": 4 * IDLE, "max_clients": 4 * IDLE, "defaults": own}
    )
    # what is imported at the first scrape, dial and request is there
    wish(proxy, url, 10)
    proxy.fetch(f"{url}/")
    proxy.metrics()
    before = rss(proxy)
    wish(proxy, url, IDLE)
    each = (rss(proxy) - before) / IDLE
    assert each < 2.5 * 1024, each  # the heap has holes where dials were

    before = rss(proxy)
    request = f"GET {url}/ HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: curl/8.5.0\r\n\r\n".encode()
    with Probe(proxy) as probe:
        for _ in range(IDLE):
            client = stack.enter_context(proxy.raw())
            client.sendall(request)
            assert client.recv(4096).endswith(b"hello")
    each = (rss(proxy) - before) / IDLE
    assert each < 6 * 1024, each
    assert probe.quantile(0.9) < LATE, probe.took
    assert proxy.count("warmproxy_clients") == IDLE

    swept = proxy.count("process_cpu_seconds_total")
    with Probe(proxy) as probe:  # through some sweeps
        eventually(lambda: len(probe.took) > 500, timeout=20)
    assert probe.quantile(0.9) < LATE, probe.took
    assert proxy.count("process_cpu_seconds_total") - swept < 2


def wish(proxy: Warmproxy, url: str, count: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", proxy.admin_port, timeout=10)
    connection.request("POST", f"/warm?origin={url}&count={count}&for=10m")
    assert connection.getresponse().status in (200, 202)
    connection.close()
    wait_warm(proxy, url, count)


HEAVY = {
    *("aiohttp", "cronsim", "email", "h11", "html", "http", "prometheus_client", "requests"),
    *("tempfile", "unittest", "urllib3", "zoneinfo", "difflib", "multiprocessing", "xml"),
}
"""Packages and modules of the standard library that cost a start 3 ms to 60 ms each."""


def test_nothing_is_imported_before_it_is_needed(warmproxy, everywhere) -> None:
    """A daemon that has a warm origin, and has served requests and tunnels, has not imported what
    only odd heads, TLS, windows, scrapes or other commands need."""
    url = f"http://127.0.0.1:{everywhere}"
    proxy = warmproxy("--warm", f"{url}=2", env={"PYTHONPROFILEIMPORTTIME": "1"})
    assert proxy.fetch(f"{url}/").status == 200
    proxy.tunnel(f"127.0.0.1:{everywhere}").close()
    assert imported(proxy) & HEAVY == set()
    ours = {line.partition("warmproxy.")[2] for line in proxy.log_lines("| ", "warmproxy.")}
    assert not {name for name in ours if name.startswith(("tools", "clients", "metrics"))}

    proxy.metrics()
    assert "prometheus_client" in imported(proxy)  # so the log would have told


def imported(proxy: Warmproxy) -> set[str]:
    """The top-level names of all that the daemon has imported."""
    lines = proxy.log_lines("import time:")
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}
