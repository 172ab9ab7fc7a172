"""An origin that closes idle connections at moments which it tells, and knows what crossed a close.

    race_origin.py LATE CONTROL PORT/FRESH/USED/JITTER...

A connection of PORT is closed when it has been idle for FRESH seconds if it never carried a
request, else for USED, each time varied at random by +-JITTER (a share). From that moment on
nothing is served on it. The FIN leaves LATE seconds later: 0 where a real link delays it, a round
trip where there is none and both ways have to be made up for.

`GET /port/N` at CONTROL tells of the open connections of port N whether they have carried a request
and when they will be closed: [[used, closes_at]]. `GET /arrivals` tells when each request came, by
its id (a POST's body, the end of a GET's target), each time that it came: {id: [[when, served]]}.
Every answer says when its connection was accepted. Times are CLOCK_MONOTONIC.
"""

import asyncio
import gc
import json
import random
import socket
import struct
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial

LISTENS_ON = 1.0
"""Seconds that a closed connection is read from, to see what crossed the close."""
ABORT = struct.pack("ii", 1, 0)


@dataclass
class Port:
    fresh: float
    used: float
    jitter: float
    late: float
    open: set["Connection"] = field(default_factory=set)

    def limit(self, used: bool) -> float:
        return (self.used if used else self.fresh) * random.uniform(
            1 - self.jitter, 1 + self.jitter
        )


class Books:
    def __init__(self) -> None:
        self.ports: dict[int, Port] = {}
        self.arrivals: defaultdict[str, list[tuple[float, bool]]] = defaultdict(list)


class Connection(asyncio.Protocol):
    def __init__(self, books: Books, port: Port) -> None:
        self.books, self.port = books, port
        self.used = self.is_closed = False
        self.received = b""
        self.arrived = 0.0
        self.closes_at = 0.0
        self.loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.accepted = time.monotonic()
        self.port.open.add(self)
        self.is_idle()

    def is_idle(self) -> None:
        limit = self.port.limit(self.used)
        self.closes_at = time.monotonic() + limit
        self.timer = self.loop.call_later(limit, self.close)

    def close(self) -> None:
        self.is_closed = True
        self.port.open.discard(self)
        self.timer = self.loop.call_later(self.port.late, self.finish)

    def finish(self) -> None:
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.timer = self.loop.call_later(LISTENS_ON, self.transport.close)

    def data_received(self, data: bytes) -> None:
        if not self.received:
            self.arrived = time.monotonic()
        self.received += data
        head, end, body = self.received.partition(b"\r\n\r\n")
        length = next(
            (int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length:")),
            0,
        )
        if not end or len(body) < length:
            return
        self.received = b""
        name = body.decode() or head.split(b" ", 2)[1].decode().rpartition("/")[2]
        self.books.arrivals[name].append((self.arrived, not self.is_closed))
        if self.is_closed:
            # as the system answers for a program that has closed
            sock = self.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
            self.timer.cancel()
            self.transport.abort()
            return
        self.timer.cancel()
        self.used = True
        accepted = f"X-Accepted: {self.accepted:.6f}"
        answer = f"HTTP/1.1 200 OK\r\nContent-Length: {len(name)}\r\n{accepted}\r\n\r\n{name}"
        self.transport.write(answer.encode())
        self.is_idle()

    def connection_lost(self, exc: Exception | None) -> None:
        self.timer.cancel()
        self.port.open.discard(self)


class Control(asyncio.Protocol):
    def __init__(self, books: Books) -> None:
        self.books = books

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        target = data.split(b" ", 2)[1].decode()
        body = json.dumps(self.told(target)).encode()
        self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    def told(self, target: str) -> object:
        if target == "/arrivals":
            return self.books.arrivals
        if target.startswith("/port/"):
            port = self.books.ports[int(target[6:])]
            return [(connection.used, connection.closes_at) for connection in port.open]
        return None


async def main(late: float, control: int, words: list[str]) -> None:
    loop = asyncio.get_running_loop()
    books = Books()
    servers = [await loop.create_server(partial(Control, books), "0.0.0.0", control)]
    for word in words:
        number, *limits = map(float, word.split("/"))
        port = books.ports[int(number)] = Port(*limits, late)
        factory = partial(Connection, books, port)
        servers.append(await loop.create_server(factory, "0.0.0.0", int(number), backlog=100))
    gc.freeze()
    await asyncio.gather(*(server.serve_forever() for server in servers))


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
