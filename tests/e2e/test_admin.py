"""The admin listener and the commands that ask it."""

import contextlib
import json
import socket
import time

from tests.e2e.daemon import Metrics, fetch_on, wait_warm
from tests.e2e.harness import eventually, free_port

METRICS = {
    "warmproxy_acquire_wait_seconds": "histogram",
    "warmproxy_acquires": "counter",
    "warmproxy_below_target_seconds": "counter",
    "warmproxy_build_info": "gauge",
    "warmproxy_clients": "gauge",
    "warmproxy_closed": "counter",
    "warmproxy_connect_seconds_saved": "counter",
    "warmproxy_dial_seconds": "histogram",
    "warmproxy_dials": "counter",
    "warmproxy_dials_wasted": "counter",
    "warmproxy_first_byte_seconds": "histogram",
    "warmproxy_idle_socket_seconds": "counter",
    "warmproxy_redial_gap_seconds": "histogram",
    "warmproxy_requests": "counter",
    "warmproxy_retries": "counter",
    "warmproxy_target_idle": "gauge",
    "warmproxy_tunnel_bytes": "counter",
    "warmproxy_tunnels": "gauge",
    "warmproxy_upstream_connections": "gauge",
}

POOL_FIELDS = {
    *["origin", "target_idle", "fresh", "used", "active", "dialling", "waiting", "oldest_age"],
    *["last_close", "dials", "hits", "misses", "saved_seconds"],
}


def test_metrics_have_the_documented_names_and_count_what_happened(warmproxy, origin) -> None:
    """/metrics parses, has the families that dashboards rely on, with their types, and their
    numbers agree with what the origin saw."""
    web, far = origin(), origin(raw=lambda connection: connection.send(connection.receive() * 3))
    proxy = warmproxy("--warm", f"{web.url}=3", "--warm", f"https://{far.authority}=1")
    client = proxy.connect()
    for _ in range(3):
        assert fetch_on(client, f"{web.url}/").status == 200
    with proxy.tunnel(far.authority) as tunnel:
        tunnel.sendall(b"12345")
        assert proxy.count("warmproxy_tunnels") == 1
        while tunnel.recv(100):
            pass
    eventually(lambda: proxy.count("warmproxy_tunnels") == 0)
    wait_warm(proxy, web.url, 3)
    for fresh in web.idle_connections():
        fresh.fin()
    eventually(lambda: proxy.count("warmproxy_redial_gap_seconds_count") >= 1)
    web.wait_open(3)
    eventually(lambda: proxy.count("warmproxy_upstream_connections", state="dialling") == 0)

    metrics = proxy.metrics()
    types = {n: f.type for n, f in metrics.families.items()}
    assert {name: types.get(name) for name in METRICS} == METRICS
    assert all(f.documentation for f in metrics.families.values())
    own = [n for n in types if not n.startswith(("warmproxy_", "process_", "python_"))]
    assert own == []

    origin_label = {"origin": web.url}
    expected = {
        ("warmproxy_acquires_total", "outcome", "fresh"): 1,
        ("warmproxy_acquires_total", "outcome", "used"): 2,
        ("warmproxy_acquires_total", "outcome", "dialled"): 0,
        ("warmproxy_requests_total", "code_class", "2xx"): 3,
        ("warmproxy_closed_total", "reason", "upstream_eof"): 3,
        ("warmproxy_upstream_connections", "state", "active"): 0,
        ("warmproxy_upstream_connections", "state", "used"): 1,
        ("warmproxy_upstream_connections", "state", "fresh"): 2,
        ("warmproxy_dials_total", "result", "ok"): len(web.connections),
    }
    found = {key: metrics.sum(key[0], **origin_label, **{key[1]: key[2]}) for key in expected}
    assert found == expected
    assert metrics.sum("warmproxy_target_idle", **origin_label) == 3
    assert metrics.sum("warmproxy_dials_wasted_total", **origin_label) == 3
    assert metrics.sum("warmproxy_connect_seconds_saved_total", **origin_label) > 0
    assert metrics.sum("warmproxy_first_byte_seconds_count", **origin_label) == 3
    assert metrics.sum("warmproxy_tunnel_bytes_total", direction="up") == 5
    assert metrics.sum("warmproxy_tunnel_bytes_total", direction="down") == 15
    assert metrics.sum("warmproxy_clients") == 1
    client.close()
    eventually(lambda: proxy.count("warmproxy_clients") == 0)


def test_origins_that_are_not_configured_share_a_label(warmproxy, origin) -> None:
    """Clients cannot grow the number of series: what is not configured is origin="other"."""
    proxy = warmproxy()
    for web in (origin(), origin()):
        assert proxy.fetch(f"{web.url}/").status == 200
    metrics = proxy.metrics()
    assert metrics.sum("warmproxy_requests_total", origin="other", code_class="2xx") == 2
    labels = {s.labels.get("origin") for f in metrics.families.values() for s in f.samples}
    assert labels <= {None, "other"}


def test_pools_say_what_is(warmproxy, origin) -> None:
    """/pools has each field of the documentation, and they follow what happens."""
    web = origin()
    proxy = warmproxy("--warm", f"{web.url}=2")
    pool = proxy.pool(web.url)
    assert set(pool) >= POOL_FIELDS
    now = (pool["target_idle"], pool["fresh"], pool["used"], pool["active"], pool["last_close"])
    assert now == (2, 2, 0, 0, None)
    assert 0 <= pool["oldest_age"] < 30
    client = proxy.connect()
    client.request("GET", f"{web.url}/hold")
    web.wait_requests(1)
    eventually(lambda: proxy.pool(web.url)["fresh"] == 2, says=proxy.pools)
    pool = proxy.pool(web.url)
    assert (pool["active"], pool["hits"], pool["misses"], pool["dials"]) == (1, 1, 0, 3)
    assert pool["saved_seconds"] > 0
    web.gate.set()
    client.getresponse().read()
    client.close()
    wait_warm(proxy, web.url, 3)
    assert proxy.pool(web.url)["used"] == 1
    assert proxy.pool(web.url)["dials"] == len(web.connections) == 3


def test_readyz_waits_for_the_pools(warmproxy, origin) -> None:
    """/readyz is 503 while a configured pool is not warm, says which one, and 200 once it is;
    /healthz is 200 all the time."""
    web = origin()
    late = origin(listening=False)
    config = {
        "ready_timeout": 60,
        "upstream": [
            {"url": web.url, "warm": 1},
            {"url": late.url, "warm": 2, "backoff_max": 0.2},
        ],
    }
    proxy = warmproxy(config=config, ready=False)
    proxy.until(lambda: proxy.admin_status("/healthz") == 200)
    web.wait_open(1)
    eventually(lambda: f"[+] {web.url}" in proxy.admin_get("/readyz?verbose").text)
    reply = proxy.admin_get("/readyz?verbose")
    assert reply.status == 503
    assert f"[-] {late.url}" in reply.text
    late.up()
    eventually(lambda: proxy.admin_status("/readyz") == 200, says=proxy.log)
    late.wait_open(2)
    assert "[-]" not in proxy.admin_get("/readyz?verbose").text


def test_readyz_has_a_deadline(warmproxy, origin) -> None:
    """An origin that is down does not keep the daemon from being ready for ever."""
    down = origin(listening=False)
    upstream = {"url": down.url, "warm": 1}
    began = time.monotonic()
    proxy = warmproxy(config={"ready_timeout": 0.7, "upstream": [upstream]})
    assert time.monotonic() - began >= 0.7
    assert proxy.fetch(f"{down.url}/").status == 502


def test_unknown_pages_and_methods(warmproxy) -> None:
    """The admin listener answers 404 for what it does not have, and is no proxy."""
    proxy = warmproxy()
    assert proxy.admin_get("/nothing").status == 404
    assert proxy.admin_get("/healthz").text.strip() == "ok"
    assert proxy.admin_get("http://127.0.0.1:1/").status >= 400


def test_status_shows_the_pools(warmproxy, warmproxy_command, origin) -> None:
    """`status` prints one row per origin with its numbers, and --json what /pools says."""
    web, far = origin(), origin()
    proxy = warmproxy("--warm", f"{web.url}=2", "--warm", f"https://{far.authority}=1")
    ran = warmproxy_command("status", "--admin", proxy.admin)
    assert ran.returncode == 0, ran.stderr
    rows = [line for line in ran.stdout.splitlines() if str(web.port) in line]
    assert len(rows) == 1
    assert "2/2" in rows[0]
    assert any(f"tcp://{far.authority}" in line for line in ran.stdout.splitlines())
    ran = warmproxy_command("status", "--admin", proxy.admin, "--json")
    assert {p["origin"] for p in json.loads(ran.stdout)["pools"]} == set(proxy.pools())


def test_status_without_a_daemon(warmproxy_command) -> None:
    """`status` with nobody to ask: one line on stderr, exit status 1."""
    ran = warmproxy_command("status", "--admin", f"127.0.0.1:{free_port()}")
    assert ran.returncode == 1
    assert len(ran.stderr.strip().splitlines()) == 1
    assert "Traceback" not in ran.stderr


def test_healthcheck(warmproxy, warmproxy_command) -> None:
    """`healthcheck` exits 0 while the daemon answers and 1 once it is gone."""
    proxy = warmproxy()
    assert warmproxy_command("healthcheck", "--admin", proxy.admin).returncode == 0
    assert proxy.terminate() == 0
    ran = warmproxy_command("healthcheck", "--admin", proxy.admin)
    assert ran.returncode == 1
    assert "Traceback" not in ran.stderr


def test_open_metrics_where_they_are_asked_for(warmproxy, run) -> None:
    """Prometheus asks for OpenMetrics and gets it; a browser gets the older text format."""
    proxy = warmproxy()
    accept = "Accept: application/openmetrics-text; version=1.0.0"
    ran = run(["curl", "-sS", "-i", "-H", accept, f"http://{proxy.admin}/metrics"])
    assert "application/openmetrics-text" in ran.output
    assert ran.output.rstrip().endswith("# EOF")
    plain = proxy.admin_get("/metrics")
    assert plain.headers["Content-Type"].startswith("text/plain")
    assert "warmproxy_build_info" in Metrics(plain.text).families or Metrics(plain.text).sum(
        "warmproxy_build_info"
    )


def test_the_admin_listener_serves_no_more_connections_than_it_has_descriptors_for(
    warmproxy,
) -> None:
    """Connections beyond the bound are ended at once, and those within it go on being served."""
    proxy = warmproxy()
    with contextlib.ExitStack() as stack:
        socks = [
            stack.enter_context(
                socket.create_connection(("127.0.0.1", proxy.admin_port), timeout=10)
            )
            for _ in range(40)
        ]

        def is_served(sock: socket.socket) -> bool:
            try:
                sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
                return sock.recv(4096).startswith(b"HTTP/1.1 200 ")
            except ConnectionError:
                return False

        served = [is_served(sock) for sock in socks]
        # a look of the test's own at the start may still hold one place
        assert sum(served) in (31, 32)
        assert not any(served[32:])
    eventually(lambda: proxy.admin_status("/healthz") == 200)


def test_long_pages_come_whole_however_they_are_asked_for(warmproxy, origin) -> None:
    """/metrics is sent in pieces: in chunks, or to HTTP/1.0 until the connection ends; what was
    pipelined behind it comes after it, and a client that sends no more still gets all. A short page
    says how long it is."""
    proxy = warmproxy("--warm", f"{origin().url}=1")

    def raw(request: bytes, *, half_close: bool = False) -> bytes:
        with socket.create_connection(("127.0.0.1", proxy.admin_port), timeout=10) as sock:
            sock.sendall(request)
            if half_close:
                sock.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: sock.recv(65536), b""))

    host = b"Host: localhost\r\n"
    old = raw(b"GET /metrics HTTP/1.0\r\n%b\r\n" % host)
    assert b"chunked" not in old
    assert b"_seconds_total" in old[-400:]
    head = raw(b"HEAD /metrics HTTP/1.1\r\n%bConnection: close\r\n\r\n" % host)
    assert head.endswith(b"\r\n\r\n")
    assert b"Transfer-Encoding: chunked" in head

    get = b"GET /metrics HTTP/1.1\r\n%b\r\n" % host
    last = b"GET /pools HTTP/1.1\r\n%bConnection: close\r\n\r\n" % host
    both = raw(get + get + last)
    assert both.count(b"HTTP/1.1 200 OK") == 3
    assert both.count(b"\r\n0\r\n\r\n") == 2
    _, _, pools = both.rpartition(b"\r\n0\r\n\r\n")
    fields, _, body = pools.partition(b"\r\n\r\n")
    assert b"\r\nContent-Length: %d\r\n" % len(body) in fields
    assert json.loads(body)["totals"]["fresh"] == 1
    assert raw(get, half_close=True).endswith(b"\r\n0\r\n\r\n")
    assert proxy.pools()
