"""Bytes in, bytes out: a client and an origin that keep exactly what went over the wire."""

import contextlib
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Self

from tests.e2e.daemon import Warmproxy
from tests.e2e.harness import eventually
from tests.e2e.origins import Connection, Gone, Origin

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
SECONDS = 10.0


def request(
    method: str,
    target: str,
    *lines: str,
    version: str = "1.1",
    host: str | None = "client.example",
    body: bytes | None = None,
) -> bytes:
    """A request as a client writes it; `body` adds its Content-Length."""
    fields = [*([] if host is None else [f"Host: {host}"]), *lines]
    if body is not None:
        fields.append(f"Content-Length: {len(body)}")
    head = "\r\n".join([f"{method} {target} HTTP/{version}", *fields, "", ""])
    return head.encode("latin-1") + (body or b"")


class Ended(Exception):
    """The peer sent its FIN before what was waited for had come; holds what there was."""


class Reader:
    """Takes a byte stream apart, keeping every byte."""

    def __init__(self, receive: Callable[[], bytes]) -> None:
        self._receive = receive
        self._buffer = b""

    def until(self, mark: bytes) -> bytes:
        while mark not in self._buffer:
            self._more()
        return self.exactly(self._buffer.index(mark) + len(mark))

    def exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._more()
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    def chunks(self) -> bytes:
        """A chunked body as it is on the wire, with its trailers and last empty line."""
        whole = b""
        while True:
            line = self.until(b"\r\n")
            whole += line
            size = int(line.split(b";")[0], 16)
            if size == 0:
                break
            whole += self.exactly(size + 2)
        while line != b"\r\n":
            line = self.until(b"\r\n")
            whole += line
        return whole

    def rest(self) -> bytes:
        """Everything up to the peer's FIN; raises ConnectionResetError where it was a reset."""
        while data := self._receive():
            self._buffer += data
        return self.exactly(len(self._buffer))

    def _more(self) -> None:
        data = self._receive()
        if not data:
            raise Ended(self._buffer)
        self._buffer += data


class Message:
    """A head and its body, as they were on the wire."""

    def __init__(self, head: bytes) -> None:
        self.head = head
        self.body = b""
        line, *fields = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
        self.line = line
        self.fields: list[tuple[bytes, bytes]] = []
        for field in fields:
            name, colon, value = field.partition(b": ")
            assert colon, field
            self.fields.append((name, value))

    def __repr__(self) -> str:
        return f"<{(self.head + self.body)!r}>"

    def values(self, name: str) -> list[bytes]:
        return [v for k, v in self.fields if k.lower() == name.lower().encode()]

    def names(self) -> set[bytes]:
        return {name.lower() for name, _ in self.fields}

    def members(self, name: str) -> list[bytes]:
        """Of a list-valued field, in order."""
        return [m.strip() for value in self.values(name) for m in value.split(b",")]

    def read_body(self, reader: Reader) -> None:
        """By what the head says; without a length there is none."""
        if self.values("transfer-encoding") == [b"chunked"]:
            self.body = reader.chunks()
        elif length := self.values("content-length"):
            self.body = reader.exactly(int(length[0]))


class Received(Message):
    """One request at the origin."""

    def __init__(self, connection: Connection, nth: int, head: bytes, reader: Reader) -> None:
        super().__init__(head)
        self.connection = connection
        self.nth = nth
        self.complete = False
        """its body was read to the end"""
        self._reader = reader

    @property
    def target(self) -> str:
        return self.line.split(b" ")[1].decode()

    def read(self) -> None:
        self.read_body(self._reader)
        self.complete = True

    def exactly(self, size: int) -> bytes:
        """The next bytes of the connection."""
        return self._reader.exactly(size)

    def rest(self) -> bytes:
        """All that comes until the proxy's FIN."""
        return self._reader.rest()

    def send(self, data: bytes) -> None:
        self.connection.send(data)

    def reset(self) -> None:
        """End the connection by RST; what calls it is over."""
        self.connection.reset()
        raise Gone


Answer = Callable[[Received], object]


class Web:
    """An origin that keeps each request's bytes in `received`.

    `answer` is the bytes to answer with once the request is complete, or a function that does it
    all by itself; where that returns something true the origin closes.
    """

    def __init__(self, answer: bytes | Answer = OK) -> None:
        self.answer = answer
        self.received: list[Received] = []
        self.origin = Origin(raw=self._serve)
        self.url = self.origin.url
        self.authority = self.origin.authority
        self.gate = self.origin.gate

    @property
    def connections(self) -> list[Connection]:
        return self.origin.connections

    @property
    def targets(self) -> list[str]:
        return [r.target for r in self.received]

    def wait(self, count: int) -> list[Received]:
        """Wait until that many requests' heads have come."""
        eventually(lambda: len(self.received) >= count, says=lambda: self.received)
        return self.received

    def hold(self) -> None:
        """For answers: go on when the test sets the gate."""
        if not self.gate.wait(SECONDS):
            raise Gone

    def _serve(self, connection: Connection) -> None:
        reader = Reader(connection.receive)
        nth = 0
        try:
            while True:
                nth += 1
                received = Received(connection, nth, reader.until(b"\r\n\r\n"), reader)
                self.received.append(received)
                if callable(self.answer):
                    if self.answer(received):
                        return
                else:
                    received.read()
                    received.send(self.answer)
        except Ended:
            raise Gone from None


def then_close(answer: bytes) -> Answer:
    """Send that, then a FIN."""

    def reply(received: Received) -> bool:
        received.read()
        received.send(answer)
        return True

    return reply


class Client:
    """One connection to the proxy."""

    def __init__(self, proxy: Warmproxy) -> None:
        self.sock = proxy.raw(SECONDS)
        self.reader = Reader(lambda: self.sock.recv(1 << 16))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def reset(self) -> None:
        """Leave by RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.sock.close()

    def finish(self) -> None:
        """Send a FIN and go on reading."""
        self.sock.shutdown(socket.SHUT_WR)

    def head(self) -> Message:
        """The next head, interim or final; its body is still to be read."""
        return Message(self.reader.until(b"\r\n\r\n"))

    def answer(self, method: str = "GET") -> Message:
        """The next response with its body, where that has a length."""
        message = self.head()
        status = status_of(message)
        if method != "HEAD" and status not in (204, 304) and status >= 200:
            message.read_body(self.reader)
        return message

    def ask(self, data: bytes) -> Message:
        """Send one request and read its answer."""
        self.send(data)
        return self.answer(data.split(b" ")[0].decode())

    def rest(self) -> bytes:
        return self.reader.rest()

    def silent(self) -> bool:
        """Nothing has come, no end either."""
        self.sock.setblocking(False)
        try:
            self.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        finally:
            self.sock.settimeout(SECONDS)
        return False


def status_of(message: Message) -> int:
    return int(message.line.split(b" ")[1])


def error_of(message: Message) -> str:
    """The error type of our own member of Proxy-Status (RFC 9209, 2)."""
    (value,) = message.values("proxy-status")
    name, *parameters = value.decode().split("; ")
    assert name == "warmproxy"
    return dict(p.split("=", 1) for p in parameters if "=" in p)["error"]


def refused(proxy: Warmproxy, web: Web, data: bytes, status: int) -> Message:
    """Send what must not be forwarded: it gets that status, the connection's end, nothing more;
    and the origin sees nothing of it."""
    with Client(proxy) as client:
        client.send(data)
        answer = client.answer()
        assert status_of(answer) == status, answer
        assert b"close" in answer.members("connection"), answer
        assert client.rest() == b""
    before = len(web.received)
    with Client(proxy) as client:
        assert status_of(client.ask(request("GET", f"{web.url}/good"))) == 200
    assert web.targets[before:] == ["/good"]
    assert set(web.targets) == {"/good"}, web.received
    return answer


def broken(proxy: Warmproxy, web: Web) -> Message:
    """Let the origin answer wrongly, as it is set to: the client gets a 502 and keeps its own
    connection, the origin's is closed and the next request goes over another one."""
    with Client(proxy) as client:
        answer = client.ask(request("GET", f"{web.url}/bad"))
        assert status_of(answer) == 502, answer
        assert error_of(answer) == "http_protocol_error"
        bad = web.received[-1].connection
        eventually(lambda: bad.ended, says=lambda: bad)
        web.answer = OK
        good = client.ask(request("GET", f"{web.url}/good"))
        assert (status_of(good), good.body) == (200, b"ok")
        assert web.received[-1].connection is not bad
    return answer


@contextlib.contextmanager
def paused(proxy: Warmproxy) -> Iterator[None]:
    """The daemon stands still meanwhile, then finds all that has come at once."""
    proxy.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        proxy.signal(signal.SIGCONT)


@contextlib.contextmanager
def closing(web: Web) -> Iterator[Web]:
    try:
        yield web
    finally:
        web.origin.close()
