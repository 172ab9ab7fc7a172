"""Origins that idle connections do harm to are left alone; all others keep theirs."""

import http.server
import socketserver
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.e2e.daemon import Warmproxy, wait_warm
from tests.e2e.harness import always, count_sockets_to, eventually, free_port

AT_ONCE = 1.0
"""Seconds: far above what these servers take, far below what a kept worker costs."""


def held_back(proxy: Warmproxy, url: str) -> dict[str, Any] | None:
    return proxy.pool(url)["held_back"]


def closed(proxy: Warmproxy, url: str, reason: str) -> int:
    count: int = proxy.pool(url)["closed"].get(reason, 0)
    return count


def timed(proxy: Warmproxy, url: str, method: str = "GET") -> float:
    """Seconds that a request took, which was answered as it should be."""
    began = time.monotonic()
    assert proxy.fetch(url, method, timeout=40).status == 200
    return time.monotonic() - began


# -- who is left alone ------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_gunicorn_whose_workers_wait_for_idle_connections(
    warmproxy, gunicorn_server, workers
) -> None:
    """gunicorn's sync worker serves nobody while an idle connection has it: two requests are slow,
    by a few seconds; then the origin has no idle connection, everybody is served at once, and one
    line says why."""
    web = gunicorn_server(["--preload", "--workers", str(workers)])
    proxy = warmproxy("--warm", f"{web.url}={workers + 1}")
    wait_warm(proxy, web.url, workers + 1)
    slow = []

    def found_out() -> bool:
        took = timed(proxy, f"{web.url}/delay/0")
        if took >= AT_ONCE:
            slow.append(took)
        return held_back(proxy, web.url) is not None

    eventually(found_out, 20, proxy.log)
    assert len(slow) == 2, slow
    assert max(slow) < 4.5, slow
    eventually(lambda: count_sockets_to(web.port, "ESTABLISHED") == 0)
    for method in ("GET", "POST") * 5:
        assert timed(proxy, f"{web.url}/delay/0", method) < AT_ONCE
        eventually(lambda: count_sockets_to(web.port, "ESTABLISHED") == 0)
    with ThreadPoolExecutor(8) as threads:
        took = list(threads.map(lambda _: timed(proxy, f"{web.url}/delay/0"), range(8)))
    assert max(took) < AT_ONCE
    (line,) = proxy.log_lines("held_back")
    assert "kept its worker" in line
    assert "TIMEOUT" not in web.log()


def test_gunicorn_that_kills_a_worker_which_an_idle_connection_had(
    warmproxy, gunicorn_server
) -> None:
    """With no request to tell by, the 500 that gunicorn writes on the idle connection when it
    kills the worker says it: from then on there is none, and no client ever sees that 500."""
    web = gunicorn_server(["--preload", "--timeout", "2"])
    proxy = warmproxy("--warm", f"{web.url}=1")
    eventually(lambda: held_back(proxy, web.url), 15, proxy.log)
    eventually(lambda: count_sockets_to(web.port, "ESTABLISHED") == 0)
    for _ in range(5):
        assert timed(proxy, f"{web.url}/delay/0") < AT_ONCE
    (line,) = proxy.log_lines("held_back")
    assert "answered 500 to an idle connection" in line
    assert web.log().count("WORKER TIMEOUT") == 1


@pytest.mark.parametrize("status", ["429 Too Many Requests", "503 Service Unavailable"])
@pytest.mark.parametrize("after", [0.0, 0.7])
def test_an_origin_that_refuses_idle_connections(warmproxy, origin, status, after) -> None:
    """An origin that says 429 or 503 to a connection that asked for nothing, at once or later, is
    dialled for requests only."""
    web = origin(
        idle_fresh=after, farewell=f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode()
    )
    upstream = {"url": web.url, "warm": 3}
    proxy = warmproxy(config={"upstream": [upstream], "ready_timeout": 0.2})
    eventually(lambda: held_back(proxy, web.url), says=proxy.log)

    def settled() -> bool:
        pool = proxy.pool(web.url)
        return pool["dialling"] == 0 and pool["dials"] == len(web.connections)

    eventually(settled, says=proxy.pools)
    eventually(lambda: not web.open_connections())
    seen = len(web.connections)
    assert seen <= 6
    always(lambda: len(web.connections) == seen, 1.0, lambda: web.connections)
    (line,) = proxy.log_lines("held_back")
    assert f"answered {status[:3]} to an idle connection" in line
    web.idle_fresh = None
    assert proxy.fetch(f"{web.url}/delay/0").status == 200
    assert len(web.connections) == seen + 1
    eventually(lambda: not web.open_connections())


class _Hello(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "6")
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(b"hello\n")

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Quiet(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        pass


@pytest.fixture
def python_https(stack, authority) -> int:
    """Python's HTTP server with its listening socket wrapped in TLS, as many examples have it: it
    shakes hands where it accepts."""
    server = _Quiet(("127.0.0.1", free_port()), _Hello)
    server.socket = authority.server.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    stack.callback(server.server_close)
    stack.callback(server.shutdown)
    return server.server_port


def through_a_tunnel(proxy: Warmproxy, port: int, authority: Any) -> float:
    began = time.monotonic()
    with proxy.tls_tunnel(f"127.0.0.1:{port}", authority.client) as tunnel:
        tunnel.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert tunnel.recv(4096).startswith(b"HTTP/1.1 200 OK")
    return time.monotonic() - began


def in_absolute_form(proxy: Warmproxy, port: int, authority: Any) -> float:
    return timed(proxy, f"https://127.0.0.1:{port}/")


@pytest.mark.timeout(150)
@pytest.mark.parametrize("ask", [through_a_tunnel, in_absolute_form])
def test_a_server_that_waits_for_a_handshake_before_it_accepts_more(
    warmproxy, python_https, authority, ask: Callable[..., float]
) -> None:
    """One raw connection without a handshake stops such a server altogether: it is found out by
    what a tunnel, or a request that needs TLS, waits for."""
    url = f"https://127.0.0.1:{python_https}"
    # how long it waits is judged here, and not ended by the time for a handshake
    upstream = {"url": url, "warm": 2, "ca_file": str(authority.file), "dial_timeout": 20}
    # A try counts only if it frees the request within half a second, and another comes after five
    # minutes: where the machine was too slow for that, a daemon that knows nothing tries again.
    for _ in range(4):
        proxy = warmproxy(config={"upstream": [upstream]})
        slow = []
        try:
            while held_back(proxy, url) is None and len(slow) <= 2:
                took = ask(proxy, python_https, authority)
                slow += [took] if took >= AT_ONCE else []
        except (AssertionError, OSError):
            proxy.stop()
            continue
        break
    assert held_back(proxy, url) is not None, proxy.log()
    assert len(slow) <= 2, slow
    assert max(slow) < 5.5, slow
    for _ in range(5):
        assert ask(proxy, python_https, authority) < AT_ONCE
    assert len(proxy.log_lines("held_back")) == 1


# -- who is not -------------------------------------------------------------------------------


def slow_nginx(origin: Any, nginx_server: Any) -> str:
    """nginx before an application that takes its time."""

    def answer(connection: Any, request: Any) -> None:
        if request.target.startswith("/delay/"):
            time.sleep(float(request.target.removeprefix("/delay/")))
        connection.reply(b"hello\n")

    application = origin(answer)
    port = free_port()
    place = f"location / {{ proxy_pass {application.url}; }}"
    nginx_server(f"server {{ listen 127.0.0.1:{port}; {place} }}")
    return f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("kind", ["nginx", "node", "gunicorn with threads", "uvicorn"])
def test_a_slow_answer_is_no_harm(
    warmproxy, origin, nginx_server, node_server, gunicorn_server, uvicorn_server, kind
) -> None:
    """Servers whose handler takes three seconds, for the first request and for more of them at
    once, are suspected once at most and have their idle connections again at once."""
    url = {
        "nginx": lambda: slow_nginx(origin, nginx_server),
        "node": lambda: node_server({}).url,
        "gunicorn with threads": lambda: (
            gunicorn_server(["--worker-class", "gthread", "--threads", "8"]).url
        ),
        "uvicorn": lambda: uvicorn_server([]).url,
    }[kind]()
    proxy = warmproxy("--warm", f"{url}=3")
    wait_warm(proxy, url, 3)
    for width in (1, 4):
        with ThreadPoolExecutor(width) as threads:
            jobs = [threads.submit(timed, proxy, f"{url}/delay/3", "POST") for _ in range(width)]
            assert all(3 <= job.result() < 4 for job in jobs)
        wait_warm(proxy, url, 3)
    for _ in range(3):
        assert timed(proxy, f"{url}/delay/0", "POST") < AT_ONCE
    wait_warm(proxy, url, 3)
    assert held_back(proxy, url) is None
    assert proxy.log_lines("held_back") == []
    assert closed(proxy, url, "harmful") <= 2, "one try: what is older than the first request's"


def test_what_was_answered_once_beside_idle_connections_is_never_suspected(
    warmproxy, node_server
) -> None:
    """After one quick answer beside idle connections, a slow one costs none of them."""
    web = node_server({})
    proxy = warmproxy("--warm", f"{web.url}=3")
    assert timed(proxy, f"{web.url}/delay/0", "POST") < AT_ONCE
    wait_warm(proxy, web.url, 3)
    assert timed(proxy, f"{web.url}/delay/3", "POST") >= 3
    assert closed(proxy, web.url, "harmful") == 0


@pytest.mark.parametrize("kind", ["haproxy", "node"])
def test_a_408_at_the_idle_limit_is_no_harm(warmproxy, haproxy_server, node_server, kind) -> None:
    """HAProxy and Node write a 408 where a connection stayed silent for too long: the limit is
    learned, and the pool stays warm."""
    if kind == "haproxy":
        web = haproxy_server("1s")
    else:
        web = node_server({"headersTimeout": 1000, "connectionsCheckingInterval": 100})
    proxy = warmproxy("--warm", f"{web.url}=2")
    eventually(lambda: closed(proxy, web.url, "unsolicited_data") >= 4, 20, proxy.pools)
    eventually(lambda: proxy.pool(web.url)["fresh"] >= 2)
    assert proxy.fetch(f"{web.url}/delay/0").status == 200
    assert held_back(proxy, web.url) is None
    assert proxy.log_lines("held_back") == []
