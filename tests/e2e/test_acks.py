"""Clients and origins that write in two pieces with Nagle's algorithm on: nobody waits for an
acknowledgement that Linux would send 40 ms later."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from tests.e2e.origins import Connection, Request

TIMES = 40
DELAYED = TIMES * 0.04
"""Seconds that this many acknowledgements take at least where they are delayed."""
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"


def whole(connection: Connection, request: Request) -> None:
    connection.read_body(request)
    connection.send(HEAD + b"whole")


def in_two(connection: Connection, request: Request) -> None:
    """An answer as http.server writes it."""
    connection._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
    connection.read_body(request)
    connection.send(HEAD)
    connection.send(b"parts")


def exchange(sock: socket.socket, *pieces: bytes) -> None:
    """One request, in so many writes, and its answer."""
    for piece in pieces:
        sock.sendall(piece)
    received = b""
    while not received.endswith((b"whole", b"parts")):
        data = sock.recv(65536)
        assert data, received
        received += data


@pytest.fixture
def quick() -> Iterator[None]:
    """What the test does takes less than delayed acknowledgements would."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < 0.75 * DELAYED


Start = Callable[..., Any]


def post(target: str) -> tuple[bytes, bytes]:
    head = f"POST {target} HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\n"
    return head.encode(), b"body"


def get(target: str) -> bytes:
    return f"GET {target} HTTP/1.1\r\nHost: h\r\n\r\n".encode()


def test_a_post_in_two_writes(warmproxy: Start, origin: Start, quick: None) -> None:
    web = origin(whole)
    proxy = warmproxy("--warm", f"{web.url}=1")
    with closing(proxy.raw()) as sock:
        for _ in range(TIMES):
            exchange(sock, *post(f"{web.url}/"))


def test_a_head_in_two_writes(warmproxy: Start, origin: Start, quick: None) -> None:
    web = origin(whole)
    proxy = warmproxy("--warm", f"{web.url}=1")
    ask = get(f"{web.url}/")
    with closing(proxy.raw()) as sock:
        for _ in range(TIMES):
            exchange(sock, ask[:20], ask[20:])


def test_an_answer_in_two_writes(warmproxy: Start, origin: Start, quick: None) -> None:
    web = origin(in_two)
    proxy = warmproxy("--warm", f"{web.url}=1")
    with closing(proxy.raw()) as sock:
        for _ in range(TIMES):
            exchange(sock, get(f"{web.url}/"))


def test_both_in_a_tunnel(warmproxy: Start, origin: Start, quick: None) -> None:
    web = origin(in_two)
    proxy = warmproxy("--warm", f"https://{web.authority}=1")
    with closing(proxy.tunnel(web.authority)) as sock:
        for _ in range(TIMES):
            exchange(sock, *post("/"))


def test_both_in_a_tunnel_that_is_spliced(warmproxy: Start, origin: Start, quick: None) -> None:
    """The same once the tunnel has carried so much that the system moves its bytes."""
    web = origin(in_two)
    proxy = warmproxy("--warm", f"https://{web.authority}=1")
    long = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 300000\r\n\r\n" + bytes(300_000)
    with closing(proxy.tunnel(web.authority)) as sock:
        exchange(sock, long)
        for _ in range(TIMES):
            exchange(sock, *post("/"))
