"""The chaos origin: a process of its own that serves some ports, badly, and keeps the books.

    python -m tests.chaos.origin --seed N --books FILE --restart-every S PORT:TEMPER ...

A TEMPER is `wild` (all tricks, ends idle connections at random moments), `busy` (tricks, but leaves
idle connections alone) or `idle` (no trick but ending idle connections). The books are written at
SIGTERM, one JSON object a line:

    {"k": "try", "id", "method", "port", "conn", "nth": 1 for the first request of its connection,
     "at", "whole": when the request was read to its end or null, "interim", "sent", "total": bytes
     of the final response, "trick", "framing", "end": how it ended, "late": it came after our FIN,
     "wrong": its body was not its own}
    {"k": "end", "port", "conn", "served", "at", "how"}   a connection that we ended, and why
    {"k": "restart", "port", "from", "to"}

Times are CLOCK_MONOTONIC, which all processes share.
"""

import argparse
import asyncio
import json
import os
import signal
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, cast

import uvloop

from tests.chaos.script import (
    CALM_TRICKS,
    RESTART,
    TRICKS,
    Part,
    body_of,
    log_uniform,
    part,
    response_of,
)

LINGER = 3.0
"""Seconds for which a half-closed connection is read on."""
_READ_ON = ("fin", "408")


class Books:
    """What happened at this origin."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = Random(seed)
        self.lines: list[dict[str, Any]] = []
        self.attempts: dict[int, int] = {}
        self.connections = 0

    def attempt(self, number: int) -> int:
        """How often this request was seen before."""
        seen = self.attempts.get(number, 0)
        self.attempts[number] = seen + 1
        return seen

    def write(self, file: Path) -> None:
        with file.open("w") as out:
            out.writelines(json.dumps(line) + "\n" for line in self.lines)


class BodyReader:
    """Takes a request's body out of a buffer, by length or by chunks."""

    def __init__(self, head: bytes) -> None:
        fields = head.lower()
        self.data = bytearray()
        self._chunked = b"\r\ntransfer-encoding: chunked" in fields
        self._left = 0
        self._last = False
        self.done = False
        if not self._chunked:
            _, found, rest = fields.partition(b"\r\ncontent-length:")
            self._left = int(rest.split(b"\r\n")[0]) if found else 0
            self.done = not self._left

    def feed(self, buffer: bytearray) -> None:
        """Take what belongs to the body from the front of `buffer`."""
        while not self.done and buffer:
            if self._left:
                self.data += buffer[: self._left]
                taken = min(self._left, len(buffer))
                del buffer[:taken]
                self._left -= taken
                if not self._chunked:
                    self.done = not self._left
                continue
            line, found, _ = bytes(buffer[:100]).partition(b"\r\n")
            if not found:
                return
            del buffer[: len(line) + 2]
            if self._last:
                self.done = not line
            elif line:  # else the end of a chunk's data
                self._left = int(line.split(b";")[0], 16)
                self._last = not self._left


class Door:
    """One port: its listener, which comes and goes, and its connections."""

    def __init__(self, books: Books, port: int, temper: str) -> None:
        self.books = books
        self.port = port
        self.tricks = CALM_TRICKS if temper == "idle" else TRICKS
        self.ends_idle = 0.0 if temper == "busy" else 0.3
        self.open: set[Connection] = set()
        self._server: asyncio.Server | None = None

    async def listen(self) -> None:
        self._server = await asyncio.get_running_loop().create_server(
            lambda: Connection(self), "127.0.0.1", self.port, backlog=1024
        )

    async def shut(self) -> None:
        """What a process that dies does to its sockets."""
        assert self._server is not None
        self._server.close()
        for connection in list(self.open):
            connection.end("restart", "die")
        await asyncio.sleep(0)

    async def restart(self) -> None:
        began = time.monotonic()
        await self.shut()
        await asyncio.sleep(self.books.rng.uniform(*RESTART))
        await self.listen()
        self.books.lines.append(
            {"k": "restart", "port": self.port, "from": began, "to": time.monotonic()}
        )


class Connection(asyncio.Protocol):
    """One accepted connection: reads requests, plays its part on each, or ends in between."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._books = door.books
        self._books.connections += 1
        self._number = self._books.connections
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._buffer = bytearray()
        self._served = 0
        self._over = False
        self._late = False
        self._try: dict[str, Any] | None = None
        self._part: Part
        self._body: BodyReader
        self._steps: list[tuple[float, Callable[[], None]]] = []
        self._started = False
        self._answered = False
        self._timer: asyncio.TimerHandle | None = None

    # ── asyncio.Protocol ─────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._door.open.add(self)
        self._wait(0.005, 1.0)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._over:
            self._note_late(bytes(self._buffer))
            return
        self._advance()

    def eof_received(self) -> None:
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self._door.open.discard(self)
        self._stop_timer()
        if not self._over:
            self._over = True
            self._close_try("peer")

    # ── reading ──────────────────────────────────────────────────────────────────────────────

    def _advance(self) -> None:
        while not self._over:
            if self._try is None and not self._begin():
                return
            assert self._try is not None
            if not self._body.done:
                self._body.feed(self._buffer)
                if not self._body.done:
                    return
            if self._try["whole"] is None:
                self._try["whole"] = time.monotonic()
                self._try["wrong"] = not self._is_own_body()
            if not self._started:
                self._started = True
                self._step()
            if self._over or not self._answered:
                return
            self._close_try("answered")
            if not self._buffer:
                self._wait(0.0003, 0.5)

    def _begin(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return False
        self._stop_timer()
        head = bytes(self._buffer[: end + 2])
        del self._buffer[: end + 4]
        number, method = _who(head)
        self._served += 1
        self._try = self._line(number, method)
        self._part = part(self._books.seed, number, self._books.attempt(number), self._door.tricks)
        self._try["trick"] = self._part.trick
        self._try["framing"] = self._part.framing
        self._body = BodyReader(head)
        self._answered = self._started = False
        self._steps = self._plan(number, method)
        if b"\r\nexpect: 100-continue" in head.lower():
            self._interim(100)
        if self._part.trick in ("early", "drop"):
            self._started = True
            self._step()
        return not self._over

    def _is_own_body(self) -> bool:
        assert self._try is not None
        return bytes(self._body.data) == body_of(self._try["id"], len(self._body.data))

    def _line(self, number: int, method: str) -> dict[str, Any]:
        return {
            "k": "try",
            "id": number,
            "method": method,
            "port": self._door.port,
            "conn": self._number,
            "nth": self._served,
            "at": time.monotonic(),
            "whole": None,
            "interim": 0,
            "sent": 0,
            "total": 0,
            "trick": "",
            "framing": "",
            "end": "",
            "late": False,
            "wrong": False,
        }

    # ── answering ────────────────────────────────────────────────────────────────────────────

    def _plan(self, number: int, method: str) -> list[tuple[float, Callable[[], None]]]:
        """What to do and how long to wait before each step."""
        p = self._part
        assert self._try is not None
        whole = response_of(number, method, self._door.port, p)
        self._try["total"] = len(whole)
        at = int(p.cut * len(whole))
        end = (p.after, lambda: self.end(p.trick, p.end))
        steps: list[tuple[float, Callable[[], None]]] = []
        if p.trick in ("swallow", "drop"):
            return [end]
        steps += [(p.delay if not n else 0.0, self._interim) for n in range(p.interims)]
        if p.trick == "interim":
            return [*steps, end]
        if p.trick == "cut":
            if p.framing == "close":  # an end in order would make it whole
                end = (p.after, lambda: self.end("cut", "reset"))
            return [*steps, *self._sends(whole[:at]), end]
        if p.trick == "stall":
            return [*steps, *self._sends(whole[: at if p.end == "fin" else 0])]
        if p.trick == "pause":
            steps += self._sends(whole[:at])
            steps.append((0.03 + p.cut * 0.4, lambda: self._send(whole[at:])))
        else:
            steps += self._sends(whole)
        if p.trick == "leave" or (p.trick == "early" and p.end != "fin"):
            return [*steps, end]
        if p.framing == "close":
            return [*steps, (0.0, lambda: self.end("delimited", "fin"))]
        return [*steps, (0.0, self._done)]

    def _sends(self, data: bytes) -> list[tuple[float, Callable[[], None]]]:
        size = len(data) // self._part.pieces + 1
        pieces = [data[i : i + size] for i in range(0, len(data), size)]
        delay = self._part.delay
        return [(delay, lambda piece=piece: self._send(piece)) for piece in pieces]  # type: ignore[misc]

    def _step(self) -> None:
        """Do the steps up to the next pause."""
        self._timer = None
        while self._steps and not self._over:
            delay, act = self._steps[0]
            if delay > 0:
                self._steps[0] = (0.0, act)
                self._timer = self._loop.call_later(delay, self._step_later)
                return
            del self._steps[0]
            act()

    def _step_later(self) -> None:
        self._step()
        if self._answered and not self._over:
            self._advance()

    def _send(self, data: bytes) -> None:
        assert self._try is not None
        self._try["sent"] += len(data)
        self._transport.write(data)

    def _interim(self, status: int = 103) -> None:
        assert self._try is not None
        self._try["interim"] += 1
        self._transport.write(b"HTTP/1.1 %d Soon\r\nX-Id: %d\r\n\r\n" % (status, self._try["id"]))

    def _done(self) -> None:
        self._answered = True

    # ── the end ──────────────────────────────────────────────────────────────────────────────

    def end(self, why: str, how: str) -> None:
        """End this connection: `how` is one of ENDS, die (a process does), or 408 (and a FIN)."""
        if self._over:
            return
        self._over = True
        self._stop_timer()
        unsent = self._transport.get_write_buffer_size()
        if self._try is not None:
            self._try["sent"] = max(0, self._try["sent"] - unsent)
        in_try = self._try is not None
        self._close_try(f"{why}:{how}")
        if not in_try and how not in _READ_ON:  # what is in the socket came for nobody
            self._note_late(bytes(self._buffer) + self._peek())
        self._books.lines.append(
            {
                "k": "end",
                "port": self._door.port,
                "conn": self._number,
                "served": self._served,
                "at": time.monotonic(),
                "how": f"{why}:{how}",
            }
        )
        if how == "408":
            self._transport.write(
                b"HTTP/1.1 408 Request Timeout\r\nX-Stray: %d\r\nContent-Length: 0\r\n"
                b"Connection: close\r\n\r\n" % self._number
            )
        if how in _READ_ON:
            self._transport.write_eof()
            self._timer = self._loop.call_later(LINGER, self._transport.abort)
        elif how == "close":
            self._transport.close()
        else:
            if how == "reset":
                sock = self._transport.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()

    def _wait(self, low: float, high: float) -> None:
        """Idle now: perhaps end at a random moment."""
        rng = self._books.rng
        if rng.random() < self._door.ends_idle:
            how = rng.choice(("fin", "close", "reset", "408"))
            delay = log_uniform(rng, low, high)
            self._timer = self._loop.call_later(delay, self.end, "idle", how)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close_try(self, end: str) -> None:
        line, self._try = self._try, None
        if line is not None:
            line["end"] = end
            self._books.lines.append(line)

    def _peek(self) -> bytes:
        """What the kernel has received and the loop has not."""
        fileno = self._transport.get_extra_info("socket").fileno()
        with socket.socket(fileno=os.dup(fileno)) as sock:
            try:
                return sock.recv(65536, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            except OSError:
                return b""

    def _note_late(self, data: bytes) -> None:
        """A request that came when this connection was over, or is found unread at its end."""
        if b"\r\n\r\n" not in data or self._late:
            return
        number, method = _who(data)
        if number >= 0:
            self._late = True
            self._served += 1
            line = self._line(number, method)
            self._books.attempt(number)
            self._books.lines.append(line | {"late": True, "end": "late"})


def _who(head: bytes) -> tuple[int, str]:
    """The id and the method, the id -1 where this is no request's head."""
    first = head.split(b"\r\n", 1)[0].split(b" ")
    if len(first) != 3 or not first[1].startswith(b"/c/"):
        return -1, ""
    number = int(first[1][3:])
    _, found, rest = head.partition(b"\r\nX-Id: ")
    assert found, head
    assert int(rest.split(b"\r\n")[0]) == number, head
    return number, first[0].decode()


async def serve(options: argparse.Namespace) -> Books:
    """Serve until SIGTERM; the books."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    books = Books(options.seed)
    doors = []
    for word in options.doors:
        port, _, temper = word.partition(":")
        doors.append(Door(books, int(port), temper))
        await doors[-1].listen()
    print("ready", flush=True)
    restarts = asyncio.ensure_future(_restarts(doors, books.rng, options.restart_every))
    await stop.wait()
    restarts.cancel()
    for door in doors:
        for connection in list(door.open):
            connection.end("stop", "close")
    return books


async def _restarts(doors: list[Door], rng: Random, every: float) -> None:
    """Restart one door at a time, now and then; never one again before its clients recovered."""
    while every:
        await asyncio.sleep(rng.uniform(0.5, 1.5) * every)
        await rng.choice(doors).restart()
        await asyncio.sleep(1.0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--books", required=True)
    parser.add_argument("--restart-every", type=float, default=0.0)
    parser.add_argument("doors", nargs="+")
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        books = runner.run(serve(options))
    books.write(Path(options.books))


if __name__ == "__main__":
    main()
