"""Requests of our own that keep connections in use: what the origins saw of them."""

import json
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest

from tests.e2e.daemon import Warmproxy, wait_warm
from tests.e2e.harness import always, eventually
from tests.e2e.tls_origins import Pki
from warmproxy import __version__


def start(warmproxy: Any, url: str, **upstream: Any) -> Warmproxy:
    table = {"url": url, "warm": 3, "prime": "HEAD /healthz", "prime_every": 0, **upstream}
    top = {"log_format": "json", "ready_timeout": 0.5, "learn_requests": 0}
    return warmproxy(config={**top, "upstream": [table]})


def primes(proxy: Warmproxy) -> dict[str, float]:
    family = proxy.metrics().families["warmproxy_primes"]
    counted: Counter[str] = Counter()
    for sample in family.samples:
        counted[sample.labels["result"]] += int(sample.value)
    return dict(counted)


def events(proxy: Warmproxy, name: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in proxy.log().splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == name]


# -- new connections --------------------------------------------------------------------------


def test_each_new_connection_has_served_a_request_before_a_client_gets_it(
    warmproxy, nginx_server
) -> None:
    """nginx logs one HEAD as the first request of every warm connection; the client's request is
    the second one there, and the only one that is counted as a client's."""
    web = nginx_server("")
    proxy = start(warmproxy, web.url, prime="HEAD /hello.txt")
    wait_warm(proxy, web.url, 3)
    rows = eventually(lambda: (rows := web.seen()) and len(rows) == 3 and rows)
    assert {row[1:] for row in rows} == {(1, "HEAD", "/hello.txt", 200)}
    assert len({connection for connection, *_ in rows}) == 3
    assert primes(proxy) == {"2xx": 3}
    metrics = proxy.metrics()
    for name in ("acquires_total", "requests_total", "first_byte_seconds_count", "retries_total"):
        assert metrics.sum(f"warmproxy_{name}") == 0, name
    assert proxy.fetch(f"{web.url}/hello.txt").status == 200
    row = eventually(lambda: (rows := web.seen()) and len(rows) >= 4 and rows[3])
    assert row[1:] == (2, "GET", "/hello.txt", 200)
    assert proxy.count("warmproxy_acquires_total", outcome="used") == 1
    assert proxy.count("warmproxy_acquires_total") == 1
    assert proxy.count("warmproxy_requests_total") == 1


def test_what_is_sent_names_us_as_the_sender(warmproxy, node_server) -> None:
    """Node gets origin-form with its own Host and our name, and no Via: nobody is behind it."""
    web = node_server({})
    proxy = start(warmproxy, web.url, warm=1, prime="OPTIONS *")
    wait_warm(proxy, web.url, 1)
    (request,) = web.events("request")
    assert (request["method"], request["target"]) == ("OPTIONS", "*")
    assert request["headers"] == {
        "host": f"127.0.0.1:{web.port}",
        "user-agent": f"warmproxy/{__version__}",
        "accept": "*/*",
    }


def test_a_dial_that_a_request_waits_for_is_not_primed(warmproxy, nginx_server) -> None:
    """With nothing warm, the first request on each connection is a client's."""
    web = nginx_server("")
    proxy = start(warmproxy, web.url, warm=0, prime="HEAD /hello.txt")
    assert proxy.fetch(f"{web.url}/hello.txt").status == 200
    wait_warm(proxy, web.url, 1)
    rows = eventually(lambda: (rows := web.seen()) and rows)
    assert [row[1:] for row in rows] == [(1, "GET", "/hello.txt", 200)]
    assert primes(proxy) == {}


def test_a_request_does_not_wait_for_a_slow_prime(warmproxy, origin) -> None:
    """While an origin takes its time over our own request, a client's gets a connection that is
    dialled for it, and the answer at once."""
    answered = threading.Event()

    def answer(connection: Any, request: Any) -> None:
        if request.method == "HEAD":
            assert answered.wait(20)
        connection.reply(b"" if request.method == "HEAD" else b"hello")

    web = origin(answer)
    proxy = start(warmproxy, web.url, warm=2, dial_timeout=15)
    web.wait_requests(2)
    try:
        reply = proxy.fetch(f"{web.url}/")
    finally:
        answered.set()
    assert reply.text == "hello"
    assert [(r.method, r.nth) for r in web.requests[:3]] == [("HEAD", 1), ("HEAD", 1), ("GET", 1)]
    wait_warm(proxy, web.url, 2)
    assert proxy.count("warmproxy_acquires_total", outcome="dialled") == 1


def test_the_whole_answer_is_read_and_none_of_it_reaches_a_client(warmproxy, nginx_server) -> None:
    """A GET whose answer is 300 kB: the connection is warm after its last byte, and the client
    gets its own answer."""
    web = nginx_server("")
    (web.www / "large").write_bytes(b"x" * 300_000)
    proxy = start(warmproxy, web.url, warm=1, prime="GET /large")
    wait_warm(proxy, web.url, 1)
    assert proxy.fetch(f"{web.url}/hello.txt").text == "hello from nginx\n"
    assert [row[1:4] for row in web.seen()][:2] == [
        (1, "GET", "/large"),
        (2, "GET", "/hello.txt"),
    ]


def test_connections_with_tls_are_primed_and_raw_ones_are_not(
    warmproxy, origin, tmp_path_factory
) -> None:
    """The origin of an https:// url gets our request on its finished connections only."""
    pki = Pki(tmp_path_factory.mktemp("pki"))
    web = origin(tls=pki.server())
    url = f"https://localhost:{web.port}"
    proxy = start(warmproxy, url, warm=2, tls=2, ca_file=str(pki.file))
    eventually(lambda: proxy.pools()[url]["used"] == 2, says=proxy.pools)
    assert [(r.method, r.target, r.header("host")) for r in web.requests] == [
        ("HEAD", "/healthz", f"localhost:{web.port}")
    ] * 2
    assert proxy.pools()[f"tcp://localhost:{web.port}"]["fresh"] == 2
    assert primes(proxy) == {"2xx": 2}


# -- connections that do not survive ----------------------------------------------------------


def test_an_origin_that_ends_each_connection_is_warmed_without(warmproxy, apache_server) -> None:
    """Apache without KeepAlive answers every HEAD with Connection: close: after three the pool is
    warmed with connections that never carried a request, and both is said once."""
    web = apache_server("KeepAlive Off")
    proxy = start(warmproxy, web.url)
    wait_warm(proxy, web.url, 3)
    assert proxy.pool(web.url)["fresh"] == 3
    assert set(primes(proxy)) == {"close"}
    assert 3 <= primes(proxy)["close"] <= 3 + 3
    assert len(web.seen()) == primes(proxy)["close"]
    (lost,) = events(proxy, "prime_failed")
    assert "ends the connection" in lost["reason"]
    assert lost["survived"] is False
    (given_up,) = events(proxy, "prime_given_up")
    assert given_up["origin"] == web.url
    assert proxy.fetch(f"{web.url}/").status == 204
    assert proxy.count("warmproxy_acquires_total", outcome="fresh") == 1


def _http_10(connection: Any, request: Any) -> None:
    connection.send(b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n")


def _garbage(connection: Any, request: Any) -> None:
    connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nand more")


def _hang_up(connection: Any, request: Any) -> None:
    connection.cut()


def _silence(connection: Any, request: Any) -> None:
    while connection.receive():
        pass


@pytest.mark.parametrize(
    ("answer", "result"),
    [(_http_10, "close"), (_garbage, "invalid"), (_hang_up, "ended"), (_silence, "timeout")],
)
def test_each_way_not_to_survive_has_its_name_and_keeps_no_pool_cold(
    warmproxy, origin, answer, result
) -> None:
    """HTTP/1.0, bytes too many, an end and a silence: counted, given up, and the pool is warm."""
    web = origin(lambda c, r: answer(c, r) if r.method == "HEAD" else c.reply(b"hello"))
    # short where it is waited for, and otherwise longer than a busy machine takes
    patience = 0.2 if result == "timeout" else 5.0
    proxy = start(warmproxy, web.url, warm=2, dial_timeout=patience)
    eventually(lambda: len(web.idle_connections()) == 2, says=lambda: proxy.log())
    wait_warm(proxy, web.url, 2)
    assert set(primes(proxy)) == {result}
    assert len(events(proxy, "prime_failed")) == len(events(proxy, "prime_given_up")) == 1
    assert proxy.count("warmproxy_dials_wasted_total") == len(web.connections) - 2
    assert proxy.fetch(f"{web.url}/").text == "hello"


def test_a_refusal_is_an_answer_like_any_other(warmproxy, origin) -> None:
    """A 503 leaves the connection in use; it is counted, and said once."""
    web = origin(lambda c, r: c.reply(b"", "503 Service Unavailable"))
    proxy = start(warmproxy, web.url, prime_every=0.2)
    wait_warm(proxy, web.url, 3)
    eventually(lambda: primes(proxy)["5xx"] >= 9, says=lambda: primes(proxy))
    assert set(primes(proxy)) == {"5xx"}
    assert len(web.connections) == 3
    (refused,) = events(proxy, "prime_failed")
    assert (refused["survived"], "503" in refused["reason"]) == (True, True)
    assert events(proxy, "prime_given_up") == []


# -- on the timer -----------------------------------------------------------------------------


def test_idle_connections_are_kept_beyond_the_servers_limit(warmproxy, node_server) -> None:
    """Node with a keep-alive of 2 s, primed every second: for three times as long not one
    connection is closed, and each gets its request again and again."""
    web = node_server({"keepAliveTimeout": 2000})
    proxy = start(warmproxy, web.url, prime_every=1)
    wait_warm(proxy, web.url, 3)
    eventually(lambda: len(web.events("request")) >= 18, 15)
    assert len(web.events("connect")) == 3
    assert web.events("close") == []
    served = Counter(event["connection"] for event in web.events("request"))
    assert min(served.values()) >= 5
    assert primes(proxy)["2xx"] >= 18
    assert proxy.count("warmproxy_acquires_total") == 0
    assert proxy.count("warmproxy_closed_total") == 0


def test_what_the_answer_says_of_idle_time_is_heeded(warmproxy, node_server) -> None:
    """Node says that it keeps an idle connection for 2 s: those that were primed and never used
    are replaced before, and Node never has to close one."""
    web = node_server({"keepAliveTimeout": 2000})
    proxy = start(warmproxy, web.url)

    def replaced() -> bool:
        return proxy.count("warmproxy_closed_total", reason="idle_limit") >= 6

    eventually(replaced, 15, lambda: proxy.pools())
    assert proxy.count("warmproxy_closed_total", reason="upstream_eof") == 0


def test_the_timer_takes_one_at_a_time_the_oldest_first(warmproxy, origin) -> None:
    """However long the origin takes, no more than one connection is off its shelf, nothing is
    dialled in its place, and it is the one that was idle longest, for as long as was said."""
    together: list[int] = []
    under_way: list[Any] = []

    def answer(connection: Any, request: Any) -> None:
        if request.nth > 1:
            under_way.append(request)
            together.append(len(under_way))
            threading.Event().wait(0.1)
            under_way.remove(request)
        connection.reply()

    web = origin(answer)
    proxy = start(warmproxy, web.url, warm=4, prime_every=0.5)
    wait_warm(proxy, web.url, 4)

    def one_short() -> bool:
        pool = proxy.pool(web.url)
        return pool["used"] >= 3 and pool["active"] <= 1 and pool["dialling"] == 0

    always(one_short, 3.0, proxy.pools)
    assert len(web.connections) == 4
    assert len(together) >= 12
    assert max(together) == 1
    again = [r.connection.number for r in web.requests if r.nth > 1]
    assert all(len(set(again[n : n + 4])) == 4 for n in range(len(again) - 4))
    for connection in web.connections:
        times = [request.at for request in connection.requests]
        assert min(b - a for a, b in pairwise(times)) >= 0.499


def test_nothing_is_primed_while_requests_wait(warmproxy, origin) -> None:
    """At max_connections, with a client in line for the one connection, the timer leaves it
    alone: the client has it first."""
    web = origin()
    proxy = start(warmproxy, web.url, warm=1, max_connections=1, prime_every=0.2)
    wait_warm(proxy, web.url, 1)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(proxy.fetch, f"{web.url}/hold")
        eventually(lambda: any(r.target == "/hold" for r in web.requests))
        second = threads.submit(proxy.fetch, f"{web.url}/next")
        eventually(lambda: proxy.pool(web.url)["waiting"] == 1)
        web.gate.set()
        assert (first.result(10).status, second.result(10).status) == (200, 200)
    targets = [r.target for r in web.requests]
    assert targets[targets.index("/hold") + 1] == "/next"


def test_a_stop_does_not_wait_for_a_prime(warmproxy, origin) -> None:
    """SIGTERM while our own request is under way ends the daemon at once, and in good order."""
    web = origin(lambda c, r: c.origin.gate.wait(20) and None)
    proxy = warmproxy(
        config={
            "ready_timeout": 0.1,
            "upstream": [{"url": web.url, "prime": "HEAD /", "dial_timeout": 20}],
        }
    )
    web.wait_requests(2)
    assert proxy.terminate() == 0
    assert "Traceback" not in proxy.log()
    assert "never released" not in proxy.log()
    eventually(lambda: all(c.eof_at or c.ended for c in web.connections) or not web.gate.set())
