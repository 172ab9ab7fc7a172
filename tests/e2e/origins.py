"""A programmable origin: plain sockets and threads, so that it can misbehave in every way.

It logs what it saw, with time.monotonic(): when each connection was accepted, each request and
how each connection ended. Tests assert on that log.

Paths that its usual answer knows: `/bytes/N` sends N bytes; `/echo` sends the body back; `/hold`
waits for `origin.gate`; `/close` ends the connection after the answer. Everything else says hello.
"""

import contextlib
import select
import socket
import ssl
import struct
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tests.e2e.harness import eventually, free_port, takes_more, until_still

KEPT_BODY = 1 << 20
BACKLOG = 512
BLOCK = bytes(range(251)) * 1044  # 256 KiB, of a length that no buffer's size divides
GIB = 1 << 30


def pattern(size: int) -> Iterator[bytes]:
    """`size` bytes in blocks, always the same ones."""
    whole, rest = divmod(size, len(BLOCK))
    for _ in range(whole):
        yield BLOCK
    if rest:
        yield BLOCK[:rest]


def pattern_crc(size: int) -> int:
    crc = 0
    for block in pattern(size):
        crc = zlib.crc32(block, crc)
    return crc


class Gone(Exception):
    """The peer ended the connection, or the test did."""


@dataclass
class Request:
    """One request, as it arrived."""

    connection: "Connection"
    nth: int
    """1 for the first on its connection"""
    at: float
    """when its head was there"""
    method: str
    target: str
    version: str
    headers: list[tuple[str, str]]
    body: bytearray = field(default_factory=bytearray)
    """its first MiB"""
    body_length: int = 0
    body_crc: int = 0

    def header(self, name: str) -> str | None:
        values = self.values(name)
        return values[0] if values else None

    def values(self, name: str) -> list[str]:
        return [v for k, v in self.headers if k.lower() == name.lower()]


class Connection:
    """One accepted connection, served by its own thread."""

    def __init__(self, origin: "Origin", number: int, sock: socket.socket) -> None:
        self.origin = origin
        self.number = number
        self.opened_at = time.monotonic()
        self.peer: tuple[str, int] = sock.getpeername()[:2]
        self.fin_at: float | None = None
        """when we sent our FIN (or reset)"""
        self.eof_at: float | None = None
        """when the peer's FIN or reset arrived"""
        self.ended: str | None = None
        """fin or reset, whichever the peer sent; 'us' where we closed without seeing either"""
        self.requests: list[Request] = []
        self.late = bytearray()
        """what arrived after our FIN"""
        self.sent = 0
        self.close_after = False
        self._sock = sock
        self._buffer = b""
        self._cut = False
        self._reset = False
        self._thread = threading.Thread(
            target=self._run, name=f"origin-{origin.port}-{number}", daemon=True
        )

    def serve(self) -> None:
        """From now on; who made it has put it where the tests look, before anybody is answered."""
        self._thread.start()

    def __repr__(self) -> str:
        return f"<Connection {self.number} requests={len(self.requests)} ended={self.ended}>"

    @property
    def open(self) -> bool:
        """Neither side has ended it."""
        return self.fin_at is None and self.eof_at is None and self.ended is None

    # -- for tests, from another thread

    def fin(self) -> None:
        """Send a FIN, as a close does, but keep reading: to see what the peer does about it."""
        self.fin_at = time.monotonic()
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._sock, socket.SHUT_WR)

    def reset(self) -> None:
        self.fin_at = time.monotonic()
        self._reset = True
        with contextlib.suppress(OSError):
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.cut()

    def cut(self) -> None:
        """Close it now, whatever it is doing."""
        self._cut = True
        with contextlib.suppress(OSError):
            # A reading end that is shut wakes the thread, which closes: only it may do that.
            socket.socket.shutdown(self._sock, socket.SHUT_RD if self._reset else socket.SHUT_RDWR)

    def say(self, data: bytes) -> None:
        """Write bytes that nobody asked for."""
        self._sock.sendall(data)

    def join(self) -> None:
        self._thread.join(10)
        assert not self._thread.is_alive(), f"{self!r} hangs"

    # -- for answers, from its own thread

    def send(self, data: bytes | memoryview) -> None:
        try:
            self._sock.sendall(data)
        except OSError as error:
            raise Gone from error
        self.sent += len(data)

    def receive(self, most: int = 1 << 18) -> bytes:
        """The next bytes, b"" at the peer's FIN."""
        if self._buffer:
            data, self._buffer = self._buffer[:most], self._buffer[most:]
            return data
        try:
            data = self._sock.recv(most)
        except OSError as error:
            raise Gone from error
        if not data and self.eof_at is None and not self._cut:
            self.eof_at = time.monotonic()
        return data

    def reply(
        self,
        body: bytes = b"",
        status: str = "200 OK",
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Content-Type: text/html"]
        lines += [f"{k}: {v}" for k, v in headers]
        if self.close_after:
            lines.append("Connection: close")
        self.send("\r\n".join([*lines, "", ""]).encode() + body)

    def read_body(self, request: Request) -> None:
        """Read it to its end. `origin.reader_marks` says where to dawdle on the way."""
        marks = list(self.origin.reader_marks)
        for data in self._body(request):
            room = KEPT_BODY - len(request.body)
            if room > 0:
                request.body += data[:room]
            request.body_length += len(data)
            request.body_crc = zlib.crc32(data, request.body_crc)
            if marks and request.body_length >= marks[0]:
                marks.pop(0)
                until_still(self.origin.reader_waits_for)

    # -- inside

    def _body(self, request: Request) -> Iterator[bytes]:
        if (request.header("transfer-encoding") or "").lower() == "chunked":
            while True:
                size = int(self._line().split(b";")[0], 16)
                if size == 0:
                    while self._line():
                        pass
                    return
                yield from self._exactly(size)
                assert self._line() == b""
        yield from self._exactly(int(request.header("content-length") or 0))

    def _exactly(self, size: int) -> Iterator[bytes]:
        while size:
            data = self.receive(min(size, 1 << 18))
            if not data:
                raise Gone
            size -= len(data)
            yield data

    def _line(self) -> bytes:
        while b"\r\n" not in self._buffer:
            buffer, self._buffer = self._buffer, b""
            data = self.receive()
            self._buffer = buffer + data
            if not data:
                raise Gone
        line, _, self._buffer = self._buffer.partition(b"\r\n")
        return line

    def _readable(self, timeout: float | None) -> bool:
        if self._buffer or (isinstance(self._sock, ssl.SSLSocket) and self._sock.pending()):
            return True
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        return bool(poll.poll(None if timeout is None else timeout * 1000))

    def _wait_for_request(self) -> None:
        """Return when there are bytes; end the connection when its idle time is over."""
        origin = self.origin
        if not self._readable(origin.idle_used if self.requests else origin.idle_fresh):
            if origin.farewell:
                self.send(origin.farewell)
            if origin.idle_ends_in_reset:
                self.reset()
            else:
                self.fin()
            self._linger()

    def _linger(self) -> None:
        """Our FIN is out: note what still comes until the peer's FIN does."""
        while True:
            data = self.receive()
            if not data:
                raise Gone
            self.late += data

    def _run(self) -> None:
        origin = self.origin
        try:
            if origin.hang_up:
                self.fin()
                self._linger()
            self._wait_for_request()
            if origin.tls is not None:
                self._sock = origin.tls.wrap_socket(
                    self._sock, server_side=True, do_handshake_on_connect=False
                )
                self._sock.do_handshake()
            if origin.raw is not None:
                origin.raw(self)
                self.fin()
                self._linger()
            while True:
                self._one_request()
                self._wait_for_request()
        except (Gone, ssl.SSLError, OSError):
            pass
        finally:
            self._close()

    def _one_request(self) -> None:
        head = self._line()
        if self.fin_at is not None:
            self.late += head
            raise Gone
        method, target, version = head.decode("latin-1").split(" ")
        headers = []
        while line := self._line():
            name, _, value = line.decode("latin-1").partition(":")
            headers.append((name, value.strip()))
        request = Request(
            self, len(self.requests) + 1, time.monotonic(), method, target, version, headers
        )
        self.requests.append(request)
        self.origin.requests.append(request)
        self.origin.answer(self, request)
        if self.close_after or (request.header("connection") or "").lower() == "close":
            self.fin()
            self._linger()

    def _close(self) -> None:
        if self.ended is None:
            if self.eof_at is not None:
                self.ended = "fin"
            elif self._cut or self.fin_at is not None:
                self.ended = "us"
            else:
                self.eof_at = time.monotonic()
                self.ended = "reset"
        if not self._reset and isinstance(self._sock, ssl.SSLSocket) and not self._cut:
            self._sock.settimeout(1)
            with contextlib.suppress(OSError, ValueError):
                self._sock.unwrap()
        self._sock.close()


Answer = Callable[[Connection, Request], None]


def usual(connection: Connection, request: Request) -> None:
    """The answer of an origin that was not given another."""
    origin = connection.origin
    if request.header("expect"):
        connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
    connection.read_body(request)
    path = request.target.partition("?")[0]
    if path == "/hold":
        if not origin.gate.wait(30):
            raise Gone
    elif path == "/close":
        connection.close_after = True
    elif path == "/echo":
        connection.reply(bytes(request.body))
        return
    elif path.startswith("/bytes/"):
        size = int(path.removeprefix("/bytes/"))
        connection.send(f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode())
        for block in pattern(size):
            connection.send(block)
        return
    connection.reply(origin.greeting.encode() if request.method != "HEAD" else b"")


class Origin:
    """Listens on a port of its own from the start; `close` ends everything."""

    def __init__(
        self,
        answer: Answer = usual,
        *,
        raw: Callable[[Connection], None] | None = None,
        tls: ssl.SSLContext | None = None,
        idle_fresh: float | None = None,
        idle_used: float | None = None,
        farewell: bytes = b"",
        idle_ends_in_reset: bool = False,
        hang_up: bool = False,
        listening: bool = True,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self.answer = answer
        self.raw = raw
        """serves the bare connection instead of HTTP: the far end of a tunnel"""
        self.tls = tls
        self.idle_fresh = idle_fresh
        """seconds that a connection without any request is kept; None is for ever"""
        self.idle_used = idle_used
        """the same after at least one request"""
        self.farewell = farewell
        """bytes written before an idle connection is closed"""
        self.idle_ends_in_reset = idle_ends_in_reset
        self.hang_up = hang_up
        """close each connection as soon as it is accepted"""
        self.gate = threading.Event()
        """/hold answers once it is set"""
        self.reader_marks: tuple[int, ...] = ()
        """offsets in a request's body at which reading stops until the sender is stuck"""
        self.reader_waits_for: Callable[[], int] = int
        """what the sender has sent so far"""
        self.connections: list[Connection] = []
        self.requests: list[Request] = []
        self.token = uuid.uuid4().hex
        self.greeting = f"<p>warm hello {self.token}</p>"
        self.host = host
        self.port = port or free_port()
        self._accepting = threading.Event()
        self._accepting.set()
        self._listener: socket.socket | None = None
        self._acceptor: threading.Thread | None = None
        if listening:
            self.up()

    @property
    def authority(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.authority}"

    def open_connections(self) -> list[Connection]:
        return [c for c in list(self.connections) if c.open]

    def idle_connections(self) -> list[Connection]:
        """Open and never used."""
        return [c for c in self.open_connections() if not c.requests]

    def wait_open(self, count: int, timeout: float = 10.0) -> list[Connection]:
        """Wait until exactly `count` connections are open."""

        eventually(
            lambda: len(self.open_connections()) == count,
            timeout,
            lambda: f"{count} open, but {self.connections}",
        )
        return self.open_connections()

    def wait_requests(self, count: int, timeout: float = 10.0) -> list[Request]:
        eventually(
            lambda: len(self.requests) >= count, timeout, lambda: f"{count}: {self.requests}"
        )
        return list(self.requests)

    # -- coming and going

    def up(self) -> None:
        listener = socket.create_server((self.host, self.port), backlog=BACKLOG)
        self._listener = listener
        self._acceptor = threading.Thread(
            target=self._accept, args=(listener,), name=f"origin-{self.port}", daemon=True
        )
        self._acceptor.start()

    def down(self) -> None:
        """Refuse connections from now on and end those that are open."""
        self._stop_listening()
        for connection in self.connections:
            if connection.ended is None:
                connection.cut()
        for connection in self.connections:
            connection.join()

    def refuse(self) -> None:
        """Refuse connections from now on; those that are open stay."""
        self._stop_listening()

    def pause_accepting(self) -> None:
        """Leave new connections in the kernel's backlog (the accept under way takes one more)."""
        self._accepting.clear()

    def resume_accepting(self) -> None:
        self._accepting.set()

    @contextlib.contextmanager
    def deaf(self) -> Iterator[None]:
        """Neither accept nor refuse connections meanwhile; those that are open stay."""
        assert self._listener is not None
        self._accepting.clear()
        self._listener.listen(0)
        accepted = len(self.connections)
        filling = [socket.create_connection((self.host, self.port))]
        eventually(lambda: len(self.connections) > accepted)  # the accept that was under way
        filling += fill_backlog((self.host, self.port))
        try:
            yield
        finally:
            for sock in filling:
                sock.close()
            self._listener.listen(BACKLOG)
            self._accepting.set()

    def close(self) -> None:
        self.gate.set()
        self._accepting.set()
        self.down()

    def _stop_listening(self) -> None:
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            assert self._acceptor is not None
            self._acceptor.join(10)
            self._listener.close()
            self._listener = None

    def _accept(self, listener: socket.socket) -> None:
        while True:
            self._accepting.wait()
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = Connection(self, len(self.connections) + 1, sock)
            self.connections.append(connection)
            connection.serve()


def fill_backlog(address: tuple[str, int]) -> list[socket.socket]:
    """Connect until one stays unconnected."""
    filling = []
    for _ in range(16):
        sock = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
        filling.append(sock)
        sock.setblocking(False)
        sock.connect_ex(address)
        if not takes_more(sock, 0.1):
            return filling
    raise AssertionError("the backlog does not fill up")


class Blackhole:
    """A listener whose backlog is full: a dial to it is neither accepted nor refused."""

    def __init__(self) -> None:
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(0)
        self.port: int = self._listener.getsockname()[1]
        self._filling = fill_backlog(("127.0.0.1", self.port))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        for sock in self._filling:
            sock.close()
        self._listener.close()
