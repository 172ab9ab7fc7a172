"""Real servers as origins: what they make of connections that were opened ahead of requests."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor

from tests.e2e.daemon import fetch_on, wait_warm
from tests.e2e.harness import eventually


def test_nginx_static_files(warmproxy, nginx_server) -> None:
    """nginx: a small and a 32 MiB file arrive unchanged on two warm connections, used again and
    again by clients that come one after the other."""
    web = nginx_server("")
    content = bytes(range(256)) * (1 << 17)
    (web.www / "large.bin").write_bytes(content)
    proxy = warmproxy("--warm", f"{web.url}=2")
    for _ in range(3):
        assert proxy.fetch(f"{web.url}/hello.txt").text == "hello from nginx\n"
        reply = proxy.fetch(f"{web.url}/large.bin")
        assert hashlib.sha256(reply.body).digest() == hashlib.sha256(content).digest()
    assert proxy.fetch(f"{web.url}/missing").status == 404
    head = proxy.fetch(f"{web.url}/large.bin", "HEAD")
    assert (head.status, head.body) == (200, b"")
    part = proxy.fetch(f"{web.url}/large.bin", headers={"Range": "bytes=255-257"})
    assert (part.status, part.body) == (206, b"\xff\x00\x01")
    rows = eventually(lambda: (rows := web.seen()) and len(rows) == 9 and rows)
    assert len({connection for connection, *_ in rows}) <= 2
    assert proxy.count("warmproxy_acquires_total", outcome="dialled") == 0


def test_nginx_that_closes_after_a_few_requests(warmproxy, nginx_server) -> None:
    """nginx with keepalive_requests 3 closes connections all the time: every request is answered
    and none waits for a dial."""
    web = nginx_server("keepalive_requests 3;")
    proxy = warmproxy("--warm", f"{web.url}=4")
    for n in range(30):
        method = "POST" if n % 3 == 0 else "GET"
        # nginx answers 405 to a POST for a file: an answer all the same
        assert proxy.fetch(f"{web.url}/hello.txt", method).status in (200, 405)
        wait_warm(proxy, web.url, 1)
    rows = eventually(lambda: (rows := web.seen()) and len(rows) == 30 and rows)
    assert max(nth for _, nth, *_ in rows) <= 3
    assert proxy.count("warmproxy_acquires_total", outcome="dialled") == 0
    wait_warm(proxy, web.url, 4)


def test_nginx_with_short_idle_times(warmproxy, nginx_server) -> None:
    """nginx that closes never-used connections after 1 s and used ones too: the pool is warm again
    after each round and requests never fail."""
    web = nginx_server("keepalive_timeout 1s; client_header_timeout 1s;")
    proxy = warmproxy("--warm", f"{web.url}=3")
    replies = []

    def three_rounds() -> bool:
        replies.append(proxy.fetch(f"{web.url}/hello.txt").status)
        return proxy.count("warmproxy_closed_total", reason="upstream_eof") >= 9

    eventually(three_rounds, 15, lambda: proxy.pools())
    assert set(replies) == {200}
    wait_warm(proxy, web.url, 3)


def test_httpbin_under_gunicorn(warmproxy, httpbin_server) -> None:
    """gunicorn with threads, closing used connections after 1 s: bodies, redirects, cookies,
    gzip and status codes pass through as they are."""
    web = httpbin_server(1)
    proxy = warmproxy("--warm", f"{web.url}=2")
    client = proxy.connect()
    try:
        reply = fetch_on(client, f"{web.url}/get?a=1&b=%20x", headers={"X-Mine": "kept"})
        seen = json.loads(reply.body)
        assert seen["args"] == {"a": "1", "b": " x"}
        assert seen["headers"]["X-Mine"] == "kept"
        assert seen["headers"]["Host"] == f"127.0.0.1:{web.port}"
        assert "X-Forwarded-For" not in seen["headers"]
        body = b"field=value" * 1000
        reply = fetch_on(client, f"{web.url}/put", "PUT", body, {"Content-Type": "text/plain"})
        assert json.loads(reply.body)["data"] == body.decode()
        assert fetch_on(client, f"{web.url}/status/418").status == 418
        reply = fetch_on(client, f"{web.url}/redirect-to?url=/get&status_code=307", "POST", b"x")
        assert (reply.status, reply.headers["Location"]) == (307, "/get")
        reply = fetch_on(client, f"{web.url}/gzip")
        assert reply.headers["Content-Encoding"] == "gzip"
        assert reply.body[:2] == b"\x1f\x8b"
        reply = fetch_on(client, f"{web.url}/stream/3")
        assert len(reply.body.splitlines()) == 3
        reply = fetch_on(client, f"{web.url}/response-headers?Set-Cookie=a&Set-Cookie=b")
        assert reply.headers.get_all("Set-Cookie") == ["a", "b"]
    finally:
        client.close()
    # gunicorn closes what is idle; the next POST is not the one that notices.
    closed = proxy.count("warmproxy_closed_total", reason="upstream_eof")
    eventually(lambda: proxy.count("warmproxy_closed_total", reason="upstream_eof") > closed)
    wait_warm(proxy, web.url, 1)
    reply = proxy.fetch(f"{web.url}/post", "POST", b"after the close")
    assert json.loads(reply.body)["data"] == "after the close"


def test_node_under_load(warmproxy, node_server) -> None:
    """Node with defaults, eight clients of ten requests each: all are answered, once each."""
    web = node_server({})
    proxy = warmproxy("--warm", f"{web.url}=8")

    def ten(client: int) -> list[str]:
        return [
            proxy.fetch(f"{web.url}/{client}/{n}", "POST", b"x" * n).text.strip() for n in range(10)
        ]

    with ThreadPoolExecutor(8) as threads:
        texts = list(threads.map(ten, range(8)))
    assert texts == [[f"hello from node, {n} bytes" for n in range(10)]] * 8
    targets = [e["target"] for e in web.events("request")]
    assert sorted(targets) == sorted(f"/{c}/{n}" for c in range(8) for n in range(10))
    assert all("warmproxy" in e["headers"]["via"] for e in web.events("request"))
