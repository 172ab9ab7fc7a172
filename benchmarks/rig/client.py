"""Bursts of new client connections, timed one by one.

One thread and one epoll: connections are opened within a fraction of a millisecond of each other.
A connection's time runs from before its own connect() to the last byte of its answer. What a client
can have ready beforehand (its socket, its ClientHello) is made before the time runs.
"""

import gc
import select
import socket
import ssl
import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import Self

Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Exchange:
    """What a client does on a connection once it is open: up to three steps."""

    request: bytes  # b"" for none: done when the connection is open
    connect: bytes = b""  # sent first; a 200 makes the connection a tunnel
    tls: ssl.SSLContext | None = None  # the client's own handshake, before the request


@dataclass(slots=True)
class Answer:
    started: float  # CLOCK_MONOTONIC, before connect()
    seconds: float
    asked: float = 0.0  # when the first byte was sent
    shaken: float | None = None  # seconds until the client's own handshake was done
    # by the origin, when whoever dialled it had the connection, and had finished its handshake
    connected: float | None = None
    secured: float | None = None
    body: bytes = b""
    error: str = ""


def get(origin: Address, target: str = "/") -> bytes:
    """A GET as sent to the origin itself; with an absolute `target`, as sent to a proxy."""
    host, port = origin
    return f"GET {target} HTTP/1.1\r\nHost: {host}:{port}\r\nAccept: */*\r\n\r\n".encode()


def through_proxy(origin: Address, scheme: str = "http") -> Exchange:
    host, port = origin
    return Exchange(get(origin, f"{scheme}://{host}:{port}/"))


def through_tunnel(origin: Address, tls: ssl.SSLContext | None = None) -> Exchange:
    """CONNECT, then one round trip inside the tunnel; two with TLS 1.3."""
    host, port = origin
    connect = f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode()
    return Exchange(get(origin), connect, tls)


class _Connection:
    def __init__(self, exchange: Exchange) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.tls: ssl.SSLObject | None = None
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.is_open = False
        self.received = b""
        self.prepare(exchange)

    def prepare(self, exchange: Exchange) -> None:
        """The next exchange; it begins when the burst is run."""
        self.answer = Answer(0.0, 0.0)
        self.talking = False
        self.talk = self._talk(exchange)
        self.hello = b""
        if exchange.tls is not None:
            self.shaking = exchange.tls.wrap_bio(self.incoming, self.outgoing)
            _shaken(self.shaking)
            self.hello = self.outgoing.read()

    def start(self, address: Address) -> None:
        self.answer.started = time.monotonic()
        if not self.is_open:
            self.socket.connect_ex(address)

    def step(self) -> bool:
        """React to an event; true when the answer is complete, or never will be."""
        try:
            if not self.talking:
                if error := self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    raise OSError(error, "connect failed")
                self.is_open = self.talking = True
                self.answer.asked = time.monotonic()
                next(self.talk)
            while data := self.socket.recv(65536):
                self.talk.send(data)
            raise OSError("closed by the other side")
        except StopIteration:
            return self.finish()
        except (BlockingIOError, ssl.SSLWantReadError):
            return False
        except OSError as error:
            return self.finish(str(error))

    def finish(self, error: str = "") -> bool:
        self.answer.seconds = time.monotonic() - self.answer.started
        self.answer.error = error
        return True

    def _talk(self, exchange: Exchange) -> Generator[None, bytes, None]:
        """Sends, and is sent what arrives."""
        if exchange.connect:
            self.socket.sendall(exchange.connect)
            yield from self._head()
        if exchange.tls is not None:
            self.socket.sendall(self.hello)
            while self.tls is None:
                self.incoming.write((yield))
                if _shaken(self.shaking):
                    self.tls = self.shaking
                    self.answer.shaken = time.monotonic() - self.answer.started
                    self.tls.write(exchange.request)  # in one packet with the last flight
                self.socket.sendall(self.outgoing.read())
        elif self.tls is not None:
            self.tls.write(exchange.request)
            self.socket.sendall(self.outgoing.read())
        elif exchange.request:
            self.socket.sendall(exchange.request)
        if not exchange.request:
            return
        head = yield from self._head()
        fields = dict(
            line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line
        )
        length = int(fields[b"content-length"])
        while len(self.received) < length:
            self._take((yield))
        self.answer.body, self.received = self.received[:length], self.received[length:]
        if b"x-connected" in fields:
            self.answer.connected = float(fields[b"x-connected"])
        if b"x-secured" in fields:
            self.answer.secured = float(fields[b"x-secured"])

    def _head(self) -> Generator[None, bytes, bytes]:
        while b"\r\n\r\n" not in self.received:
            self._take((yield))
        head, _, self.received = self.received.partition(b"\r\n\r\n")
        if head[9:12] != b"200":
            lines = head.decode("latin-1").split("\r\n")
            told = [line for line in lines if line.lower().startswith("proxy-status")]
            raise OSError("; ".join(lines[:1] + told))
        return head

    def _take(self, data: bytes) -> None:
        if self.tls is None:
            self.received += data
            return
        self.incoming.write(data)
        try:
            while True:
                self.received += self.tls.read(65536)
        except ssl.SSLWantReadError:
            pass


def _shaken(tls: ssl.SSLObject) -> bool:
    """Go on with the handshake; whether it is done."""
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


class Burst:
    """`n` connections that do the same at once; afterwards they may do the next thing."""

    def __init__(self, exchange: Exchange, n: int) -> None:
        self.connections = [_Connection(exchange) for _ in range(n)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self.connections:
            connection.socket.close()

    def prepare(self, exchange: Exchange) -> None:
        """The same connections will do this next; its `tls` only where they have none yet."""
        for connection in self.connections:
            connection.prepare(exchange)

    def run(self, address: Address, timeout: float = 5.0) -> list[Answer]:
        """Open the connections that are not open, and do the exchange on each."""
        waiting = {c.socket.fileno(): c for c in self.connections}
        gc.disable()
        try:
            with select.epoll() as events:
                for fileno, connection in waiting.items():
                    connection.start(address)
                    events.register(fileno, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
                give_up = time.monotonic() + timeout
                while waiting and (left := give_up - time.monotonic()) > 0:
                    for fileno, _ in events.poll(left):
                        if fileno in waiting and waiting[fileno].step():
                            del waiting[fileno]
                for connection in waiting.values():
                    connection.finish(f"no answer within {timeout} s")
        finally:
            gc.enable()
        return [connection.answer for connection in self.connections]


def burst(address: Address, exchange: Exchange, n: int, timeout: float = 5.0) -> list[Answer]:
    """`n` new connections at once, closed afterwards."""
    with Burst(exchange, n) as connections:
        return connections.run(address, timeout)


def handshake(address: Address) -> float:
    """The time of a TCP handshake: one round trip."""
    with socket.socket() as probe:
        started = time.monotonic()
        probe.connect(address)
        return time.monotonic() - started
