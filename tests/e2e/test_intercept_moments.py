"""Interception at odd moments: clients that leave, stop, wait or talk when nobody expects it.

What counts: nobody hangs, nobody else is hurt, nothing that breaks off looks whole, and the log has
no traceback.
"""

import contextlib
import http.client
import signal
import socket
import ssl
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import test_intercept
from tests.e2e.daemon import Warmproxy, fetch_on, read_reply
from tests.e2e.harness import always, eventually, until_still
from tests.e2e.origins import Connection, Origin, Request
from tests.e2e.test_intercept import by_name, inside, read_head, refusals, trusting
from tests.e2e.tls_origins import Pki

pki, ca, start = test_intercept.pki, test_intercept.ca, test_intercept.start


@pytest.fixture
def web(origin: Callable[..., Origin], pki: Pki) -> Origin:
    return origin(tls=pki.server(alpn=("http/1.1",)))


def hello(context: ssl.SSLContext, name: str = "localhost") -> bytes:
    """What a client's TLS begins with."""
    outgoing = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def connect(web: Origin, agent: str = "") -> bytes:
    field = f"User-Agent: {agent}\r\n" if agent else ""
    place = f"localhost:{web.port}"
    return f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n{field}\r\n".encode()


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def complaints(proxy: Warmproxy) -> list[str]:
    """Lines that tell of a fault of ours."""
    return [line for line in proxy.log().splitlines() if '"event": "log"' in line]


def all_left(proxy: Warmproxy) -> None:
    """Wait until the daemon has no client any more."""
    eventually(lambda: proxy.count("warmproxy_clients") == 0, says=proxy.log)


# -- who leaves early ---------------------------------------------------------------------------


def test_who_leaves_right_behind_its_connect_leaves_nothing(
    start: Any, web: Origin, ca: Path
) -> None:
    """By RST or FIN, with and without a first flight: no client is left, nor what TLS takes for
    each (a quarter of a MiB), and nothing is a fault of ours."""
    proxy = start(by_name(web))
    first_flight = hello(trusting(ca))

    def leave_early(number: int) -> None:
        for early in (b"", first_flight):
            for end in (reset, socket.socket.close):
                sock = proxy.raw()
                sock.sendall(connect(web, f"{number} {len(early)} {end.__name__}") + early)
                end(sock)

    for number in range(50):
        leave_early(number)
    all_left(proxy)
    proxy.memory.mark()
    for number in range(50, 350):
        leave_early(number)
    all_left(proxy)
    assert proxy.memory.growth < 30 << 20
    assert complaints(proxy) == []


def test_sigterm_does_not_wait_for_a_handshake(start: Any, web: Origin, ca: Path) -> None:
    """Neither for one that has begun nor for one that has not: no request could follow."""
    proxy = start(by_name(web), grace=60)
    place = f"localhost:{web.port}"
    with proxy.tunnel(place) as sock, proxy.tunnel(place):
        sock.sendall(hello(trusting(ca))[:100])
        assert proxy.terminate() == 0
    assert proxy.events("stopped")[0]["cut_short"] == 0
    assert refusals(proxy) == []


def test_close_notify_behind_a_request_is_no_fault(start: Any, web: Origin, ca: Path) -> None:
    """TLS ends for both sides: the request is given up, without a line in the log."""
    proxy = start(by_name(web))
    with inside(proxy, web, trusting(ca)) as connection:
        connection.request("GET", "/hold")
        web.wait_requests(1)
        assert isinstance(connection.sock, ssl.SSLSocket)
        connection.sock.unwrap()
        all_left(proxy)
    assert proxy.pools()[by_name(web)]["active"] == 0
    assert complaints(proxy) == []


def test_a_name_that_is_not_ascii(start: Any, web: Origin, pki: Pki, ca: Path) -> None:
    """It gets an alert, and no traceback."""
    proxy = start(by_name(web), intercept_fallback="none")
    odd = hello(trusting(ca), "locaXhost").replace(b"locaXhost", b"loca\xffhost")
    with proxy.tunnel(f"localhost:{web.port}") as sock:
        sock.sendall(odd)
        assert sock.recv(1) == b""
    [line] = eventually(lambda: refusals(proxy))
    assert "another name" in line["reason"]
    assert "Traceback" not in proxy.log()


# -- slow readers, and what breaks off ----------------------------------------------------------


def test_who_reads_slowly_gets_the_whole_of_its_last_answer(
    start: Any, web: Origin, ca: Path
) -> None:
    """It takes nothing for longer than a close_notify is waited for. Some of the answers are more
    than the system keeps, and wait in the daemon whole; some are longer still."""
    proxy = start(by_name(web))
    most = int(Path("/proc/sys/net/ipv4/tcp_wmem").read_text().split()[2])
    sizes = range(most * 3 // 4, most * 3 // 2, 100_000)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(inside(proxy, web, trusting(ca))) for _ in sizes]
        for client, size in zip(clients, sizes, strict=True):
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            client.request("GET", f"/bytes/{size}", headers={"Connection": "close"})
        web.wait_requests(len(sizes))
        active = until_still(lambda: proxy.pools()[by_name(web)]["active"], 1.0)
        assert 0 < active < len(sizes)
        always(lambda: not proxy.events("stopped"), 3.5)
        assert [len(read_reply(client).body) for client in clients] == list(sizes)
    all_left(proxy)


@pytest.mark.parametrize("is_inside", [True, False])
def test_what_the_end_of_the_grace_time_cuts_does_not_look_whole(
    start: Any, origin: Callable[..., Origin], pki: Pki, web: Origin, ca: Path, is_inside: bool
) -> None:
    """An answer that ends by the connection's end: without close_notify, or by a reset."""

    def answer(connection: Connection, request: Request) -> None:
        connection.send(b"HTTP/1.1 200 OK\r\n\r\nhalf of it")
        connection.origin.gate.wait(30)

    proxy = start(by_name(web), grace=0.5)
    web.answer = answer
    plain = origin(answer)
    with proxy.tunnel(f"localhost:{web.port}") if is_inside else proxy.raw() as sock:
        url, host = ("", f"localhost:{web.port}") if is_inside else (plain.url, plain.authority)
        if is_inside:
            context = trusting(ca)
            sock = context.wrap_socket(
                sock, server_hostname="localhost", suppress_ragged_eofs=False
            )
        sock.sendall(f"GET {url}/ HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        assert read_head(sock).startswith(b"HTTP/1.1 200")
        proxy.signal(signal.SIGTERM)
        with pytest.raises((ssl.SSLEOFError, ConnectionResetError)):
            b"".join(iter(lambda: sock.recv(1000), b""))
        sock.close()


def test_a_client_that_does_not_say_goodbye_is_not_waited_for(
    start: Any, web: Origin, ca: Path
) -> None:
    """Neither when it has been idle for too long, nor when the daemon stops."""
    proxy = start(by_name(web), client_idle_timeout=4, grace=60)
    with inside(proxy, web, trusting(ca)) as idle:
        assert fetch_on(idle, "/").text == web.greeting
        eventually(lambda: proxy.count("warmproxy_clients") == 0, 12, proxy.log)
    with inside(proxy, web, trusting(ca)) as idle:
        assert fetch_on(idle, "/").text == web.greeting
        proxy.signal(signal.SIGTERM)
        assert proxy.exit_code(8) == 0


# -- one connection, before and behind its CONNECT ------------------------------------------------


def go_inside(sock: socket.socket, web: Origin, context: ssl.SSLContext) -> ssl.SSLSocket:
    sock.sendall(connect(web))
    assert read_head(sock).startswith(b"HTTP/1.1 200")
    return context.wrap_socket(sock, server_hostname="localhost")


def test_an_upload_before_and_one_inside(
    start: Any, origin: Callable[..., Origin], web: Origin, ca: Path
) -> None:
    """What moved the first past the daemon is of no use for the second, which has to be paused."""
    plain = origin()
    proxy = start(by_name(web))
    with proxy.raw() as sock:
        connection = http.client.HTTPConnection("localhost", web.port)
        connection.sock = sock
        first = fetch_on(connection, f"{plain.url}/echo", "POST", b"x" * (1 << 19))
        assert len(first.body) == 1 << 19
        sent, size = 0, 24 << 20
        web.reader_marks = (1 << 20,)
        web.reader_waits_for = lambda: sent
        with go_inside(sock, web, trusting(ca)) as tls:
            connection.sock = tls
            connection.putrequest("POST", "/", skip_accept_encoding=True)
            connection.putheader("Content-Length", str(size))
            connection.endheaders()
            block = b"y" * (1 << 18)
            while sent < size:
                sent += tls.send(block[: size - sent])
            assert read_reply(connection).text == web.greeting
    assert web.requests[0].body_length == size


def test_who_reads_nothing_does_not_come_inside(
    start: Any, origin: Callable[..., Origin], web: Origin
) -> None:
    """A CONNECT behind an answer that waits in the daemon for its reader: the connection ends.
    Some of the answers are as long as that takes."""

    def chunked(connection: Connection, request: Request) -> None:
        size = int(request.target.removeprefix("/"))
        connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % size)
        connection.send(b"x" * size + b"\r\n0\r\n\r\n")

    plain = origin(chunked)
    proxy = start(by_name(web))
    most = int(Path("/proc/sys/net/ipv4/tcp_wmem").read_text().split()[2])
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(proxy.raw()) for _ in range(30)]
        for number, sock in enumerate(clients):
            ask = f"GET {plain.url}/{most * 3 // 4 + number * 90_000} HTTP/1.1\r\nHost: x\r\n\r\n"
            sock.sendall(ask.encode() + connect(web))
        plain.wait_requests(30)
        until_still(lambda: proxy.pools()[plain.url]["active"], 1.0)
        for sock in clients:
            with contextlib.suppress(ConnectionResetError):
                received = sock.recv(1 << 20)
                while received and b" 200 Connection" not in received[-100:]:
                    received = sock.recv(1 << 20)
    all_left(proxy)
    assert complaints(proxy) == []


# -- a connection that its client has authenticated ------------------------------------------------


def test_what_was_authenticated_before_is_nobody_elses_inside(
    start: Any, origin: Callable[..., Origin], pki: Pki, ca: Path
) -> None:
    """NTLM holds for the upstream's connection: it ends with the requests that came before the
    client's CONNECT, and is neither kept nor given to others."""

    def answer(connection: Connection, request: Request) -> None:
        connection.reply(b"hello", headers=(("WWW-Authenticate", "NTLM"),))

    web = origin(answer, tls=pki.server(alpn=("http/1.1",)))
    proxy = start(by_name(web))
    with proxy.raw() as sock:
        connection = http.client.HTTPConnection("localhost", web.port)
        connection.sock = sock
        assert fetch_on(connection, f"{by_name(web)}/1").text == "hello"
        assert proxy.pools()[by_name(web)]["active"] == 1
        web.answer = lambda connection, request: connection.reply(b"for all")
        with go_inside(sock, web, trusting(ca)) as connection.sock:
            assert fetch_on(connection, "/2").text == "for all"
            assert proxy.pools()[by_name(web)]["active"] == 0
            assert proxy.fetch(f"{by_name(web)}/3").text == "for all"
    mine, *others = [request.connection for request in web.requests]
    assert mine not in others
    eventually(lambda: not mine.open)
