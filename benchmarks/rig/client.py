"""Bursts of new client connections, timed one by one.

One thread and one epoll: connections are opened within a fraction of a millisecond of each other.
A connection's time runs from before its own connect() to the last byte of its last answer.
"""

import gc
import select
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass

Address = tuple[str, int]


@dataclass(slots=True)
class Answer:
    started: float  # CLOCK_MONOTONIC, before connect()
    seconds: float
    accepted: float | None = None  # by the origin, from its X-Accepted
    body: bytes = b""
    error: str = ""


def get(origin: Address, target: str = "/") -> bytes:
    """A GET as sent to the origin itself; with an absolute `target`, as sent to a proxy."""
    host, port = origin
    return f"GET {target} HTTP/1.1\r\nHost: {host}:{port}\r\nAccept: */*\r\n\r\n".encode()


def through_proxy(origin: Address) -> list[bytes]:
    host, port = origin
    return [get(origin, f"http://{host}:{port}/")]


def through_tunnel(origin: Address) -> list[bytes]:
    """CONNECT, then one round trip inside the tunnel."""
    host, port = origin
    return [f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode(), get(origin)]


class _Connection:
    def __init__(self, requests: Sequence[bytes]) -> None:
        self.requests = list(requests)
        self.socket = socket.socket()
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.connected = False
        self.received = b""
        self.answer = Answer(0.0, 0.0)

    def open(self, address: Address) -> None:
        self.answer.started = time.monotonic()
        self.socket.connect_ex(address)

    def step(self) -> bool:
        """React to an event; true when the last answer is complete, or never will be."""
        try:
            if not self.connected:
                if error := self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    raise OSError(error, "connect failed")
                self.connected = True
                self.socket.sendall(self.requests.pop(0))
            while data := self.socket.recv(65536):
                self.received += data
                if self._take_answers():
                    return True
            raise OSError("closed by the other side")
        except BlockingIOError:
            return False
        except OSError as error:
            return self._finish(error=str(error))

    def _take_answers(self) -> bool:
        while b"\r\n\r\n" in self.received:
            head, _, rest = self.received.partition(b"\r\n\r\n")
            if head[9:12] != b"200":
                lines = head.decode("latin-1").split("\r\n")
                told = [line for line in lines if line.lower().startswith("proxy-status")]
                return self._finish(error="; ".join(lines[:1] + told))
            if self.requests:  # this was the answer to CONNECT: it has no body
                self.received = rest
                self.socket.sendall(self.requests.pop(0))
                continue
            fields = dict(
                line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line
            )
            if len(rest) < int(fields[b"content-length"]):
                return False
            if b"x-accepted" in fields:
                self.answer.accepted = float(fields[b"x-accepted"])
            self.answer.body = rest
            return self._finish()
        return False

    def _finish(self, error: str = "") -> bool:
        self.answer.seconds = time.monotonic() - self.answer.started
        self.answer.error = error
        return True


def burst(
    address: Address, requests: Sequence[bytes], n: int, timeout: float = 5.0
) -> list[Answer]:
    """Open `n` connections at once and send these requests on each, one after the other."""
    connections = {c.socket.fileno(): c for c in (_Connection(requests) for _ in range(n))}
    answers = [c.answer for c in connections.values()]
    opened = list(connections.values())
    gc.disable()
    try:
        with select.epoll() as events:
            for connection in opened:
                connection.open(address)
                events.register(
                    connection.socket, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET
                )
            give_up = time.monotonic() + timeout
            while connections and (left := give_up - time.monotonic()) > 0:
                for fileno, _ in events.poll(left):
                    if fileno in connections and connections[fileno].step():
                        del connections[fileno]
            for connection in connections.values():
                connection._finish(error=f"no answer within {timeout} s")
    finally:
        gc.enable()
        for connection in opened:
            connection.socket.close()
    return answers
