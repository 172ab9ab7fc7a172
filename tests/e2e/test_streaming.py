"""Bodies of 1 GiB past a slow side, and tunnels: nothing is collected in the daemon."""

import contextlib
import socket
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator

import pytest

from tests.e2e.harness import eventually, until_still
from tests.e2e.origins import GIB, Connection, Gone, pattern, pattern_crc

MIB = 1 << 20
STOPS = (0, 64 * MIB, 256 * MIB)
"""offsets at which the slow side does not read until the other side is stuck"""

GROWTH = 20 * MIB


class Sender(threading.Thread):
    """Writes blocks as fast as it is let, counting."""

    def __init__(self, sock: socket.socket, blocks: Iterable[bytes]) -> None:
        super().__init__(name="sender", daemon=True)
        self.sent = 0
        self.error: OSError | None = None
        self._sock = sock
        self._blocks = blocks

    def run(self) -> None:
        try:
            for block in self._blocks:
                self._sock.sendall(block)
                self.sent += len(block)
        except OSError as error:
            self.error = error


def receive(sock: socket.socket, size: int, stops: Iterable[int], sent: Callable[[], int]) -> int:
    """Read `size` bytes, waiting at each stop until `sent` no longer moves; their CRC."""
    marks = list(stops)
    got = crc = 0
    buffer = bytearray(1 << 18)
    view = memoryview(buffer)
    while got < size:
        if marks and got >= marks[0]:
            marks.pop(0)
            held = until_still(sent)
            assert held - got < 128 * MIB, "nothing pushes back"
        n = sock.recv_into(buffer, min(len(buffer), size - got))
        assert n, f"ended after {got} of {size} bytes"
        crc = zlib.crc32(view[:n], crc)
        got += n
    return crc


def read_head(sock: socket.socket) -> bytes:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        data = sock.recv(1)
        assert data, head
        head += data
    return head


@pytest.fixture(scope="module")
def gib_crc() -> int:
    return pattern_crc(GIB)


@pytest.fixture(params=["plain", "tunnel"])
def way(request) -> str:
    return request.param


def test_1_gib_to_a_slow_client(warmproxy, origin, way, gib_crc) -> None:
    """A client that stops reading stops the origin, the daemon's memory stays flat, and all bytes
    arrive in order."""
    web = origin()
    proxy = warmproxy("--warm", f"{web.url}=1", "--warm", f"https://{web.authority}=1")
    proxy.fetch(f"{web.url}/bytes/{4 * MIB}")  # what a first body costs is not growth
    with proxy.tunnel(web.authority) if way == "tunnel" else proxy.raw() as sock:
        sock.settimeout(30)
        proxy.memory.mark()
        target = f"/bytes/{GIB}" if way == "tunnel" else f"{web.url}/bytes/{GIB}"
        sock.sendall(f"GET {target} HTTP/1.1\r\nHost: {web.authority}\r\n\r\n".encode())
        assert read_head(sock).startswith(b"HTTP/1.1 200")
        serving = web.requests[-1].connection
        assert receive(sock, GIB, STOPS, lambda: serving.sent) == gib_crc
        assert proxy.memory.growth < GROWTH


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_1_gib_to_a_slow_upstream(warmproxy, origin, way, framing, gib_crc) -> None:
    """An upstream that stops reading stops the client, the daemon's memory stays flat, and all
    bytes arrive in order."""
    web = origin()
    web.reader_marks = STOPS
    proxy = warmproxy("--warm", f"{web.url}=1", "--warm", f"https://{web.authority}=1")
    with proxy.tunnel(web.authority) if way == "tunnel" else proxy.raw() as sock:
        sock.settimeout(30)
        target = "/sink" if way == "tunnel" else f"{web.url}/sink"
        size = f"Content-Length: {GIB}" if framing == "length" else "Transfer-Encoding: chunked"
        head = f"POST {target} HTTP/1.1\r\nHost: {web.authority}\r\n{size}\r\n\r\n".encode()

        def chunks() -> Iterator[bytes]:
            for block in pattern(GIB):
                yield b"%x\r\n%b\r\n" % (len(block), block)
            yield b"0\r\n\r\n"

        sender = Sender(sock, pattern(GIB) if framing == "length" else chunks())
        web.reader_waits_for = lambda: sender.sent
        proxy.memory.mark()
        sock.sendall(head)
        sender.start()
        assert read_head(sock).startswith(b"HTTP/1.1 200")
        sender.join(10)
        assert sender.error is None
        assert proxy.memory.growth < GROWTH
    request = web.requests[-1]
    assert request.body_length == GIB
    assert request.body_crc == gib_crc


def test_chunked_answers_pass_with_their_trailers(warmproxy, origin) -> None:
    """A chunked answer with trailers arrives complete, and the connection serves again."""

    def chunked(connection: Connection, request) -> None:
        connection.read_body(request)
        connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n")
        for _ in range(3):
            connection.send(b"4\r\nwarm\r\n")
        connection.send(b"0\r\nX-Sum: 12\r\n\r\n")

    web = origin(chunked)
    proxy = warmproxy("--warm", f"{web.url}=1")
    for _ in range(2):
        reply = proxy.fetch(f"{web.url}/")
        assert (reply.status, reply.body) == (200, b"warm" * 3)
    assert web.requests[0].connection is web.requests[1].connection


def test_an_answer_that_is_cut_off_arrives_as_cut_off(warmproxy, origin) -> None:
    """When the upstream dies in the middle of a body the client sees a broken answer, never a
    complete one."""

    def half(connection: Connection, request) -> None:
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + b"x" * 50)
        connection.cut()
        raise Gone

    web = origin(half)
    proxy = warmproxy("--warm", f"{web.url}=1")
    with proxy.raw() as sock:
        sock.sendall(f"GET {web.url}/ HTTP/1.1\r\nHost: {web.authority}\r\n\r\n".encode())
        assert read_head(sock).startswith(b"HTTP/1.1 200")
        body = b""
        with contextlib.suppress(ConnectionResetError):
            while data := sock.recv(4096):
                body += data
    assert body == b"x" * 50
    assert len(web.requests) == 1


@pytest.mark.parametrize("late", ["the body", "the body and the next request at once"])
def test_an_answer_that_comes_before_the_body(warmproxy, origin, late) -> None:
    """An upstream that answers before it has the body: the answer passes at once, and the client
    either reads in it that the connection ends or has its next request answered on it."""
    web = origin(lambda connection, request: connection.reply(b"early"))
    proxy = warmproxy("--warm", f"{web.url}=2")
    with proxy.raw() as sock:
        head = f"POST {web.url}/ HTTP/1.1\r\nHost: {web.authority}\r\nContent-Length: 4\r\n\r\n"
        sock.sendall(head.encode())
        answer = read_head(sock)
        assert answer.startswith(b"HTTP/1.1 200")
        assert sock.recv(5, socket.MSG_WAITALL) == b"early"
        following = f"GET {web.url}/next HTTP/1.1\r\nHost: {web.authority}\r\n\r\n".encode()
        if late == "the body":
            sock.sendall(b"body")
            eventually(lambda: proxy.pool(web.url)["active"] == 0)
            sock.sendall(following)
        else:
            sock.sendall(b"body" + following)
        if b"connection: close" in answer.lower():
            assert sock.recv(100) == b""
            return
        assert read_head(sock).startswith(b"HTTP/1.1 200")
    first, following_request = web.requests
    assert following_request.target == "/next"
    assert following_request.connection is not first.connection


# -- tunnels ----------------------------------------------------------------------------------


def until_eof(connection: Connection) -> bytes:
    data = b""
    while more := connection.receive():
        data += more
    return data


def test_the_client_ends_its_half_of_a_tunnel_first(warmproxy, origin) -> None:
    """The client's FIN reaches the upstream, whose answer still comes back, to its end."""
    heard: list[bytes] = []

    def answer_after_eof(connection: Connection) -> None:
        heard.append(until_eof(connection))
        connection.send(b"bye" * MIB)

    far = origin(raw=answer_after_eof)
    proxy = warmproxy("--warm", f"https://{far.authority}=1")
    with proxy.tunnel(far.authority) as sock:
        sock.sendall(b"hello")
        sock.shutdown(socket.SHUT_WR)
        back = b""
        while data := sock.recv(1 << 16):
            back += data
    assert heard == [b"hello"]
    assert back == b"bye" * MIB
    eventually(lambda: far.connections[0].ended, says=lambda: far.connections)
    assert far.connections[0].ended == "fin"


def test_the_upstream_ends_its_half_of_a_tunnel_first(warmproxy, origin) -> None:
    """The upstream's FIN reaches the client, whose bytes still go out, to their end."""
    heard: list[bytes] = []

    def end_and_listen(connection: Connection) -> None:
        connection.send(connection.receive())
        connection.fin()
        heard.append(until_eof(connection))

    far = origin(raw=end_and_listen)
    proxy = warmproxy("--warm", f"https://{far.authority}=1")
    with proxy.tunnel(far.authority) as sock:
        sock.sendall(b"hello")
        assert sock.recv(100) == b"hello"
        assert sock.recv(100) == b""
        sock.sendall(b"still here" * MIB)
        sock.shutdown(socket.SHUT_WR)
        eventually(lambda: heard, says=lambda: far.connections)
    assert heard == [b"still here" * MIB]


@pytest.mark.parametrize("who", ["client", "upstream"])
def test_a_tunnel_ends_when_one_side_resets(warmproxy, origin, who) -> None:
    """A reset on one side ends the other side too, and the daemon keeps nothing of the tunnel."""
    far = origin(raw=until_eof)
    proxy = warmproxy("--warm", f"https://{far.authority}=1")
    with proxy.tunnel(far.authority) as sock:
        sock.sendall(b"x")
        used = eventually(lambda: [c for c in far.connections if c.number == 1])[0]
        eventually(lambda: proxy.count("warmproxy_tunnels") == 1)
        if who == "upstream":
            used.reset()
            with contextlib.suppress(ConnectionResetError):
                assert sock.recv(100) == b""
        else:
            linger = b"\1\0\0\0\0\0\0\0"
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            sock.close()
            eventually(lambda: used.ended, says=lambda: used)
    eventually(lambda: proxy.count("warmproxy_tunnels") == 0)
    assert proxy.pool(f"https://{far.authority}")["active"] == 0


def test_bytes_right_behind_the_connect_are_not_lost(warmproxy, origin) -> None:
    """What the client sends before it has the answer to its CONNECT reaches the upstream."""
    far = origin(raw=lambda connection: connection.send(connection.receive()))
    proxy = warmproxy("--warm", f"https://{far.authority}=1")
    with proxy.raw() as sock:
        authority = far.authority
        head = f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\nimpatient"
        sock.sendall(head.encode())
        assert read_head(sock).startswith(b"HTTP/1.1 200")
        assert sock.recv(100) == b"impatient"
