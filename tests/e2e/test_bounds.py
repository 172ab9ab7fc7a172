"""Each limit and timeout of the settings, against the whole daemon.

Timeouts are looked for once a second, so each may come up to a second late and never early.
"""

import contextlib
import http.client
import json
import resource
import selectors
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.daemon import Reply, command, fetch_on, read_reply, wait_warm
from tests.e2e.harness import (
    always,
    at,
    eventually,
    missing,
    until_still,
)
from tests.e2e.netns import run_inside
from tests.e2e.test_limits import own_answer

LATE = 3.0
"""Seconds that a timeout may come late: the sweep's second, and a busy machine."""


def reply_on(sock: socket.socket) -> Reply:
    """The next response on a bare socket."""
    with http.client.HTTPResponse(sock) as response:
        response.begin()
        return Reply(response.status, response.headers, response.read())


def connected(sock: socket.socket, authority: str) -> bool:
    """Ask for a tunnel: whether the answer is a 200; a 503 is read to its end."""
    sock.sendall(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode())
    if sock.recv(12, socket.MSG_PEEK | socket.MSG_WAITALL) != b"HTTP/1.1 200":
        own_answer(reply_on(sock), 503, "connection_limit_reached")
        return False
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += sock.recv(1)
    return True


def ended(sock: socket.socket) -> bool:
    """Whether the peer has ended the connection, cleanly or not; waits for it."""
    try:
        while sock.recv(1 << 16):
            pass
    except ConnectionError:
        pass
    except TimeoutError:
        return False
    return True


def clients(proxy) -> float:
    return proxy.count("warmproxy_clients")


def events(proxy, name: str) -> list[dict]:
    """The log's lines of that name."""
    lines = [json.loads(line) for line in proxy.log().splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == name]


def trickle(sock: socket.socket, data: bytes, until: Callable[[], bool]) -> bool:
    """Send one byte of `data` at a time until `until` says so; whether the peer took them all."""
    rest = list(data)

    def step() -> bool:
        if until() or not rest:
            return True
        sock.sendall(bytes([rest.pop(0)]))
        return False

    with contextlib.suppress(ConnectionError):
        eventually(step, 10)
    return not rest


def readable(sock: socket.socket) -> bool:
    with selectors.DefaultSelector() as selector:
        selector.register(sock, selectors.EVENT_READ)
        return bool(selector.select(0))


# -- heads ------------------------------------------------------------------------------------


@pytest.mark.parametrize("trickled", [False, True])
def test_max_head(warmproxy, origin, trickled) -> None:
    """A head of max_head bytes passes; one byte more is a 431, or a 414 where the request line is
    too long by itself, and nothing is forwarded."""
    web = origin()
    proxy = warmproxy(config={"max_head": 8192})
    start = f"GET {web.url}/in HTTP/1.1\r\nHost: {web.authority}\r\nX-Long: ".encode()
    target = f"GET {web.url}/".encode()
    for size, status in ((8192, 200), (8193, 431), (100_000, 431)):
        head = start + b"x" * (size - len(start) - 4) + b"\r\n\r\n"
        assert len(head) == size
        _send_head(proxy, head, status, trickled)
    for size in (8193, 100_000):
        line = target + b"x" * (size - len(target))
        _send_head(proxy, line + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414, trickled)
    assert [r.target for r in web.requests] == ["/in"]


def _send_head(proxy, head: bytes, status: int, trickled: bool) -> None:
    with proxy.raw() as sock:
        with contextlib.suppress(ConnectionError):
            for piece in (head[:5000], head[5000:]) if trickled else (head,):
                sock.sendall(piece)
                if trickled and piece is head[:5000]:
                    always(lambda: not readable(sock), 0.02)
        reply = reply_on(sock)
        assert (reply.status, len(head)) == (status, len(head))
        if status != 200:
            own_answer(reply, status, "http_request_error")
            assert ended(sock)


def test_max_head_of_an_answer(warmproxy, origin) -> None:
    """An upstream whose answer's head is longer than max_head: a 502, and its connection goes."""

    def answer(connection, request) -> None:
        connection.send(b"HTTP/1.1 200 OK\r\n")
        for _ in range(9):
            connection.send(b"X-Long: " + b"x" * 1000 + b"\r\n")
        connection.send(b"Content-Length: 0\r\n\r\n")

    web = origin(answer)
    proxy = warmproxy(config={"max_head": 8192, "learn_requests": 0})
    own_answer(proxy.fetch(f"{web.url}/"), 502, "http_protocol_error")
    web.wait_open(0)


def test_head_timeout(warmproxy, origin) -> None:
    """A head that comes byte by byte is a 408 after head_timeout, counted from its first byte;
    the next request on a connection gets the whole time again."""
    web = origin()
    proxy = warmproxy(config={"head_timeout": 1.0})
    head = f"GET {web.url}/slow HTTP/1.1\r\nHost: {web.authority}\r\n".encode()
    slow = head + b"X-Slow: " + b"x" * 4000
    with proxy.raw() as sock:
        began = time.monotonic()
        assert not trickle(sock, slow, lambda: readable(sock))
        took = time.monotonic() - began
        reply = reply_on(sock)
        own_answer(reply, 408, "http_request_error")
        assert "head_timeout" in reply.text
        assert 1.0 <= took < 1.0 + LATE
        assert ended(sock)
    with proxy.raw() as sock:
        for _ in range(2):
            always(lambda: not readable(sock), 0.4)  # idle time is no head's time
            sock.sendall(head)
            always(lambda: not readable(sock), 0.4)
            sock.sendall(b"\r\n")
            reply = reply_on(sock)
            assert (reply.status, reply.text) == (200, web.greeting)
    assert [r.target for r in web.requests] == ["/slow"] * 2


def test_client_idle_timeout(warmproxy, origin) -> None:
    """A client connection without a request is closed after client_idle_timeout, a new one and
    one that had its answer; one whose answer takes longer is not idle."""
    web = origin()
    proxy = warmproxy(config={"client_idle_timeout": 0.7})
    with proxy.raw() as new, proxy.raw() as served, proxy.raw() as busy:
        began = time.monotonic()
        busy.sendall(f"GET {web.url}/hold HTTP/1.1\r\nHost: {web.authority}\r\n\r\n".encode())
        served.sendall(f"GET {web.url}/ HTTP/1.1\r\nHost: {web.authority}\r\n\r\n".encode())
        assert reply_on(served).text == web.greeting
        for sock in (new, served):
            assert sock.recv(100) == b""
            assert 0.7 <= time.monotonic() - began < 0.7 + LATE
        assert not readable(busy)
        web.gate.set()
        assert reply_on(busy).text == web.greeting
    eventually(lambda: clients(proxy) == 0)


def test_empty_lines_do_not_keep_a_client(warmproxy) -> None:
    """Empty lines before a request are no request: who sends nothing else is idle."""
    proxy = warmproxy(config={"client_idle_timeout": 1.0, "head_timeout": 1.0})
    with proxy.raw() as sock:
        began = time.monotonic()
        assert not trickle(sock, b"\r\n" * 4000, lambda: readable(sock))
        assert time.monotonic() - began < 1.0 + LATE
        assert ended(sock)


# -- dials and answers ------------------------------------------------------------------------


def test_dial_timeout_of_one_upstream(warmproxy, origin, blackhole) -> None:
    """dial_timeout is each upstream's own: 504 after it, while others are served."""
    web = origin()
    upstream = {"url": blackhole.url, "warm": 0, "dial_timeout": 0.4}
    proxy = warmproxy(config={"upstream": [upstream], "defaults": {"dial_timeout": 30}})
    with ThreadPoolExecutor(1) as threads:
        began = time.monotonic()
        silent = threads.submit(proxy.fetch, f"{blackhole.url}/")
        assert proxy.fetch(f"{web.url}/").status == 200
        own_answer(silent.result(), 504, "connection_timeout")
        assert 0.4 <= time.monotonic() - began < 3


def test_response_timeout_runs_from_the_end_of_the_request(warmproxy, origin) -> None:
    """A body that takes longer than response_timeout is no reason for a 504; a silence after it
    is. The connection is closed, the client's is kept."""
    web = origin()
    config = {"defaults": {"response_timeout": 0.7}}
    proxy = warmproxy(config=config)
    with proxy.raw() as sock:
        head = f"PUT {web.url}/hold HTTP/1.1\r\nHost: {web.authority}\r\nContent-Length: 3\r\n\r\n"
        sock.sendall(head.encode())
        for byte in (b"1", b"2"):
            always(lambda: not readable(sock), 0.5)
            sock.sendall(byte)
        began = time.monotonic()
        sock.sendall(b"3")
        own_answer(reply_on(sock), 504, "http_response_timeout")
        assert 0.7 <= time.monotonic() - began < 0.7 + LATE
        web.gate.set()
        sock.sendall(f"GET {web.url}/ HTTP/1.1\r\nHost: {web.authority}\r\n\r\n".encode())
        assert reply_on(sock).status == 200
    eventually(lambda: web.requests[0].connection.ended)


# -- stalls -----------------------------------------------------------------------------------


STALL = {"learn_requests": 0, "defaults": {"stall_timeout": 1.0}}


def test_a_client_that_stalls_in_its_body(warmproxy, origin) -> None:
    """A request's body without a byte for stall_timeout is a 408; the upstream's connection is
    cut, so that the half body does not look whole. One that trickles is let be."""
    web = origin()
    proxy = warmproxy(config=STALL)
    head = f"PUT {web.url}/echo HTTP/1.1\r\nHost: {web.authority}\r\nContent-Length: 9\r\n\r\n"
    with proxy.raw() as sock:
        sock.sendall(head.encode() + b"half")
        began = time.monotonic()
        reply = reply_on(sock)
        assert 1.0 <= time.monotonic() - began < 1.0 + LATE
        own_answer(reply, 408, "http_request_error")
        assert "stall_timeout" in reply.text
        assert ended(sock)
    eventually(lambda: web.requests[0].connection.ended)
    assert web.requests[0].body_length < 9
    with proxy.raw() as sock:
        sock.sendall(head.encode())
        for n in range(9):
            always(lambda: not readable(sock), 0.15)
            sock.sendall(b"%d" % n)
        assert reply_on(sock).body == b"012345678"


@pytest.mark.parametrize("framing", ["Content-Length: 9", "Transfer-Encoding: chunked", ""])
def test_an_upstream_that_stalls_in_its_answer(warmproxy, origin, framing) -> None:
    """A response's body without a byte for stall_timeout reaches the client as cut short,
    whatever its framing."""

    def answer(connection, request) -> None:
        head = f"HTTP/1.1 200 OK\r\n{framing}\r\n" if framing else "HTTP/1.1 200 OK\r\n"
        connection.send(
            head.encode() + b"\r\n" + (b"4\r\nhalf\r\n" if "chunk" in framing else b"half")
        )
        connection.origin.gate.wait(30)

    web = origin(answer)
    proxy = warmproxy(config=STALL)
    with proxy.raw() as sock:
        sock.sendall(f"GET {web.url}/ HTTP/1.1\r\nHost: {web.authority}\r\n\r\n".encode())
        began = time.monotonic()
        with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
            reply_on(sock)
        assert 1.0 <= time.monotonic() - began < 1.0 + LATE
    assert proxy.pool(web.url)["active"] == 0


def test_a_client_that_does_not_read(warmproxy, origin) -> None:
    """A client that leaves its answer unread costs a bounded time: after stall_timeout both its
    connection and the upstream's are gone."""
    web = origin()
    proxy = warmproxy(config=STALL)
    with _unread(proxy, f"{web.url}/bytes/{1 << 30}"):
        used = web.wait_requests(1)[0].connection
        until_still(lambda: used.sent)
        eventually(lambda: used.ended, 1.0 + LATE, lambda: used)
        assert proxy.pool(web.url)["active"] == 0
        eventually(lambda: clients(proxy) == 0, 1.0 + LATE, proxy.log)


def test_a_client_that_does_not_read_the_end(warmproxy, origin) -> None:
    """The same where the upstream is done with its answer, and the rest of it is in the proxy: of
    answers as long as the kernel's buffers and a little more, none keeps its client for ever."""
    web = origin()
    proxy = warmproxy(config={**STALL, "client_idle_timeout": 1.0})
    sizes = range(1 << 20, 5 << 20, 1 << 17)  # the buffer that the proxy keeps is 1 << 18
    with contextlib.ExitStack() as stack:
        for size in sizes:
            stack.enter_context(_unread(proxy, f"{web.url}/bytes/{size}"))
        web.wait_requests(len(sizes))
        eventually(lambda: clients(proxy) == 0, 3.0 + LATE, lambda: clients(proxy))
        assert proxy.pool(web.url)["active"] == 0


def test_a_slow_reader_is_no_stalled_one(warmproxy, origin) -> None:
    """A client that takes its answer slowly, over several times stall_timeout, gets all of it."""
    web = origin()
    proxy = warmproxy(config=STALL)
    size = 4 << 20
    with proxy.raw() as sock:
        sock.sendall(f"GET {web.url}/bytes/{size} HTTP/1.0\r\nHost: x\r\n\r\n".encode())
        began, got = time.monotonic(), 0
        while data := sock.recv(1 << 17):
            got += len(data)
            at(began + got / (2 << 20))
        assert got > size
    assert time.monotonic() - began > 1.9


def test_a_client_that_goes_on_sending_after_its_last_answer(warmproxy, origin) -> None:
    """A client whose request was refused has a moment to read why, and no longer, however long it
    goes on sending."""
    web = origin()
    proxy = warmproxy()
    with proxy.raw() as sock:
        sock.sendall(f"PUT {web.url}/ HTTP/1.1\r\nHost: x\r\nContent-Length: no\r\n\r\n".encode())
        own_answer(reply_on(sock), 400, "http_request_error")
        assert not trickle(sock, bytes(4000), lambda: False)
    eventually(lambda: clients(proxy) == 0)


@contextlib.contextmanager
def _unread(proxy, url: str) -> Iterator[socket.socket]:
    """A client that asks for something and reads not a byte of it."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", proxy.port))
        sock.sendall(f"GET {url} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        yield sock


def test_an_upstream_that_does_not_read(warmproxy, origin) -> None:
    """An upstream that takes no more of a request's body is given up after stall_timeout: a 504,
    as the client is not to blame."""
    web = origin(lambda connection, request: connection.origin.gate.wait(30) and None)
    proxy = warmproxy(config=STALL)
    with proxy.raw() as sock:
        size = 1 << 30
        head = f"PUT {web.url}/ HTTP/1.1\r\nHost: {web.authority}\r\nContent-Length: {size}\r\n\r\n"
        sock.sendall(head.encode())
        sent = [0]

        def send() -> None:
            with contextlib.suppress(OSError):
                while True:
                    sent[0] += sock.send(bytes(1 << 16))

        thread = threading.Thread(target=send, daemon=True)
        thread.start()
        until_still(lambda: sent[0])
        own_answer(reply_on(sock), 504, "http_response_timeout")
        assert ended(sock)
        thread.join()
    web.gate.set()
    eventually(lambda: clients(proxy) == 0)
    assert proxy.pool(web.url)["active"] == 0


# -- how many ---------------------------------------------------------------------------------


def test_max_clients(warmproxy, origin) -> None:
    """At max_clients accepting pauses: those beyond it wait, are not refused, and are served as
    soon as others have gone; one line says so, another that it is over."""
    web = origin()
    proxy = warmproxy(config={"max_clients": 10})
    with contextlib.ExitStack() as stack:
        first = [stack.enter_context(proxy.raw()) for _ in range(10)]
        eventually(lambda: clients(proxy) == 10)
        later = [stack.enter_context(proxy.raw()) for _ in range(5)]
        request = f"GET {web.url}/ HTTP/1.1\r\nHost: {web.authority}\r\n\r\n".encode()
        for sock in [*first, *later]:
            sock.sendall(request)
        assert [reply_on(sock).status for sock in first] == [200] * 10
        always(lambda: not any(map(readable, later)), 1.2)
        assert clients(proxy) == 10
        assert proxy.admin_status("/healthz") == 200
        for sock in first[:7]:
            sock.close()
        assert [reply_on(sock).status for sock in later] == [200] * 5
        eventually(lambda: clients(proxy) == 8)
    eventually(lambda: clients(proxy) == 0)
    assert proxy.fetch(f"{web.url}/").status == 200
    eventually(lambda: events(proxy, "accept_resumed"))
    (paused,) = events(proxy, "accept_paused")
    assert (paused["clients"], paused["shed"]) == (10, 0)
    assert len(events(proxy, "accept_resumed")) == 1


def test_max_waiting_of_each_upstream(warmproxy, origin) -> None:
    """max_waiting is each upstream's own, and 0 means that nobody waits."""
    web, other = origin(), origin()
    upstream = {"url": web.url, "warm": 1, "max_connections": 1, "max_waiting": 0}
    proxy = warmproxy(config={"upstream": [upstream]})
    with ThreadPoolExecutor(1) as threads:
        held = threads.submit(proxy.fetch, f"{web.url}/hold")
        web.wait_requests(1)
        reply = proxy.fetch(f"{web.url}/refused")
        own_answer(reply, 503, "connection_limit_reached")
        assert reply.headers["Retry-After"] == "1"
        assert "max_waiting" in reply.text
        assert proxy.fetch(f"{other.url}/").status == 200
        web.gate.set()
        assert held.result().status == 200


def test_max_tunnels(warmproxy, origin) -> None:
    """At max_tunnels one more CONNECT is a 503, requests are served, and the place of a tunnel
    that has ended is free again, for a client that was refused as well."""
    web, far = origin(), origin(raw=_echo)
    proxy = warmproxy(config={"max_tunnels": 2})
    with proxy.tunnel(far.authority) as one, proxy.tunnel(far.authority), proxy.raw() as sock:
        assert not connected(sock, far.authority)
        assert proxy.fetch(f"{web.url}/").status == 200
        one.close()
        eventually(lambda: proxy.count("warmproxy_tunnels") == 1)
        assert connected(sock, far.authority)
        sock.sendall(b"hello")
        assert sock.recv(100) == b"hello"
    eventually(lambda: proxy.count("warmproxy_tunnels") == 0)


def test_tunnels_that_come_fast_find_a_connection_each(warmproxy, origin) -> None:
    """What clients take is replaced at once, however often: 60 tunnels in a row, of a pool of 2,
    whose refills would take a quarter of a minute by the clock alone."""
    far = origin()
    url = f"https://{far.authority}"
    proxy = warmproxy("--warm", f"{url}=2")
    began = time.monotonic()
    for _ in range(60):
        eventually(lambda: proxy.pool(url)["fresh"] > 0)
        proxy.tunnel(far.authority).close()
    assert time.monotonic() - began < 7
    assert (proxy.pool(url)["hits"], proxy.pool(url)["misses"]) == (60, 0)


def test_max_tunnels_holds_for_tunnels_that_are_being_made(warmproxy, origin) -> None:
    """CONNECTs whose dials are under way at once do not slip past max_tunnels together."""
    far = origin(raw=_echo)
    proxy = warmproxy(config={"max_tunnels": 2, "learn_requests": 0})
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(8) as threads:
        socks = [stack.enter_context(proxy.raw()) for _ in range(8)]
        for _ in range(5):
            stood = list(threads.map(connected, socks, [far.authority] * 8))
            assert stood.count(True) <= 2
            assert proxy.count("warmproxy_tunnels") == 2
            socks = [sock for sock, is_tunnel in zip(socks, stood, strict=True) if not is_tunnel]
            socks += [stack.enter_context(proxy.raw()) for _ in range(8 - len(socks))]
    eventually(lambda: proxy.count("warmproxy_tunnels") == 0)
    assert proxy.count("warmproxy_upstream_connections", state="active") == 0


def _echo(connection) -> None:
    while data := connection.receive():
        connection.send(data)


def test_tunnel_idle_timeout(warmproxy, origin) -> None:
    """A tunnel without a byte either way is closed after tunnel_idle_timeout; bytes in one
    direction keep it."""
    far = origin(raw=_echo)
    proxy = warmproxy(config={"tunnel_idle_timeout": 1.0})
    with proxy.tunnel(far.authority) as idle, proxy.tunnel(far.authority) as busy:
        began = time.monotonic()
        while not readable(idle):
            busy.sendall(b"x")
            assert busy.recv(10) == b"x"
            always(lambda: True, 0.1)
        assert idle.recv(10) == b""
        assert 1.0 <= time.monotonic() - began < 2.0 + LATE
        busy.sendall(b"still")
        assert busy.recv(10) == b"still"
    eventually(lambda: proxy.count("warmproxy_tunnels") == 0)
    eventually(lambda: not far.open_connections())


def test_max_buffer_while_a_request_waits(warmproxy, origin) -> None:
    """Of a body whose request waits for a connection no more than max_buffer is taken in; it
    arrives whole all the same."""
    web = origin()
    upstream = {"url": web.url, "warm": 1, "max_connections": 1}
    proxy = warmproxy(config={"max_buffer": 20_000, "upstream": [upstream]})
    size = 64 << 20
    with ThreadPoolExecutor(2) as threads:
        held = threads.submit(proxy.fetch, f"{web.url}/hold")
        web.wait_requests(1)
        proxy.memory.mark()
        sent = [0]

        def body() -> Iterator[bytes]:
            for _ in range(size >> 16):
                sent[0] += 1 << 16
                yield bytes(1 << 16)

        client = proxy.connect(60)
        length = {"Content-Length": str(size)}
        upload = threads.submit(client.request, "PUT", f"{web.url}/put", body(), length)
        stuck_at = until_still(lambda: sent[0])
        assert 0 < stuck_at < size / 2
        assert proxy.memory.growth < 4 << 20
        web.gate.set()
        assert held.result().status == 200
        upload.result()
        assert read_reply(client).status == 200
        client.close()
    assert web.requests[1].body_length == size
    assert proxy.memory.growth < 16 << 20


# -- one client address -----------------------------------------------------------------------

# Runs inside a network namespace: see netns.py.
_IN_NAMESPACE = """
import http.client, json, socket, subprocess, sys, time
daemon = subprocess.Popen(sys.argv[1:], stderr=subprocess.STDOUT, stdout=open("log", "w"))

def ask(host, port, target):
    client = http.client.HTTPConnection(host, port, timeout=5)
    try:
        client.request("GET", target)
        response = client.getresponse()
        return response.status, response.getheader("Proxy-Status") or "", response.read().decode()
    finally:
        client.close()

def status(host, port, target):
    try:
        return ask(host, port, target)[0]
    except OSError:
        return 0

def eventually(predicate):
    deadline = time.monotonic() + 10
    while not predicate():
        assert time.monotonic() < deadline, open("log").read()

def clients():
    lines = ask("127.0.0.1", 3180, "/metrics")[2].splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("warmproxy_clients "))

def ask_proxy(host, target):
    before = clients()
    try:
        return ask(host, 3128, target)
    finally:
        eventually(lambda: clients() == before)

try:
    eventually(lambda: status("127.0.0.1", 3180, "/readyz") == 200)
    found = {}
    held = [socket.create_connection(("10.11.12.13", 3128)) for _ in range(3)]
    eventually(lambda: clients() == 3)
    found["one too many"] = ask_proxy("10.11.12.13", "http://10.11.12.13:9/")
    local = [socket.create_connection(("127.0.0.1", 3128)) for _ in range(5)]
    eventually(lambda: clients() == 8)
    found["loopback"] = ask_proxy("127.0.0.1", "http://10.11.12.13:9/")
    held.pop().close()
    eventually(lambda: clients() == 7)
    found["one has left"] = ask_proxy("10.11.12.13", "http://10.11.12.13:9/")
    for host in ("10.11.12.13", "127.0.0.1"):
        found["itself at " + host] = ask_proxy("127.0.0.1", f"http://{host}:3128/")
        found["admin at " + host] = ask_proxy("10.11.12.13", f"http://{host}:3180/metrics")
    print(json.dumps(found))
finally:
    daemon.terminate()
    daemon.wait()
"""


@pytest.fixture(scope="module")
def in_namespace(tmp_path_factory) -> dict:
    """What a client at an address that is not loopback was answered, in a network namespace."""
    folder = tmp_path_factory.mktemp("namespace")
    (folder / "warmproxy.toml").write_text(
        'listen = ["0.0.0.0:3128"]\nallow_clients = ["10.0.0.0/8", "127.0.0.0/8"]\n'
        "max_clients_per_address = 3\n"
    )
    return run_inside(_IN_NAMESPACE, folder, *command("run", "--config", "warmproxy.toml"))


def test_max_clients_per_address(in_namespace) -> None:
    """A client address beyond loopback with max_clients_per_address connections gets a 503 on the
    next one, until one of them is gone; loopback is not counted."""
    status, proxy_status, text = in_namespace["one too many"]
    assert status == 503
    assert "error=connection_limit_reached" in proxy_status
    assert "max_clients_per_address" in text
    for served in ("loopback", "one has left"):
        status, proxy_status, _ = in_namespace[served]
        assert (status, "error=connection_refused" in proxy_status) == (502, True), served


def test_own_listener_at_another_address_of_this_machine(in_namespace) -> None:
    """A listener at 0.0.0.0 is not reached through the proxy at any of the machine's addresses."""
    for host in ("10.11.12.13", "127.0.0.1"):
        status, proxy_status, _ = in_namespace[f"itself at {host}"]
        assert (status, "error=proxy_loop_detected" in proxy_status) == (502, True), host
    status, proxy_status, _ = in_namespace["admin at 127.0.0.1"]
    assert (status, "error=proxy_loop_detected" in proxy_status) == (502, True)
    # nobody listens there
    status, proxy_status, _ = in_namespace["admin at 10.11.12.13"]
    assert (status, "error=connection_refused" in proxy_status) == (502, True)


# -- many slow clients ------------------------------------------------------------------------

SLOW_CLIENTS = 5000
NO_SLOWER_THAN = 10
"""Times the 99th percentile of the same requests without slow clients, and 20 ms: the sweep of
5,000 clients and a busy machine."""


@pytest.fixture
def descriptors() -> Iterator[None]:
    """As many descriptors as the test itself needs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2 * SLOW_CLIENTS:
        missing(f"{2 * SLOW_CLIENTS} descriptors (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("descriptors")
def test_slow_clients_do_not_stop_others(warmproxy, origin) -> None:
    """While 5,000 clients each trickle a head that never ends, another client's requests are all
    answered, with a 99th percentile within NO_SLOWER_THAN times of what it is without them."""
    web = origin()
    config = {"head_timeout": 60, "upstream": [{"url": web.url, "warm": 2}]}
    proxy = warmproxy(config=config)
    without = _p99(proxy, web)
    proxy.memory.mark()
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(proxy.raw()) for _ in range(SLOW_CLIENTS)]
        head = f"GET {web.url}/slow HTTP/1.1\r\nHost: {web.authority}\r\nX-Slow: ".encode()
        for sock in slow:
            sock.sendall(head)
        eventually(lambda: clients(proxy) == SLOW_CLIENTS)
        done, trickled = threading.Event(), [0]

        def trickle_on() -> None:
            while not done.wait(0.02):  # 5,000 bytes a second, each to another client
                for _ in range(100):
                    slow[trickled[0] % SLOW_CLIENTS].send(b"x")
                    trickled[0] += 1

        thread = threading.Thread(target=trickle_on)
        thread.start()
        try:
            beside = _p99(proxy, web)
        finally:
            done.set()
            thread.join()
        assert trickled[0] > 1000
        assert clients(proxy) == SLOW_CLIENTS
        assert beside < NO_SLOWER_THAN * without + 0.02, (without, beside)
        assert proxy.memory.growth < 64 << 20
    eventually(lambda: clients(proxy) == 0)
    assert not any(r.target == "/slow" for r in web.requests)
    assert "Traceback" not in proxy.log()


def _p99(proxy, web, count: int = 1000) -> float:
    """Seconds that all but one in a hundred of `count` requests take at most."""
    took = []
    client = proxy.connect()
    for _ in range(count):
        began = time.perf_counter()
        assert fetch_on(client, f"{web.url}/").status == 200
        took.append(time.perf_counter() - began)
    client.close()
    return statistics.quantiles(took, n=100)[98]


# -- out of descriptors -----------------------------------------------------------------------


def test_out_of_descriptors(warmproxy, origin) -> None:
    """With 256 descriptors and 400 clients: accepting pauses before the system refuses one, idle
    connections are shed and stay so, a line for each halving says so; when the clients leave, all
    is as it was."""
    web = origin()
    config = {"upstream": [{"url": web.url, "warm": 60, "dial_budget": 1000}]}
    proxy = warmproxy(config=config, ready=False)
    # before its interpreter is up, and what it found is in its log line
    resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE, (256, 256))
    proxy.until(lambda: proxy.admin_status("/readyz") == 200)
    web.wait_open(60)
    request = f"GET {web.url}/ HTTP/1.1\r\nHost: {web.authority}\r\n\r\n".encode()
    with contextlib.ExitStack() as stack:
        flood = [stack.enter_context(proxy.raw()) for _ in range(400)]
        eventually(lambda: events(proxy, "accept_paused"), says=proxy.log)
        always(lambda: proxy.admin_status("/healthz") == 200, 1.5)
        assert len(web.open_connections()) < 60
        assert _descriptors(proxy) < 256
        flood[0].sendall(request)  # who is in is served
        assert reply_on(flood[0]).status == 200
        (paused,) = events(proxy, "accept_paused")
        assert paused["descriptors"] == 256 - 64
        assert paused["shed"] > 0
        left = len(web.open_connections())
    eventually(lambda: clients(proxy) == 0, says=proxy.log)
    wait_warm(proxy, web.url, 60)
    web.wait_open(60)
    eventually(lambda: events(proxy, "accept_resumed"), says=proxy.log)
    (resumed,) = events(proxy, "accept_resumed")
    assert resumed["shed"] + left == 60
    assert proxy.fetch(f"{web.url}/").status == 200
    assert "Traceback" not in proxy.log()


def test_out_of_descriptors_with_everybody_asking(warmproxy, origin) -> None:
    """The same with a request of each client: all are answered, in the end with a 200 or a 503,
    none is dropped, and nothing is left behind."""
    web = origin()
    config = {"defaults": {"max_connections": 400}, "learn_requests": 0}
    proxy = warmproxy(config=config, ready=False)
    resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE, (256, 256))
    proxy.until(lambda: proxy.admin_status("/readyz") == 200)
    request = f"GET {web.url}/hold HTTP/1.0\r\nHost: {web.authority}\r\n\r\n".encode()
    with contextlib.ExitStack() as stack:
        flood = [stack.enter_context(proxy.raw()) for _ in range(300)]
        for sock in flood:
            sock.sendall(request)
        eventually(lambda: events(proxy, "accept_paused"), says=proxy.log)
        until_still(lambda: len(web.requests))
        assert _descriptors(proxy) <= 256
        web.gate.set()
        statuses = [reply_on(sock).status for sock in flood]
        assert set(statuses) <= {200, 503}, statuses
        assert statuses.count(200) > 60
    eventually(lambda: clients(proxy) == 0)
    assert proxy.fetch(f"{web.url}/").status == 200
    assert "Traceback" not in proxy.log()


def _descriptors(proxy) -> int:
    return len(list(Path(f"/proc/{proxy.pid}/fd").iterdir()))
