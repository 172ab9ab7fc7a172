"""Requests over TLS that was finished before they came: what the origin sees of it.

The origins speak TLS by Python's ssl with a certificate of the tests' own authority, in TLS 1.2
and 1.3; nginx and Node are there as servers of the real kind.
"""

import contextlib
import json
import socket
import ssl
import threading
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.daemon import Warmproxy, fetch_on
from tests.e2e.harness import (
    Process,
    accepts,
    always,
    clean_environ,
    count_sockets_to,
    eventually,
    free_port,
    need,
)
from tests.e2e.origins import Connection, pattern, pattern_crc
from tests.e2e.servers import NginxServer
from tests.e2e.tls_origins import ALERT_IN_CLEAR, Pki, secure, shaken

MIB = 1 << 20
BOTH = pytest.mark.parametrize("version", ["1.2", "1.3"])


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


def start(
    warmproxy: Any,
    pki: Pki,
    url: str,
    tls: int = 2,
    warm: int = 0,
    ready: float = 10,
    **settings: Any,
) -> Warmproxy:
    """A daemon that holds `tls` finished connections to `url`, ready."""
    upstream = {"url": url, "warm": warm, "tls": tls, "ca_file": str(pki.file), **settings}
    return warmproxy(config={"learn_requests": 0, "ready_timeout": ready, "upstream": [upstream]})


def of(proxy: Warmproxy, url: str) -> dict[str, Any]:
    """The pool of finished connections as /pools shows it, {} where there is none."""
    return proxy.pools().get(url, {})


def settled(proxy: Warmproxy, url: str, idle: int) -> None:
    """Wait until so many finished connections are idle and none is on its way."""

    def there() -> bool:
        pool = of(proxy, url)
        return pool["fresh"] + pool["used"] >= idle and not pool["dialling"] + pool["active"]

    eventually(there, says=lambda: f"{proxy.pools()}\n{proxy.log()}")


def by_name(web: Any) -> str:
    """The origin's URL by its name, for SNI: an address has none."""
    return f"https://localhost:{web.port}"


# -- warm before the request ------------------------------------------------------------------


@BOTH
def test_requests_ride_on_handshakes_that_were_done_before(warmproxy, origin, pki, version) -> None:
    """TCP and TLS are finished before the first request, which arrives in origin-form over
    TLS >= 1.2 with SNI and ALPN http/1.1; the connection is kept and serves the next one."""
    web = origin(tls=pki.server(version=version))
    url = by_name(web)
    proxy = start(warmproxy, pki, url, tls=3)
    eventually(lambda: sum(map(shaken, web.connections)) == 3)
    before = time.monotonic()
    client = proxy.connect()
    for path in ("/one?q=1", "/two", "/three"):
        reply = fetch_on(client, url + path)
        assert (reply.status, reply.text) == (200, web.greeting)
    assert [r.target for r in web.requests] == ["/one?q=1", "/two", "/three"]
    assert [r.nth for r in web.requests] == [1, 2, 3]
    request = web.requests[0]
    assert request.values("host") == [f"localhost:{web.port}"]
    assert "warmproxy" in (request.header("via") or "")
    its = secure(request.connection)
    assert request.connection.opened_at < before
    assert its.handshake_at is not None
    assert its.handshake_at < before
    assert its.name == "localhost"
    assert its.selected_alpn_protocol() == "http/1.1"
    assert its.version() == f"TLSv{version}"
    pool = of(proxy, url)
    assert (pool["hits"], pool["misses"], pool["dials_failed"]) == (3, 0, 0)


def test_an_address_is_verified_as_one_and_has_no_sni(warmproxy, origin, pki) -> None:
    """https://127.0.0.1 is verified by the certificate's IP address (RFC 9110, 4.3.4) and sends no
    server name (RFC 6066, 3)."""
    web = origin(tls=pki.server())
    proxy = start(warmproxy, pki, web.url, tls=1)
    assert proxy.fetch(f"{web.url}/").text == web.greeting
    assert secure(web.requests[0].connection).name is None


@BOTH
def test_session_tickets_are_not_a_close(warmproxy, origin, pki, version) -> None:
    """What a server sends by itself after its handshake, TLS 1.3's tickets, costs no connection:
    the pool stays as it is, and each connection then serves."""
    web = origin(tls=pki.server(version=version))
    proxy = start(warmproxy, pki, web.url, tls=4)
    first = web.wait_open(4)
    always(lambda: web.open_connections() == first, 0.5, says=lambda: web.connections)
    pool = of(proxy, web.url)
    assert (pool["fresh"], pool["dials"], pool["closed"]) == (4, 4, {})
    for n in range(4):
        assert proxy.fetch(f"{web.url}/{n}").status == 200
    assert of(proxy, web.url)["closed"] == {}


def test_tunnels_and_requests_do_not_share(warmproxy, origin, pki) -> None:
    """`warm` and `tls` are two pools of one place: a tunnel takes a bare connection and a request
    a finished one, each warm."""
    web = origin(tls=pki.server())
    proxy = start(warmproxy, pki, web.url, tls=1, warm=1)
    web.wait_open(2)

    def hits() -> list[int]:
        return [proxy.pools()[f"{scheme}://{web.authority}"]["hits"] for scheme in ("tcp", "https")]

    context = ssl.create_default_context(cafile=str(pki.file))
    with proxy.tls_tunnel(web.authority, context) as tunnel:
        tunnel.sendall(b"GET /t HTTP/1.1\r\nHost: x\r\n\r\n")
        assert tunnel.recv(100).startswith(b"HTTP/1.1 200")
    assert hits() == [1, 0]
    assert proxy.fetch(f"{web.url}/t").status == 200
    assert hits() == [1, 1]


# -- idle connections end ---------------------------------------------------------------------

ENDS = {
    "close_notify": (lambda c: (secure(c).say_close_notify(), c.fin()), "upstream_eof"),
    "fin": (Connection.fin, "upstream_eof"),
    "rst": (lambda c: (secure(c).break_off(), c.reset()), "upstream_reset"),
    "alert": (lambda c: (secure(c).say_in_clear(ALERT_IN_CLEAR), c.fin()), "tls_alert"),
    "bytes": (lambda c: (c.say(b"HTTP/1.1 408 Too Late\r\n\r\n"), c.fin()), "unsolicited_data"),
}


@BOTH
def test_idle_connections_that_end_are_replaced(warmproxy, origin, pki, version) -> None:
    """However an origin ends an idle connection, it is counted under its reason and dialled
    again, no CLOSE_WAIT stays, and a request meets nothing of it."""
    web = origin(tls=pki.server(version=version))
    proxy = start(warmproxy, pki, web.url, tls=2)
    counted: Counter[str] = Counter()
    for how, (end, reason) in ENDS.items():
        first, second = eventually(lambda: two if len(two := idle(web)) == 2 else None)
        end(first)
        counted[reason] += 1
        if how == "rst":
            counted["suspect"] += 1  # the other one, at the same address
        total = counted.total()
        eventually(
            lambda total=total: sum(of(proxy, web.url)["closed"].values()) == total,
            says=proxy.pools,
        )
        settled(proxy, web.url, 2)
        pool = of(proxy, web.url)
        assert pool["closed"] == counted, how
        assert pool["last_close"]["reason"] == ("suspect" if how == "rst" else reason)
        assert (pool["dials"], pool["dials_failed"]) == (2 + total, 0)
        assert count_sockets_to(web.port, "CLOSE_WAIT") == 0
        eventually(lambda second=second, how=how: second.open is (how != "rst"))
    ended = [c for c in web.connections if not c.open]
    for n in range(2):
        reply = proxy.fetch(f"{web.url}/{n}", "POST", b"x")
        assert (reply.status, reply.text) == (200, web.greeting)
        assert web.requests[n].connection not in ended


def idle(web: Any) -> list[Connection]:
    """The origin's connections with a handshake and no end."""
    return [c for c in web.idle_connections() if shaken(c)]


def test_a_used_connection_that_ends_is_not_reused(warmproxy, origin, pki) -> None:
    """The same after a request: the next one goes elsewhere and is not lost."""
    web = origin(tls=pki.server(), idle_used=0.05)
    proxy = start(warmproxy, pki, web.url, tls=1)
    for n in range(3):
        assert proxy.fetch(f"{web.url}/{n}", "POST", b"x").text == web.greeting
        eventually(lambda n=n: sum(of(proxy, web.url)["closed"].values()) == n + 1)
    assert [r.nth for r in web.requests] == [1, 1, 1]


NGINX = """
  keepalive_timeout {keep};
  server {{
    listen 127.0.0.1:{port} ssl;
    ssl_certificate {chain};
    ssl_certificate_key {key};
    ssl_protocols {protocol};
    root {www};
    location /sink {{ client_max_body_size 0; return 204; }}
  }}
"""


def tls_nginx(nginx_server: Any, pki: Pki, home: Any, protocol: str, keep: str) -> tuple[Any, str]:
    """A real nginx that speaks TLS beside its plain port, and its https URL."""
    chain, key = pki.files("nginx")
    port = free_port()
    www = home("www")
    (www / "hello.txt").write_text("hello over TLS\n")
    server: NginxServer = nginx_server(
        NGINX.format(port=port, chain=chain, key=key, protocol=protocol, www=www, keep=keep)
    )
    server.until(lambda: accepts(port))
    return server, f"https://localhost:{port}"


@pytest.mark.parametrize("protocol", ["TLSv1.2", "TLSv1.3"])
def test_nginx(warmproxy, nginx_server, home, pki, protocol) -> None:
    """nginx as it is by default: its finished connections stay, serve and are kept."""
    server, url = tls_nginx(nginx_server, pki, home, protocol, "75s")
    proxy = start(warmproxy, pki, url, tls=2)
    client = proxy.connect()
    for _ in range(3):
        assert fetch_on(client, f"{url}/hello.txt").text == "hello over TLS\n"
    seen = eventually(lambda: rows if len(rows := server.seen()) == 3 else None)
    assert [nth for _, nth, *_ in seen] == [1, 2, 3]
    pool = of(proxy, url)
    assert (pool["hits"], pool["misses"], pool["closed"]) == (3, 0, {})


def test_nginx_closes_idle_connections(warmproxy, nginx_server, home, pki) -> None:
    """nginx with an idle limit of 1 s, which it ends used connections by: noticed as an orderly
    end, replaced, and no request is lost to it."""
    _, url = tls_nginx(nginx_server, pki, home, "TLSv1.3", "1s")
    proxy = start(warmproxy, pki, url, tls=2)
    assert proxy.fetch(f"{url}/hello.txt").status == 200
    eventually(lambda: of(proxy, url)["closed"], says=proxy.pools)
    settled(proxy, url, 2)
    assert of(proxy, url)["closed"] == {"upstream_eof": 1}
    assert proxy.fetch(f"{url}/hello.txt", "GET").text == "hello over TLS\n"
    assert proxy.count("warmproxy_requests_total", code_class="2xx") == 2


NODE_TLS = """
const https = require('https'), fs = require('fs');
const options = {cert: fs.readFileSync(process.argv[2]), key: fs.readFileSync(process.argv[3])};
let connections = 0;
const log = (event) => process.stdout.write(JSON.stringify(event) + '\\n');
const server = https.createServer(options, (request, response) => {
  log({event: 'request', connection: request.socket.number});
  response.end('hello from node');
});
server.on('secureConnection', (socket) => {
  socket.number = ++connections;
  log({event: 'shaken', connection: socket.number, alpn: socket.alpnProtocol});
});
server.listen(Number(process.argv[1]), '127.0.0.1', () => log({event: 'listening'}));
"""


def test_node_with_its_defaults(warmproxy, stack, home, pki) -> None:
    """Node's https server as it is: connections are shaken before the request, and a used one is
    replaced before the end that Node announces (5 s)."""
    chain, key = pki.files("node")
    port = free_port()
    folder = home("node")
    node = Process(
        [need("node"), "-e", NODE_TLS, str(port), str(chain), str(key)],
        folder / "log",
        folder,
        clean_environ(),
    )
    stack.callback(node.stop)
    node.until(lambda: node.log_lines("listening"))
    url = f"https://localhost:{port}"
    proxy = start(warmproxy, pki, url, tls=2)
    assert proxy.fetch(f"{url}/").text == "hello from node"
    kinds = [json.loads(line)["event"] for line in node.log_lines("{")]
    assert kinds[:4] == ["listening", "shaken", "shaken", "request"]
    assert '"alpn":"http/1.1"' in node.log_lines("shaken")[0]
    eventually(lambda: of(proxy, url)["closed"], 9, says=proxy.pools)
    settled(proxy, url, 2)
    assert set(of(proxy, url)["closed"]) == {"idle_limit"}
    assert proxy.fetch(f"{url}/", "POST", b"again").text == "hello from node"


# -- client certificates ----------------------------------------------------------------------


@BOTH
def test_a_client_certificate_is_shown(warmproxy, origin, pki, version) -> None:
    """An origin that demands a client certificate gets the one that is configured for it."""
    web = origin(tls=pki.server(version=version, client_ca=pki.ca))
    cert, key = pki.files("me", pki.issue("me@example.com", common_name="me"))
    proxy = start(
        warmproxy, pki, web.url, tls=1, client_cert=str(cert), client_key=str(key), warm=0
    )
    assert proxy.fetch(f"{web.url}/").text == web.greeting
    subject = secure(web.requests[0].connection).getpeercert()["subject"]
    assert (("commonName", "me"),) in subject


@pytest.mark.parametrize("tls", [0, 1])
@BOTH
def test_without_its_client_certificate(warmproxy, origin, pki, version, tls) -> None:
    """Without one the request is answered 502 as a TLS error, although TLS 1.3 lets a client think
    the handshake is done before the server refuses it; no request arrives."""
    web = origin(tls=pki.server(version=version, client_ca=pki.ca))
    proxy = start(warmproxy, pki, web.url, tls=tls, ready=0, backoff_max=0.2)
    for method in ("GET", "POST"):
        reply = proxy.fetch(f"{web.url}/", method)
        assert reply.status == 502
        assert "error=tls_" in reply.headers["Proxy-Status"], reply.headers["Proxy-Status"]
    assert web.requests == []


# -- resumption, and TLS on a warm TCP connection ---------------------------------------------


@BOTH
def test_dials_beyond_the_pool_resume(warmproxy, origin, pki, version) -> None:
    """Once a connection has served, later handshakes with the origin resume its session."""
    web = origin(tls=pki.server(version=version))
    url = by_name(web)
    proxy = start(warmproxy, pki, url, tls=1)
    assert proxy.fetch(f"{url}/").status == 200
    assert not secure(web.requests[0].connection).session_reused
    settled(proxy, url, 2)
    known = len(web.connections)
    holders = [threading.Thread(target=proxy.fetch, args=(f"{url}/hold",)) for _ in range(4)]
    for holder in holders:
        holder.start()
    web.wait_requests(5)
    web.gate.set()
    for holder in holders:
        holder.join(10)
    later = [c for c in web.connections[known:] if shaken(c)]
    assert later
    assert all(secure(c).session_reused for c in later)
    assert all(secure(c).name == "localhost" for c in later)


@BOTH
def test_tls_begins_on_a_warm_tcp_connection(warmproxy, origin, pki, version) -> None:
    """When no finished connection is there, a request's TLS begins on a bare one that is: accepted
    before the request, shaken after it, counted under `secured`, and replaced."""
    web = origin(tls=pki.server(version=version))
    proxy = start(warmproxy, pki, web.url, tls=0, warm=2)
    web.wait_open(2)
    before = time.monotonic()
    assert proxy.fetch(f"{web.url}/").text == web.greeting
    connection = web.requests[0].connection
    assert connection.opened_at < before
    at = secure(connection).handshake_at
    assert at is not None
    assert before < at < web.requests[0].at
    raw = f"tcp://{web.authority}"
    eventually(lambda: proxy.pools()[raw]["fresh"] == 2, says=proxy.pools)
    assert proxy.pools()[raw]["closed"] == {"secured": 1}
    assert proxy.count("warmproxy_dial_seconds_sum", origin=raw, phase="tls") == 0
    assert of(proxy, web.url)["dials"] == 1
    # it is a connection like any other from here on
    assert proxy.fetch(f"{web.url}/").text == web.greeting
    assert web.requests[1].connection is connection


def test_many_begin_at_once_on_warm_tcp(warmproxy, origin, pki) -> None:
    """A burst takes the finished connections first, then the bare ones, then dials; all are
    answered and nothing is counted twice."""
    web = origin(tls=pki.server())
    proxy = start(warmproxy, pki, web.url, tls=2, warm=3)
    web.wait_open(5)
    replies: list[str] = []

    def ask() -> None:
        replies.append(proxy.fetch(f"{web.url}/hold").text)

    askers = [threading.Thread(target=ask) for _ in range(8)]
    for asker in askers:
        asker.start()
    web.wait_requests(8)
    web.gate.set()
    for asker in askers:
        asker.join(10)
    assert replies == [web.greeting] * 8
    assert len({r.connection for r in web.requests}) == 8
    assert all(r.connection in web.requests[0].connection.origin.connections for r in web.requests)
    raw = f"tcp://{web.authority}"
    assert proxy.pools()[raw]["closed"]["secured"] >= 1
    eventually(lambda: proxy.pools()[raw]["fresh"] == 3, says=proxy.pools)
    assert {p["active"] for p in proxy.pools().values()} == {0}


# -- bodies -----------------------------------------------------------------------------------


def test_bodies_of_every_framing(warmproxy, origin, pki) -> None:
    """A body by length, one in chunks, none at all, and HEAD, on one client connection each way."""
    web = origin(tls=pki.server())
    proxy = start(warmproxy, pki, web.url, tls=1)
    client = proxy.connect()
    assert fetch_on(client, f"{web.url}/echo", "POST", b"by length").body == b"by length"
    client.request(
        "PUT", f"{web.url}/echo", iter([b"in ", b"chunks"]), {"X": "y"}, encode_chunked=True
    )
    with client.getresponse() as response:
        assert response.read() == b"in chunks"
    head = fetch_on(client, f"{web.url}/", "HEAD")
    assert (head.status, head.body) == (200, b"")
    assert fetch_on(client, f"{web.url}/").text == web.greeting
    assert [r.method for r in web.requests] == ["POST", "PUT", "HEAD", "GET"]
    assert [r.nth for r in web.requests] == [1, 2, 3, 4]
    assert web.requests[1].values("transfer-encoding") == ["chunked"]


SIZE = 100 * MIB


def test_100_mb_down(warmproxy, origin, pki) -> None:
    """100 MiB reach a client that is slower than the origin, in order, in flat memory."""
    web = origin(tls=pki.server())
    proxy = start(warmproxy, pki, web.url, tls=1)
    proxy.fetch(f"{web.url}/bytes/{4 * MIB}")
    proxy.memory.mark()
    with proxy.raw() as sock:
        sock.sendall(f"GET {web.url}/bytes/{SIZE} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert read_head(sock).startswith(b"HTTP/1.1 200")
        got = crc = 0
        while got < SIZE:
            data = sock.recv(1 << 17)
            assert data, f"ended after {got}"
            got += len(data)
            crc = zlib.crc32(data, crc)
    assert crc == pattern_crc(SIZE)
    assert proxy.memory.growth < 20 * MIB


def test_100_mb_up(warmproxy, origin, pki) -> None:
    """100 MiB reach an origin that stops reading twice, in order; the client is held back then and
    the memory stays flat."""
    web = origin(tls=pki.server())
    web.reader_marks = (MIB, 50 * MIB)
    sent = 0
    web.reader_waits_for = lambda: sent
    proxy = start(warmproxy, pki, web.url, tls=1)
    proxy.fetch(f"{web.url}/echo", "POST", b"x" * MIB)
    proxy.memory.mark()
    with proxy.raw() as sock:
        sock.sendall(
            f"POST {web.url}/sink HTTP/1.1\r\nHost: x\r\nContent-Length: {SIZE}\r\n\r\n".encode()
        )
        for block in pattern(SIZE):
            sock.sendall(block)
            sent += len(block)
        assert read_head(sock).startswith(b"HTTP/1.1 200")
    request = web.requests[-1]
    assert (request.body_length, request.body_crc) == (SIZE, pattern_crc(SIZE))
    assert proxy.memory.growth < 20 * MIB


# -- cut short (RFC 9112, 9.8) ----------------------------------------------------------------


def until_close(connection: Connection, request: Any) -> None:
    """An answer without a length, ended by close_notify for /whole and else by a bare FIN."""
    connection.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\npart of it")
    if request.target == "/whole":
        secure(connection).say_close_notify()
    connection.fin()


@BOTH
def test_row_47_a_body_without_a_length(warmproxy, origin, pki, version) -> None:
    """Row 47: only close_notify ends a body that has no length; a bare FIN may be somebody who cuts
    it, and the client gets a reset or an unfinished chunk stream, never a whole answer."""
    web = origin(until_close, tls=pki.server(version=version))
    proxy = start(warmproxy, pki, web.url, tls=1)
    for http in ("1.1", "1.0"):
        for target in ("whole", "cut"):
            got, reset = b"", False
            with proxy.raw() as sock:
                sock.sendall(f"GET {web.url}/{target} HTTP/{http}\r\nHost: x\r\n\r\n".encode())
                try:
                    while data := sock.recv(1 << 16):
                        got += data
                except ConnectionResetError:
                    reset = True
            head, _, body = got.partition(b"\r\n\r\n")
            whole = body.endswith(b"0\r\n\r\n") if b"chunked" in head else not reset
            assert whole is (target == "whole"), (http, target, got, reset)
            if whole:
                assert b"part of it" in body


def test_row_47_a_body_with_a_length_that_is_cut(warmproxy, origin, pki) -> None:
    """Row 47: fewer bytes than Content-Length said reach the client as fewer, with an end."""

    def cut(connection: Connection, request: Any) -> None:
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this")
        connection.fin()

    web = origin(cut, tls=pki.server())
    proxy = start(warmproxy, pki, web.url, tls=1)
    with proxy.raw() as sock:
        sock.sendall(f"GET {web.url}/ HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        got = b""
        with contextlib.suppress(ConnectionResetError):
            while data := sock.recv(1 << 16):
                got += data
    assert got.partition(b"\r\n\r\n")[2] == b"only this"


def test_row_47_our_end_is_orderly(warmproxy, origin, pki) -> None:
    """Row 47: a connection that we end gets a close_notify before its FIN."""
    web = origin(tls=pki.server())
    proxy = start(warmproxy, pki, web.url, tls=1)
    eventually(lambda: any(map(shaken, web.connections)))
    its = secure(web.connections[0])
    its.suppress_ragged_eofs = False
    ends: list[object] = []
    receive = its.recv

    def note(buflen: int = 1024, flags: int = 0) -> bytes:
        try:
            data = receive(buflen, flags)
        except ssl.SSLError as error:
            ends.append(error)
            raise
        ends.append(data)
        return data

    its.recv = note  # type: ignore[method-assign]
    assert proxy.fetch(f"{web.url}/").status == 200
    assert proxy.terminate() == 0
    eventually(lambda: ends and not (isinstance(ends[-1], bytes) and ends[-1]))
    assert ends[-1] == b"", ends


# -- other protocols --------------------------------------------------------------------------


def read_head(sock: socket.socket) -> bytes:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        data = sock.recv(1)
        assert data, head
        head += data
    return head


def switching(connection: Connection, request: Any) -> None:
    """Answer 101 and send everything back in upper case until the peer's end, then say bye."""
    upgrade = request.header("upgrade")
    head = f"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {upgrade}\r\n"
    connection.send(head.encode() + b"\r\nhi ")
    while data := connection.receive():
        if data == b"end":
            break
        connection.send(data.upper())
    connection.send(b"bye")
    secure(connection).say_close_notify()
    connection.fin()


@BOTH
def test_an_upgrade_by_whole_url(warmproxy, origin, pki, version) -> None:
    """`Upgrade` on https:// or wss:// in absolute-form: 101 over warm TLS, then bytes both ways,
    and the upstream's end reaches the client after its last bytes."""
    web = origin(switching, tls=pki.server(version=version))
    proxy = start(warmproxy, pki, web.url, tls=2)
    for scheme in ("https", "wss"):
        with proxy.raw() as sock, sock.makefile("rb") as talk:
            sock.sendall(
                f"GET {scheme}://{web.authority}/chat HTTP/1.1\r\nHost: {web.authority}\r\n"
                "Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n".encode()
            )
            assert read_head(sock).startswith(b"HTTP/1.1 101")
            assert talk.read(3) == b"hi "
            for word in (b"one", b"two"):
                sock.sendall(word)
                assert talk.read(3) == word.upper()
            sock.sendall(b"end")
            assert talk.read() == b"bye"
    pool = of(proxy, web.url)
    assert (pool["hits"], pool["misses"]) == (2, 0)
    eventually(lambda: sum(of(proxy, web.url)["closed"].values()) == 2, says=proxy.pools)


def test_a_half_close_ends_a_tls_upstream(warmproxy, origin, pki) -> None:
    """TLS knows no half-close here: a client's FIN behind a 101 ends the upstream's connection too,
    after all that the client sent, and the client sees an end."""
    heard = bytearray()
    over = threading.Event()

    def listening(connection: Connection, request: Any) -> None:
        connection.send(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"
        )
        while data := connection.receive():
            heard.extend(data)
        secure(connection).say_close_notify()
        connection.fin()
        over.set()

    web = origin(listening, tls=pki.server())
    proxy = start(warmproxy, pki, web.url, tls=1)
    with proxy.raw() as sock:
        asked = "HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"
        sock.sendall(f"GET {web.url}/ {asked}".encode())
        assert read_head(sock).startswith(b"HTTP/1.1 101")
        sock.sendall(b"last words" * 10_000)
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(10) == b""
    assert over.wait(10)
    assert bytes(heard) == b"last words" * 10_000
    eventually(lambda: proxy.count("warmproxy_tunnels") == 0)


# -- memory --------------------------------------------------------------------------------------


def test_memory_of_idle_tls(warmproxy, nginx_server, home, pki) -> None:
    """Idle TLS connections take at most 50 KiB each; benchmarks/tls_memory.py has 1,000."""
    _, url = tls_nginx(nginx_server, pki, home, "TLSv1.3", "75s")
    few = start(warmproxy, pki, url, tls=1)
    many = 201  # nginx has 256 connections here
    proxy = start(warmproxy, pki, url, tls=many, max_connections=many)
    settled(proxy, url, many)
    each = (rss(proxy.pid) - rss(few.pid)) / (many - 1)
    # with so few of them the allocator shows: 44 to 51 were seen, on a busy machine
    assert each < 55, f"{each:.1f} KiB"


def rss(pid: int) -> int:
    """KiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError
