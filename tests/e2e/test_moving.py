"""Long bodies and tunnels, which go from socket to socket without entering the daemon: every byte
and every end arrives as if they had."""

import contextlib
import hashlib
import os
import resource
import signal
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.daemon import Warmproxy, fetch_on, wait_warm
from tests.e2e.harness import eventually, need, until_still
from tests.e2e.origins import Connection, Gone, pattern, pattern_crc
from warmproxy.net.splice import HEAD, READ, TURN
from warmproxy.protocol.exchange import MOVED_FROM

MIB = 1 << 20
SIZES = [
    *(1, MOVED_FROM - 1, MOVED_FROM, MOVED_FROM + 1, MOVED_FROM + READ, 256_000, 300_000),
    *(MIB - 1, MIB, MIB + HEAD, TURN + MOVED_FROM + 1, 5 * MIB + 7, 17),
]


def crc(data: bytes) -> int:
    return zlib.crc32(data)


def read_head(sock: socket.socket) -> bytes:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        data = sock.recv(1)
        assert data, head
        head += data
    return head


def read(sock: socket.socket, size: int) -> int:
    """The CRC of the next `size` bytes."""
    value = 0
    while size:
        data = sock.recv(min(size, 1 << 18))
        assert data, f"{size} bytes are missing"
        value = zlib.crc32(data, value)
        size -= len(data)
    return value


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def get(url: str, authority: str, method: str = "GET") -> bytes:
    return f"{method} {url} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode()


def descriptors(proxy: Warmproxy, kind: str = "") -> int:
    """How many the daemon has open, of all kinds or of one."""
    found = 0
    for entry in os.scandir(f"/proc/{proxy.pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found += str(Path(entry.path).readlink()).startswith(kind)
    return found


def processor_seconds(proxy: Warmproxy) -> float:
    fields = Path(f"/proc/{proxy.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# -- bodies -----------------------------------------------------------------------------------


def test_answers_of_all_sizes_on_one_connection(warmproxy, origin) -> None:
    """Answers around the size from which they are moved arrive whole, one after the other on one
    client's connection and on one upstream's."""
    web = origin()
    proxy = warmproxy("--warm", f"{web.url}=1")
    connection = proxy.connect()
    for size in SIZES * 2:
        reply = fetch_on(connection, f"{web.url}/bytes/{size}")
        assert (len(reply.body), crc(reply.body)) == (size, pattern_crc(size))
    assert len({request.connection for request in web.requests}) == 1


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_requests_of_all_sizes_on_one_connection(warmproxy, origin, method) -> None:
    """The same with requests' bodies, also of those that are kept for a second try at first."""
    web = origin()
    proxy = warmproxy("--warm", f"{web.url}=1")
    connection = proxy.connect()
    for size in SIZES * 2:
        body = b"".join(pattern(size))
        assert fetch_on(connection, f"{web.url}/sink", method, body).status == 200
        assert (web.requests[-1].body_length, web.requests[-1].body_crc) == (size, crc(body))
        assert fetch_on(connection, f"{web.url}/").status == 200
    # the first POST got a fresh connection, and all others those that were used
    assert len({request.connection for request in web.requests}) <= 2


def test_100_mib_of_nginx_through_curl(warmproxy, nginx_server, run, tmp_path) -> None:
    """curl gets what nginx sends by sendfile(2), by a request and through a tunnel, to the last
    bit."""
    need("curl")
    web = nginx_server("")
    content = os.urandom(MIB) * 100
    (web.www / "large").write_bytes(content)
    proxy = warmproxy("--warm", f"{web.url}=1")
    for flags in ([], ["--proxytunnel"]):
        file = tmp_path / "got"
        ran = run(["curl", "-sS", "-x", proxy.url, *flags, "-o", str(file), f"{web.url}/large"])
        assert ran.code == 0, ran.output
        assert hashlib.sha256(file.read_bytes()).digest() == hashlib.sha256(content).digest()


def test_a_request_that_was_sent_ahead_of_a_long_answer(warmproxy, origin) -> None:
    """What was pipelined behind a request with a long answer is answered after it; HEAD of a long
    answer has none to move."""
    web = origin()
    proxy = warmproxy("--warm", f"{web.url}=1")
    large = f"{web.url}/bytes/{9 * MIB}"
    with proxy.raw() as sock:
        sock.sendall(
            get(large, web.authority)
            + get(f"{web.url}/none", web.authority, "HEAD")
            + get(large, web.authority)
            + get(f"{web.url}/bytes/10", web.authority)
        )
        assert read_head(sock).startswith(b"HTTP/1.1 200")
        assert read(sock, 9 * MIB) == pattern_crc(9 * MIB)
        assert read_head(sock).startswith(b"HTTP/1.1 200")
        assert read_head(sock).startswith(b"HTTP/1.1 200")
        assert read(sock, 9 * MIB) == pattern_crc(9 * MIB)
        assert read_head(sock).startswith(b"HTTP/1.1 200")
        assert read(sock, 10) == pattern_crc(10)


def test_bytes_behind_a_long_answer_end_its_connection(warmproxy, origin) -> None:
    """An upstream that sends more than its answer's length: the client gets the length, and nobody
    the rest or the connection."""

    def too_much(connection: Connection, request) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {2 * MIB}\r\n\r\n".encode()
        connection.send(head + b"".join(pattern(2 * MIB)) + b"HTTP/1.1 200 OK\r\n\r\n" * 9)

    web = origin(too_much)
    proxy = warmproxy("--warm", f"{web.url}=1")
    connection = proxy.connect()
    for _ in range(3):
        reply = fetch_on(connection, f"{web.url}/")
        assert crc(reply.body) == pattern_crc(2 * MIB)
    assert len({request.connection for request in web.requests}) == 3


@pytest.mark.parametrize("how", ["cut", "reset"])
def test_an_upstream_that_dies_inside_a_long_answer(warmproxy, origin, how) -> None:
    """The client gets no more than came, sees that the answer is not whole, and the next request
    is served."""
    far = threading.Event()

    def part(connection: Connection, request) -> None:
        if request.target != "/part":
            connection.reply(b"whole")
            return
        connection.send(f"HTTP/1.1 200 OK\r\nContent-Length: {64 * MIB}\r\n\r\n".encode())
        for block in pattern(8 * MIB):
            connection.send(block)
        assert far.wait(20)
        getattr(connection, how)()
        raise Gone

    web = origin(part)
    proxy = warmproxy("--warm", f"{web.url}=1")
    with proxy.raw() as sock:
        sock.sendall(get(f"{web.url}/part", web.authority))
        read_head(sock)
        assert read(sock, 8 * MIB) == pattern_crc(8 * MIB)
        far.set()
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(1) == b""
    eventually(lambda: proxy.pool(web.url)["active"] == 0)
    assert proxy.fetch(f"{web.url}/").body == b"whole"


@pytest.mark.parametrize("direction", ["download", "upload"])
def test_a_client_that_dies_inside_a_long_body(warmproxy, origin, direction) -> None:
    """The upstream's connection ends too, a request that was cut short never looks whole, and
    nothing of it is left in the daemon."""
    web = origin()
    proxy = warmproxy("--warm", f"{web.url}=1")
    pipes = descriptors(proxy, "pipe:")
    fetch_on(proxy.connect(), f"{web.url}/bytes/{MIB}")
    before = descriptors(proxy, "socket:")
    eventually(lambda: descriptors(proxy, "pipe:") == pipes)
    for _ in range(20):
        sock = proxy.raw()
        if direction == "download":
            sock.sendall(get(f"{web.url}/bytes/{256 * MIB}", web.authority))
            read_head(sock)
            read(sock, 3 * MIB)
        else:
            head = f"POST {web.url}/sink HTTP/1.1\r\nHost: {web.authority}\r\n"
            sock.sendall(f"{head}Content-Length: {64 * MIB}\r\n\r\n".encode())
            for block in pattern(3 * MIB):
                sock.sendall(block)
        reset(sock)
    eventually(lambda: proxy.pool(web.url)["active"] == 0)
    cut = web.requests[1:]  # a reset may also have come before the request was read
    assert cut
    eventually(lambda: all(request.connection.ended for request in cut))
    assert all(request.body_length < 64 * MIB for request in cut)
    eventually(lambda: descriptors(proxy, "socket:") <= before + 1)
    eventually(lambda: descriptors(proxy, "pipe:") == pipes)


def test_a_long_answer_before_the_long_request_is_over(warmproxy, origin) -> None:
    """An upstream that answers at length while it is still sent a body: the answer arrives whole,
    what is left of the body is thrown away, and the client is told or served on."""
    size = 3 * MIB

    def early(connection: Connection, request) -> None:
        connection.send(f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode())
        for block in pattern(size):
            connection.send(block)
        connection.read_body(request)

    web = origin(early)
    proxy = warmproxy("--warm", f"{web.url}=2")
    with proxy.raw() as sock:
        head = f"POST {web.url}/ HTTP/1.1\r\nHost: {web.authority}\r\nContent-Length: {MIB}"
        blocks = list(pattern(MIB))
        sock.sendall(f"{head}\r\n\r\n".encode() + blocks[0])
        answer = read_head(sock)
        assert answer.startswith(b"HTTP/1.1 200")
        assert read(sock, size) == pattern_crc(size)
        for block in blocks[1:]:
            sock.sendall(block)
        sock.sendall(get(f"{web.url}/next", web.authority))
        assert read_head(sock).startswith(b"HTTP/1.1 200")
        assert read(sock, size) == pattern_crc(size)


def test_200_at_once(warmproxy, origin) -> None:
    """200 long answers at the same time are not mixed up and leave no descriptor behind."""
    web = origin()
    proxy = warmproxy("--warm", f"{web.url}=1")
    pipes = descriptors(proxy, "pipe:")
    connections = [proxy.connect() for _ in range(200)]

    def fetch(index: int) -> bool:
        size = 2 * MIB + 4099 * index
        reply = fetch_on(connections[index], f"{web.url}/bytes/{size}")
        return crc(reply.body) == pattern_crc(size)

    with ThreadPoolExecutor(50) as pool:
        assert all(pool.map(fetch, range(200)))
    eventually(lambda: descriptors(proxy, "pipe:") == pipes)


def test_a_tls_upstream_is_not_spliced(warmproxy, origin, authority) -> None:
    """Long bodies to and from an upstream over TLS pass through the daemon as ever."""
    web = origin(tls=authority.server)
    url = f"https://localhost:{web.port}"
    proxy = warmproxy(config={"upstream": [{"url": url, "ca_file": str(authority.file)}]})
    connection = proxy.connect()
    for size in (MIB, 5 * MIB):
        assert crc(fetch_on(connection, f"{url}/bytes/{size}").body) == pattern_crc(size)
        body = b"".join(pattern(size))
        assert fetch_on(connection, f"{url}/sink", "POST", body).status == 200
        assert web.requests[-1].body_crc == crc(body)


def test_sigterm_inside_a_long_answer(warmproxy, origin) -> None:
    """A daemon that is told to stop sends the answer to its end first."""
    web = origin()
    proxy = warmproxy("--warm", f"{web.url}=1", "--grace", "20")
    with proxy.raw() as sock:
        sock.sendall(get(f"{web.url}/bytes/{64 * MIB}", web.authority))
        read_head(sock)
        begun = read(sock, len(b"".join(pattern(MIB))))
        assert begun == pattern_crc(MIB)
        proxy.signal(signal.SIGTERM)
        eventually(lambda: proxy.admin_status("/readyz") == 503)
        rest = 0
        while data := sock.recv(1 << 18):
            rest += len(data)
    assert rest == 63 * MIB
    assert proxy.exit_code() == 0


# -- back-pressure ----------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["answer", "tunnel"])
def test_a_reader_that_stops_costs_nothing(warmproxy, origin, way) -> None:
    """While the client does not read the upstream is not read either, the daemon sleeps, and no
    byte is lost when it goes on."""
    web = origin()
    proxy = warmproxy("--warm", f"{web.url}=1", "--warm", f"https://{web.authority}=1")
    size = 96 * MIB
    with proxy.tunnel(web.authority) if way == "tunnel" else proxy.raw() as sock:
        target = f"/bytes/{size}" if way == "tunnel" else f"{web.url}/bytes/{size}"
        sock.sendall(get(target, web.authority))
        read_head(sock)
        serving = web.requests[-1].connection
        held = until_still(lambda: serving.sent)
        assert held < size
        began, used = time.monotonic(), processor_seconds(proxy)
        eventually(lambda: time.monotonic() - began > 1.0)
        assert processor_seconds(proxy) - used < 0.1
        assert serving.sent == held
        assert read(sock, size) == pattern_crc(size)


# -- tunnels ----------------------------------------------------------------------------------


def test_both_directions_of_a_tunnel_at_once(warmproxy, origin) -> None:
    """64 MiB each way at the same time arrive in order, and the metrics count each byte."""
    size = 64 * MIB
    heard: list[int] = []

    def both(connection: Connection) -> None:
        def listen() -> None:
            value, left = 0, size
            with contextlib.suppress(Gone):
                while left and (data := connection.receive(min(left, 1 << 18))):
                    value = zlib.crc32(data, value)
                    left -= len(data)
                heard.append(value)

        listener = threading.Thread(target=listen, daemon=True)
        listener.start()
        for block in pattern(size):
            connection.send(block)
        listener.join(30)

    far = origin(raw=both)
    proxy = warmproxy("--warm", f"https://{far.authority}=1")
    with proxy.tunnel(far.authority) as sock:

        def send() -> None:
            for block in pattern(size):
                sock.sendall(block)

        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        assert read(sock, size) == pattern_crc(size)
        sender.join(30)
        eventually(lambda: heard)
    assert heard == [pattern_crc(size)]
    eventually(lambda: proxy.count("warmproxy_tunnels") == 0)
    assert proxy.count("warmproxy_tunnel_bytes_total", direction="up") == size
    assert proxy.count("warmproxy_tunnel_bytes_total", direction="down") == size


def flood(connection: Connection) -> None:
    for block in pattern(1 << 40):
        connection.send(block)


def drain(sock: socket.socket) -> None:
    while sock.recv(1 << 20):
        pass


@pytest.mark.parametrize("reader", ["reads on", "has stopped"])
def test_a_reset_while_a_tunnel_is_full(warmproxy, reader) -> None:
    """An upstream that resets in the middle of a stream resets the client's connection: that must
    not look like its end."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        proxy = warmproxy()
        with proxy.tunnel(f"127.0.0.1:{server.getsockname()[1]}") as sock:
            far, _ = server.accept()
            far.settimeout(0.5)  # so long nothing is taken: all is full
            with contextlib.suppress(TimeoutError):
                for block in pattern(8 * MIB if reader == "reads on" else 1 << 40):
                    far.sendall(block)
                    if reader == "reads on":
                        read(sock, len(block))
            reset(far)
            with pytest.raises(ConnectionResetError):
                drain(sock)
        eventually(lambda: proxy.count("warmproxy_tunnels") == 0)


def test_the_client_resets_while_a_tunnel_is_full(warmproxy, origin) -> None:
    """Its upstream hears of it, and the daemon keeps neither socket nor pipe."""
    far = origin(raw=flood)
    proxy = warmproxy("--warm", f"https://{far.authority}=1")
    pipes = descriptors(proxy, "pipe:")
    for nth in range(10):
        sock = proxy.tunnel(far.authority)
        sock.sendall(b"go")
        read(sock, 2 * MIB)
        if nth % 2:
            until_still(lambda: sum(c.sent for c in far.connections))
        reset(sock)
    eventually(lambda: proxy.count("warmproxy_tunnels") == 0)
    eventually(lambda: sum(c.ended is not None for c in far.connections) >= 10)
    eventually(lambda: descriptors(proxy, "pipe:") == pipes)


def test_an_end_behind_a_full_tunnel(warmproxy, origin) -> None:
    """A client that half-closes with much on its way: all of it arrives, then the end, and the
    answer comes back."""
    size = 24 * MIB

    def listen(connection: Connection) -> None:
        value = total = 0
        while data := connection.receive():
            if total < MIB:
                time.sleep(0.001)  # a slow beginning fills everything on the way
            value = zlib.crc32(data, value)
            total += len(data)
        connection.send(f"{total} {value}".encode())

    far = origin(raw=listen)
    proxy = warmproxy("--warm", f"https://{far.authority}=1")
    with proxy.tunnel(far.authority) as sock:
        for block in pattern(size):
            sock.sendall(block)
        sock.shutdown(socket.SHUT_WR)
        answer = b""
        while data := sock.recv(100):
            answer += data
    assert answer.decode() == f"{size} {pattern_crc(size)}"


def test_quiet_tunnels_hold_no_pipe(warmproxy, origin) -> None:
    """Tunnels through which much has gone cost two sockets each while nothing is on its way."""

    def serve(connection: Connection) -> None:
        connection.receive()
        for block in pattern(2 * MIB):
            connection.send(block)
        connection.receive()

    far = origin(raw=serve)
    proxy = warmproxy("--warm", f"https://{far.authority}=2")
    pipes = descriptors(proxy, "pipe:")
    wait_warm(proxy, f"https://{far.authority}", 2)
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(proxy.tunnel(far.authority)) for _ in range(60)]
        for sock in socks:
            sock.sendall(b"go")
        for sock in socks:
            assert read(sock, 2 * MIB) == pattern_crc(2 * MIB)
        eventually(lambda: descriptors(proxy, "pipe:") == pipes)


@pytest.fixture
def few_descriptors() -> Callable[[Warmproxy], None]:
    """Leaves a running daemon no more descriptors than it has."""

    def limit(proxy: Warmproxy) -> None:
        numbers = [int(name) for name in os.listdir(f"/proc/{proxy.pid}/fd")]
        most = max(numbers) + 1
        resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE, (most, most))

    return limit


def test_without_a_descriptor_for_a_pipe(warmproxy, origin, few_descriptors) -> None:
    """Where no pipe is to be had the bytes pass through the daemon, in order and complete."""
    far = origin(raw=lambda connection: connection.send(connection.receive() + b"".join(BLOCKS)))
    proxy = warmproxy("--warm", f"https://{far.authority}=0")
    with proxy.tunnel(far.authority) as sock:
        few_descriptors(proxy)
        sock.sendall(b"go")
        assert read(sock, 2) == crc(b"go")
        assert read(sock, 16 * MIB) == pattern_crc(16 * MIB)


BLOCKS = list(pattern(16 * MIB))
