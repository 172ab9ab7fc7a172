"""Idle connections: what an upstream does to them, and that no client ever learns of it."""

import signal
import statistics
import time

import pytest

from tests.e2e.daemon import fetch_on, origin_name, read_reply, wait_warm
from tests.e2e.harness import CloseWaitWatch, always, count_sockets_to, eventually

ANSWER_408 = (
    b"HTTP/1.1 408 Request Time-out\r\nContent-Length: 11\r\nConnection: close\r\n\r\nyou slept!\n"
)


def closed(proxy, url: str, reason: str) -> float:
    return proxy.count("warmproxy_closed_total", origin=origin_name(url), reason=reason)


def told(proxy, url: str, event: str, field: str) -> list[dict]:
    """The lines of an event about an origin that have `field`, and that these are few: what
    repeats is one line, and one more at the most before each other kind of line about that origin
    (the order is kept), or at the daemon's end."""
    about = proxy.events(origin=origin_name(url))
    kinds = {(line["event"], field in line) for line in about}
    lines = [line for line in about if line["event"] == event and field in line]
    assert len(lines) <= len(kinds) + (not proxy.running()), proxy.log()
    assert all("repeated" in line for line in lines[1:]), lines
    return lines


def times(lines: list[dict]) -> int:
    """How often it happened that these lines tell of."""
    return sum(line.get("repeated", 1) for line in lines)


# -- readable is not closed -------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_408_on_an_idle_connection_never_reaches_a_client(warmproxy, origin, scheme) -> None:
    """Bytes that an origin writes on idle connections end these under `unsolicited_data`, are
    replaced, and neither a request nor a tunnel ever sees them."""
    web = origin()
    proxy = warmproxy("--warm", f"{scheme}://{web.authority}=2")
    before = web.wait_open(2)
    for connection in before:
        connection.say(ANSWER_408)
    eventually(lambda: all(c.eof_at or c.ended for c in before), says=lambda: before)
    url = f"{scheme}://{web.authority}"
    assert closed(proxy, url, "unsolicited_data") == 2
    assert proxy.pool(url)["last_close"]["reason"] == "unsolicited_data"
    assert set(before).isdisjoint(web.wait_open(2))
    if scheme == "http":
        reply = proxy.fetch(f"{web.url}/")
        assert (reply.status, reply.text) == (200, web.greeting)
    else:
        with proxy.tunnel(web.authority) as tunnel:
            tunnel.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert tunnel.recv(100).startswith(b"HTTP/1.1 200 OK")
    assert web.requests[-1].connection not in before


def test_a_408_that_meets_the_request_is_not_its_answer(warmproxy, origin) -> None:
    """Bytes that wait in the socket while the daemon has not looked yet are found at checkout:
    the request goes elsewhere and gets its own answer."""
    web = origin()
    proxy = warmproxy("--warm", f"{web.url}=2")
    before = web.wait_open(2)
    client = proxy.connect()
    assert proxy.admin_status("/healthz") == 200
    try:
        proxy.signal(signal.SIGSTOP)
        client.request("POST", f"{web.url}/echo", b"once")
        for connection in before:
            connection.say(ANSWER_408)
        eventually(lambda: _unread_bytes(web.port) >= 2 * len(ANSWER_408))
        proxy.signal(signal.SIGCONT)
        reply = read_reply(client)
    finally:
        client.close()
    assert (reply.status, reply.body) == (200, b"once")
    assert [bytes(r.body) for r in web.requests] == [b"once"]
    assert web.requests[0].connection not in before


def test_bytes_behind_an_answer_are_not_the_next_one(warmproxy, origin) -> None:
    """What an origin sends behind a complete answer is nobody's: the connection ends with it and
    the next request gets its own answer from another one."""
    web = origin()
    usual = web.answer

    def talk_on(connection, request) -> None:
        if request.target == "/first":
            body = web.greeting.encode()
            head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
            connection.send(head + body + ANSWER_408)  # at once: later it would cross a request
        else:
            usual(connection, request)

    web.answer = talk_on
    proxy = warmproxy("--warm", f"{web.url}=2")
    client = proxy.connect()
    for target in ("/first", "/second", "/third"):
        reply = fetch_on(client, f"{web.url}{target}")
        assert (reply.status, reply.text) == (200, web.greeting)
    first, second, third = web.requests
    assert second.connection is third.connection is not first.connection
    eventually(lambda: first.connection.ended, says=lambda: first.connection)


def test_a_tls_alert_on_an_idle_connection_has_its_own_reason(warmproxy, origin) -> None:
    """A TLS server that alerts on a connection without a ClientHello: ended under `tls_alert`,
    replaced, and nothing of it reaches a tunnel."""
    web = origin()
    url = f"https://{web.authority}"
    proxy = warmproxy("--warm", f"{url}=2")
    alerted, _ = web.wait_open(2)
    alerted.say(b"\x15\x03\x03\x00\x02\x02\x28")
    eventually(lambda: closed(proxy, url, "tls_alert") == 1, says=proxy.pools)
    eventually(lambda: alerted.ended, says=lambda: alerted)
    wait_warm(proxy, url, 2)
    assert proxy.pool(url)["last_close"]["reason"] == "tls_alert"


def _unread_bytes(port: int) -> int:
    """In the receive queues of our sockets whose other end is `port`."""
    unread = 0
    with open("/proc/net/tcp") as table:
        for line in table:
            fields = line.split()
            if fields[2].endswith(f":{port:04X}"):
                unread += int(fields[4].partition(":")[2], 16)
    return unread


def test_haproxy_408_never_reaches_a_client(warmproxy, haproxy_server) -> None:
    """HAProxy's own 408 (`timeout http-request`) on warm connections, over several rounds of
    expiry with requests in between: every answer is the request's own."""
    web = haproxy_server("600ms")
    proxy = warmproxy("--warm", f"{web.url}=3")
    for expired in (3, 5, 7, 9):
        eventually(
            lambda n=expired: closed(proxy, web.url, "unsolicited_data") >= n, says=proxy.pools
        )
        for method in ("GET", "POST"):
            reply = proxy.fetch(f"{web.url}/", method)
            assert (reply.status, reply.body) == (200, b"from haproxy")
    wait_warm(proxy, web.url, 3)
    assert proxy.count("warmproxy_acquires_total", outcome="failed") == 0


def test_node_408_never_reaches_a_client(warmproxy, node_server) -> None:
    """Node's 408 on connections that never sent a request (headersTimeout): replaced, unseen."""
    web = node_server({"headersTimeout": 300, "connectionsCheckingInterval": 100})
    proxy = warmproxy("--warm", f"{web.url}=2")
    eventually(lambda: closed(proxy, web.url, "unsolicited_data") >= 2, says=proxy.log)
    eventually(lambda: len(web.events("connect")) >= 4)
    reply = proxy.fetch(f"{web.url}/", "POST", b"abc")
    assert reply.status == 200
    assert reply.text == "hello from node, 3 bytes\n"
    assert [e["target"] for e in web.events("request")] == ["/"]


def test_node_closes_used_connections_after_5_s(warmproxy, node_server) -> None:
    """With Node's defaults a used connection ends after its 5 s of keep-alive: noticed, replaced,
    and the next POST rides on a connection that is still alive."""
    web = node_server({})
    proxy = warmproxy("--warm", f"{web.url}=1")
    assert proxy.fetch(f"{web.url}/first").status == 200
    first = web.events("request")[0]["connection"]
    eventually(lambda: first in [e["connection"] for e in web.events("close")], 12)
    eventually(lambda: count_sockets_to(web.port, "CLOSE_WAIT") == 0, 2)
    assert proxy.fetch(f"{web.url}/second", "POST", b"x").status == 200
    requests = web.events("request")
    assert [r["target"] for r in requests] == ["/first", "/second"]
    assert requests[1]["connection"] != first
    assert proxy.count("warmproxy_acquires_total", outcome="dialled") == 0


# -- closes, and their reasons ----------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(("how", "reason"), [("fin", "upstream_eof"), ("reset", "upstream_reset")])
def test_a_close_has_its_reason_and_a_successor(warmproxy, origin, scheme, how, reason) -> None:
    """A FIN and a reset on an idle connection are told apart, and each is made up for; only a
    reset is taken for a sign that the next one may be dead as well."""
    web = origin()
    url = f"{scheme}://{web.authority}"
    proxy = warmproxy("--warm", f"{url}=2")
    gone, stays = web.wait_open(2)
    getattr(gone, how)()
    eventually(lambda: closed(proxy, url, reason) == 1, says=proxy.pools)
    suspects = 1 if how == "reset" else 0
    eventually(lambda: closed(proxy, url, "suspect") == suspects, says=proxy.pools)
    assert (stays in web.wait_open(2)) is (how == "fin")
    assert proxy.pool(url)["last_close"]["reason"] == ("suspect" if suspects else reason)
    wait_warm(proxy, url, 2)
    assert proxy.count("warmproxy_closed_total") == 1 + suspects


def test_closed_and_replaced_within_100_ms(warmproxy, origin) -> None:
    """Idle connections that the upstream closed are closed by us, and their successors accepted,
    within 100 ms, and no look ever finds the same CLOSE_WAIT 100 ms later."""
    width = 8
    web = origin()
    proxy = warmproxy("--warm", f"{web.url}={width}")
    victims = web.wait_open(width)
    # What ends younger than that is the origin's whim, and replaced with more patience.
    eventually(lambda: proxy.pool(web.url)["oldest_age"] >= 0.7)
    with CloseWaitWatch(web.port) as watch:
        began = time.monotonic()
        for victim in victims:
            victim.fin()
        eventually(lambda: all(v.ended for v in victims), says=lambda: victims)
        eventually(lambda: len(web.connections) >= 2 * width, says=proxy.log)
        watch_until = watch.looks + 30
        eventually(lambda: watch.looks >= watch_until, 30)
    assert watch.lingered == {}
    closing = [v.eof_at - v.fin_at for v in victims]
    dialling = [c.opened_at - began for c in web.connections[width : 2 * width]]
    assert statistics.median(closing) < 0.1, closing
    assert statistics.median(dialling) < 0.1, dialling


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("order", ["request first", "close first"])
def test_a_close_that_the_loop_has_not_seen_is_caught_at_checkout(
    warmproxy, origin, method, order
) -> None:
    """Both the request and the FINs of all idle connections wait for a daemon that is stopped:
    when it goes on, the request is answered on a new connection and the origin sees it once."""
    web = origin()
    proxy = warmproxy("--warm", f"{web.url}=3")
    client = proxy.connect()
    try:
        assert fetch_on(client, f"{web.url}/before").status == 200
        wait_warm(proxy, web.url, 3)
        before = web.open_connections()
        body = b"once" if method == "POST" else None
        proxy.signal(signal.SIGSTOP)
        if order == "request first":
            client.request(method, f"{web.url}/after", body)
        for connection in before:
            connection.fin()
        eventually(lambda: count_sockets_to(web.port, "CLOSE_WAIT") == len(before))
        if order == "close first":
            client.request(method, f"{web.url}/after", body)
        proxy.signal(signal.SIGCONT)
        reply = read_reply(client)
    finally:
        client.close()
    assert reply.status == 200, reply
    assert [r.target for r in web.requests] == ["/before", "/after"]
    assert web.requests[1].connection not in before
    assert all(not c.late for c in before), "something was written to a closed connection"
    wait_warm(proxy, web.url, 3)


def test_tunnel_over_a_close_that_the_loop_has_not_seen(warmproxy, origin) -> None:
    """CONNECT gets a live connection where all idle ones died unseen; nothing of the client's
    goes to a dead one."""
    web = origin()
    proxy = warmproxy("--warm", f"https://{web.authority}=2")
    before = web.wait_open(2)
    client = proxy.raw()
    try:
        assert proxy.admin_status("/healthz") == 200
        proxy.signal(signal.SIGSTOP)
        head = f"CONNECT {web.authority} HTTP/1.1\r\nHost: {web.authority}\r\n\r\n"
        client.sendall(head.encode())
        for connection in before:
            connection.fin()
        eventually(lambda: count_sockets_to(web.port, "CLOSE_WAIT") == 2)
        proxy.signal(signal.SIGCONT)
        assert client.recv(4096).startswith(b"HTTP/1.1 200")
        client.sendall(b"GET /in HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 200 OK")
    finally:
        client.close()
    assert [r.target for r in web.requests] == ["/in"]
    assert web.requests[0].connection not in before
    assert all(not c.late for c in before)


# -- when dialling does not help --------------------------------------------------------------


def test_an_origin_that_is_down_is_dialled_seldom_and_logged_once(warmproxy, origin) -> None:
    """While an origin refuses, dials back off and one line tells of it, and in the end of how many;
    when it is back the pool is warm again, and requests in between get a 502 at once."""
    web = origin()
    upstream = {"url": web.url, "warm": 4, "backoff_max": 1.0}
    proxy = warmproxy(config={"upstream": [upstream]})
    web.wait_open(4)
    web.down()
    began = time.monotonic()

    def failed() -> float:
        return proxy.count("warmproxy_dials_total", result="refused")

    def few() -> bool:
        elapsed = time.monotonic() - began
        return failed() <= 12 + 4 * elapsed

    eventually(lambda: failed() >= 1, says=proxy.log)
    always(few, 3, lambda: f"{failed()} dials: {proxy.log()}")
    assert failed() >= 3, "it was to go on trying"
    assert told(proxy, web.url, "dial_failed", "failures")
    reply = proxy.fetch(f"{web.url}/")
    assert reply.status == 502
    assert "connection_refused" in (reply.headers["Proxy-Status"] or "")
    web.up()
    web.wait_open(4)
    assert proxy.fetch(f"{web.url}/").status == 200
    refused = failed()
    assert proxy.terminate() == 0
    lines = told(proxy, web.url, "dial_failed", "failures")
    assert max(line["failures"] for line in lines) <= times(lines) <= refused


def test_an_origin_that_hangs_up_on_accept_does_not_cause_a_storm(warmproxy, origin) -> None:
    """An origin that closes each connection at once: dials stay within the budget, and so does
    what the log says of it, which counts each pause; when it behaves again the pool returns to its
    target."""
    web = origin(hang_up=True)
    upstream = {"url": web.url, "warm": 4, "backoff_max": 1.0}
    proxy = warmproxy(config={"upstream": [upstream], "ready_timeout": 0.2})
    began = time.monotonic()
    eventually(lambda: len(web.connections) >= 4)

    def bounded() -> bool:
        # The default budget is 2 x warm a second, and a burst of as much.
        return len(web.connections) <= 16 + 8 * (time.monotonic() - began)

    always(bounded, 3, lambda: f"{len(web.connections)} connections: {proxy.log()}")
    assert told(proxy, web.url, "churning", "closes")
    web.hang_up = False
    web.wait_open(4)
    assert proxy.terminate() == 0
    lines = told(proxy, web.url, "churning", "closes")
    assert max(line["closes"] for line in lines) <= times(lines) <= len(web.connections)


def test_a_very_short_idle_limit_costs_no_more_dials_than_the_budget(warmproxy, origin) -> None:
    """An origin that closes idle connections after 0.6 s: they are kept warm all the same, with
    2 x warm dials a second at the most, and one line says what that costs."""
    warm = 10
    web = origin(idle_fresh=0.6)
    proxy = warmproxy("--warm", f"{web.url}={warm}")
    eventually(lambda: told(proxy, web.url, "churning", "dials_per_minute"), says=proxy.log)
    before, began = len(web.connections), time.monotonic()

    def bounded() -> bool:
        dials = len(web.connections) - before
        return dials <= 2 * warm * (time.monotonic() - began + 2)

    always(bounded, 5, lambda: f"{len(web.connections) - before} dials: {proxy.log()}")
    assert len(web.connections) - before > 2 * warm, "it was to be kept warm"
    eventually(lambda: len(web.idle_connections()) >= warm)
    assert times(told(proxy, web.url, "churning", "dials_per_minute")) == 1


def test_a_tls_origin_keeps_raw_connections_for_tunnels(warmproxy, origin, authority) -> None:
    """`https://h=N` holds N connections without any TLS on them, whose handshake is the client's
    own; an origin that resets them before it is made up for like any other."""
    web = origin(tls=authority.server, idle_fresh=0.5, idle_ends_in_reset=True)
    proxy = warmproxy("--warm", f"{web.url}=2")
    eventually(lambda: closed(proxy, web.url, "upstream_reset") >= 4, says=proxy.pools)
    with proxy.tls_tunnel(web.authority, authority.client) as tunnel:
        tunnel.sendall(b"GET /in HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert tunnel.recv(4096).startswith(b"HTTP/1.1 200 OK")
    assert [r.target for r in web.requests] == ["/in"]


def test_an_origin_that_accepts_late_has_warm_connections_too(warmproxy, origin) -> None:
    """Connections that the origin's kernel holds in its backlog count as warm, and a request sent
    on one of them is answered as soon as the origin accepts."""
    web = origin()
    web.pause_accepting()
    proxy = warmproxy("--warm", f"{web.url}=3")
    eventually(lambda: count_sockets_to(web.port, "ESTABLISHED") == 3)
    assert len(web.connections) <= 1
    client = proxy.connect()
    try:
        client.request("GET", f"{web.url}/late")
        eventually(lambda: proxy.pool(web.url)["active"] == 1)
        web.resume_accepting()
        assert read_reply(client).status == 200
    finally:
        client.close()
    assert [r.target for r in web.requests] == ["/late"]
    assert proxy.count("warmproxy_acquires_total", outcome="fresh") == 1
