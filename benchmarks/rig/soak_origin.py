"""Origins that close, restart and move, each with a name and an address of its own on loopback."""

import asyncio
import math
import random
import socket
import ssl
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass

from rig.soak_judge import Past, Try

RESTART = (0.2, 0.6)
"""Seconds for which nobody listens while an origin is restarted hard."""
OVERTAKES = 0.2
"""Seconds after an answer in which a reset may keep it from arriving."""
ABORT = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Habit:
    """An origin that is held warm, or (warm 0) that the daemon has to find out about."""

    name: str
    says: str
    warm: int = 4
    way: str = "http"
    """http; https: it speaks TLS; tcp: clients come through tunnels"""
    idle: tuple[float, float] = (20.0, 20.0)
    """Seconds after which an idle connection is closed: each draws its own."""
    serves: int = 0
    """Requests on one connection at most; 0: any number."""
    announces: bool = True
    """The last answer of a connection says that it is; else the connection ends unsaid, without an
    answer, when one more request has come."""
    swallows: float = 0.0
    """Share of the requests that end their connection, without an answer."""
    restarts: str = ""
    """rolling: what is idle is closed, what is busy after its answer; hard: all is reset"""
    moves: str = ""
    """To another address: kept: the one before serves on for 40 s; gone: for 1 s"""
    stalls: float = 0.0
    """Share of the answers that take 0.3 to 3 seconds."""
    down: bool = False
    """Refuses for minutes."""


HABITS = (
    Habit("two", "idle 2 s", 6, idle=(2, 2)),
    Habit("five", "idle 5 s", 6, idle=(5, 5)),
    Habit("any", "idle 2-20 s", 6, idle=(2, 20)),
    Habit("hundred", "after 100 requests, says so", serves=100),
    Habit("leaves", "at the 51st request", serves=50, announces=False),
    Habit("swallows", "instead of 1 answer in 100", swallows=0.01),
    Habit("rolling", "rolling restarts", 6, idle=(15, 15), restarts="rolling"),
    Habit("hard", "hard restarts", 6, idle=(15, 15), restarts="hard"),
    Habit("moves", "moves, old address kept 40 s", 6, moves="kept"),
    Habit("flees", "moves, old address kept 1 s", 6, idle=(10, 10), moves="gone"),
    Habit("stalls", "0.3-3 s now and then", 8, idle=(10, 10), stalls=0.01),
    Habit("down", "down for minutes", idle=(8, 8), down=True),
    Habit("secure", "https, idle 8 s", 6, "https", idle=(8, 8), serves=500),
    # a tunnel takes a connection for itself: 20 a second are more than the refill of fewer than 10
    Habit("tunnel", "tunnels, rolling restarts", 20, "tcp", idle=(5, 20), restarts="rolling"),
    Habit("learned", "not configured, idle 3 s", 0, idle=(3, 3)),
    Habit("found", "not configured, idle 5-20 s", 0, idle=(5, 20), serves=200),
    Habit("wild", "not configured, hard restarts", 0, idle=(15, 15), restarts="hard"),
)


def body_of(number: int, size: int) -> bytes:
    """The only bytes that may travel as a body of this request, either way."""
    unit = b"%09d." % number
    return (unit * (size // len(unit) + 1))[:size]


class Door:
    """One origin: its listeners, which come and go, and its connections."""

    def __init__(
        self,
        habit: Habit,
        addresses: Callable[[], str],
        port: int,
        arrived: Callable[[int, str, bool], Try],
        tls: ssl.SSLContext | None,
    ) -> None:
        """`addresses` gives one that nobody has; `arrived` is told of each request: its number,
        its method, and whether its connection carried one before."""
        self.habit = habit
        self.port = port
        self.arrived = arrived
        self.past = Past()
        self.open: set[Connection] = set()
        self.ended = 0
        """Connections that this origin ended."""
        self.rng = random.Random(habit.name)
        self._addresses = addresses
        self._tls = tls
        self._servers: dict[str, asyncio.Server] = {}
        self.address = addresses()

    @property
    def host(self) -> str:
        return f"{self.habit.name}.soak.test"

    async def listen(self) -> None:
        address = self.address
        self._servers[address] = await asyncio.get_running_loop().create_server(
            lambda: Connection(self, address), address, self.port, ssl=self._tls, backlog=1024
        )

    def shut(self, address: str, how: str = "reset") -> None:
        """Nobody listens there any more. how: reset, or after: what is busy is answered first."""
        self._servers.pop(address).close()
        self.end_all(how, address)

    def end_all(self, how: str, address: str = "") -> None:
        for connection in list(self.open):
            if address in ("", connection.address):
                connection.leave(how)

    async def restart(self) -> None:
        if self.habit.restarts == "rolling":
            self.end_all("after")
            return
        self.shut(self.address)
        await asyncio.sleep(self.rng.uniform(*RESTART))
        await self.listen()

    async def move(self, say: Callable[[], None]) -> None:
        """`say` tells the names to those who resolve them."""
        before, self.address = self.address, self._addresses()
        await self.listen()
        say()
        await asyncio.sleep(40 if self.habit.moves == "kept" else 1)
        self.shut(before, "after")

    async def be_down(self, seconds: float) -> None:
        began = time.monotonic()
        self.past.outages.append((began, math.inf))
        self.shut(self.address)
        await asyncio.sleep(seconds)
        await self.listen()
        self.past.outages[-1] = (began, time.monotonic())

    def close(self) -> None:
        for address in list(self._servers):
            self.shut(address)


class Connection(asyncio.Protocol):
    """Answers each request with its own bytes; closes when the door's habit says so."""

    def __init__(self, door: Door, address: str) -> None:
        self.door = door
        self.address = address
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._served = 0
        self._try: Try | None = None
        self._busy = self._last = self._over = False
        self._answered = 0.0
        self._limit = door.rng.uniform(*door.habit.idle)
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self.door.open.add(self)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self.door.open.discard(self)
        self._over = True
        self._set(None)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._advance()

    def _set(self, timer: asyncio.TimerHandle | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = timer

    def _wait(self) -> None:
        self._set(self._loop.call_later(self._limit, self.leave, "idle"))

    def _advance(self) -> None:
        head, found, _ = self._buffer.partition(b"\r\n\r\n")
        if self._over or self._busy or not found:
            return
        first, *fields = bytes(head).decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ")
        length = next((int(f[15:]) for f in fields if f.lower().startswith("content-length:")), 0)
        if len(self._buffer) < len(head) + 4 + length:
            return
        sent = bytes(self._buffer[len(head) + 4 : len(head) + 4 + length])
        del self._buffer[: len(head) + 4 + length]
        number, size = map(int, target.rsplit("/", 2)[1:])
        self._try = self.door.arrived(number, method, self._served > 0)
        self._served += 1
        self._busy = True
        rng, habit = self.door.rng, self.door.habit
        is_beyond = habit.serves and self._served > habit.serves
        if is_beyond or rng.random() < habit.swallows:
            self.leave("swallowed")
            return
        self._last = self._last or (habit.announces and self._served == habit.serves)
        delay = rng.uniform(0.3, 3) if rng.random() < habit.stalls else rng.uniform(0, 0.01)
        # a body that is not the request's own is answered with one that is not the answer's
        answer = body_of(number, size) if sent == body_of(number, length) else b"!" * size
        self._set(self._loop.call_later(delay, self._answer, number, answer))

    def _answer(self, number: int, body: bytes) -> None:
        head = f"HTTP/1.1 200 OK\r\nX-Id: {number}\r\n"
        if self._last:
            head += "Connection: close\r\n"
        if number % 4:
            head += f"Content-Length: {len(body)}\r\n\r\n"
        else:
            head += "Transfer-Encoding: chunked\r\n\r\n"
            chunk = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            body = chunk + b"0\r\n\r\n"
        self._transport.write(head.encode() + body)
        assert self._try is not None
        self._try.sent = True
        self._busy = False
        self._answered = time.monotonic()
        if self._last:
            self.leave("idle")
            return
        self._wait()
        self._advance()

    def leave(self, how: str) -> None:
        """how: idle, swallowed: now, in order; after: once what is busy is answered; reset: now, by
        RST"""
        if self._over:
            return
        if how == "after" and self._busy:
            self._last = True
            return
        self._over = True
        self._set(None)
        self.door.ended += 1
        now = time.monotonic()
        if self._try is not None and self._busy:
            self._try.ended = how
        elif self._try is not None and how == "reset" and now - self._answered < OVERTAKES:
            self._try.ended, self._try.sent = how, None
        if not self._busy:
            self.door.past.ends.append((now, self._served > 0))
        if how == "reset":
            sock = self._transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
            self._transport.abort()
        else:
            self._transport.close()
