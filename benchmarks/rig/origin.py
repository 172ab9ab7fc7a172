"""An origin that closes idle connections and says of each answer when its connection was accepted.

    origin.py IDLE_SECONDS PORT...

Every answer carries X-Accepted (CLOCK_MONOTONIC seconds, comparable in all namespaces of one
machine). `GET /port/N` tells the lives of the latest connections of port N, as
[accepted, ended or null].
"""

import asyncio
import functools
import gc
import json
import socket
import sys
import time
from collections import defaultdict, deque
from typing import ClassVar

BODY = b"x" * 512


class Connection(asyncio.Protocol):
    """One accepted connection. It lives until it has been idle for `idle` seconds."""

    idle = 5.0
    lives_on: ClassVar[defaultdict[int, deque[list[float | None]]]] = defaultdict(
        lambda: deque(maxlen=400)
    )

    def __init__(self, accepted: float) -> None:
        self.accepted = accepted

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.port = transport.get_extra_info("sockname")[1]
        self.received = b""
        self.life = [self.accepted, None]
        self.lives_on[self.port].append(self.life)
        self.timer = asyncio.get_running_loop().call_later(self.idle, transport.close)

    def data_received(self, data: bytes) -> None:
        self.received += data
        while b"\r\n\r\n" in self.received:
            head, _, self.received = self.received.partition(b"\r\n\r\n")
            self.answer(head.split(b" ", 2)[1].decode("latin-1"))

    def answer(self, target: str) -> None:
        self.timer.cancel()
        self.timer = asyncio.get_running_loop().call_later(self.idle, self.transport.close)
        body = BODY
        if target.startswith("/port/"):
            body = json.dumps({"lives": list(self.lives_on[int(target[6:])])}).encode()
        head = (
            f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n"
            f"X-Accepted: {self.accepted:.6f}\r\n\r\n"
        )
        self.transport.write(head.encode() + body)

    def connection_lost(self, exc: Exception | None) -> None:
        self.timer.cancel()
        self.life[1] = time.monotonic()


def accept(listener: socket.socket, starting: set[asyncio.Task[object]]) -> None:
    """Take all that wait, at once: asyncio's own way notes the tenth of ten a millisecond late."""
    loop = asyncio.get_running_loop()
    try:
        while True:
            accepted_socket, _ = listener.accept()
            connection = functools.partial(Connection, time.monotonic())
            task = loop.create_task(loop.connect_accepted_socket(connection, accepted_socket))
            starting.add(task)
            task.add_done_callback(starting.discard)
    except BlockingIOError:
        pass


async def main(idle: float, ports: list[int]) -> None:
    Connection.idle = idle
    loop = asyncio.get_running_loop()
    starting: set[asyncio.Task[object]] = set()
    for port in ports:
        listener = socket.create_server(("0.0.0.0", port), backlog=1024)
        listener.setblocking(False)
        loop.add_reader(listener, accept, listener, starting)
    gc.freeze()
    gc.disable()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]), [int(port) for port in sys.argv[2:]]))
