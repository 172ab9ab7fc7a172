"""Clients of soak.py: at a given rate, of several kinds, with no second try."""

import asyncio
import contextlib
import itertools
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rig.soak_judge import Ask
from rig.soak_origin import Door, body_of

PATIENCE = 30.0
"""Seconds after which an answer counts as never coming."""
METHODS, OFTEN = ("GET", "PUT", "POST"), (60, 10, 30)
NEW = 0.2
"""Share of the forwarded requests that come on a client connection of their own."""
LARGE = 0.02


class Broken(Exception):
    """What came is no answer to what was asked."""


@dataclass(slots=True)
class Wire:
    """A client connection to the proxy."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def head(self) -> tuple[int, dict[str, str]]:
        block = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = block[:-4].split("\r\n")
        pairs = (line.split(": ", 1) for line in lines)
        return int(first.split(" ")[1]), {name.lower(): value for name, value in pairs}

    async def body(self, fields: dict[str, str]) -> bytes:
        if "transfer-encoding" not in fields:
            return await self.reader.readexactly(int(fields.get("content-length", 0)))
        body = b""
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            body += (await self.reader.readexactly(size + 2))[:-2]
        await self.reader.readexactly(2)
        return body


class Clients:
    """`done` is told how each request ended."""

    def __init__(
        self, proxy: tuple[str, int], doors: Sequence[Door], done: Callable[[Ask, Door], None]
    ) -> None:
        self._proxy = proxy
        self._doors = doors
        self._done = done
        self._rng = random.Random(7)
        self._kept: list[Wire] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.sent = 0

    async def run(self, rate: float, stop: asyncio.Event) -> None:
        """Ask `rate` times a second until `stop` is set and all has ended. Who is late catches
        up: the load does not wait for the proxy."""
        began = time.monotonic()
        for number in itertools.count(1):
            if stop.is_set():
                break
            wait = began + number / rate - time.monotonic()
            if wait > 0:
                await asyncio.sleep(wait)
            self.sent += 1
            task = asyncio.create_task(self._ask(number, self._rng.choice(self._doors)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if self._tasks:
            await asyncio.wait(self._tasks)
        for wire in self._kept:
            wire.writer.close()
        self._kept.clear()

    async def _ask(self, number: int, door: Door) -> None:
        method = self._rng.choices(METHODS, OFTEN)[0]
        ask = Ask(number, method, door.habit.way == "tcp", time.monotonic())
        try:
            async with asyncio.timeout(PATIENCE):
                await (self._tunnel(ask, door) if ask.tunnel else self._forward(ask, door))
        except TimeoutError:
            ask.outcome = "hung"
        except asyncio.IncompleteReadError as error:
            ask.outcome = ask.outcome or ("cut" if error.partial else "none")
        except OSError:
            ask.outcome = ask.outcome or "none"
        except (Broken, ValueError, asyncio.LimitOverrunError):
            ask.outcome = "wrong"
        ask.ended = time.monotonic()
        self._done(ask, door)

    async def _forward(self, ask: Ask, door: Door) -> None:
        new = self._rng.random() < NEW
        wire = await self._wire(new)
        try:
            place = f"{door.habit.way}://{door.host}:{door.port}"
            goes_on = await self._exchange(wire, ask, door, place)
        except BaseException:
            wire.writer.close()
            raise
        if goes_on and not new:
            self._kept.append(wire)
        else:
            wire.writer.close()

    async def _tunnel(self, ask: Ask, door: Door) -> None:
        wire = await self._wire(True)
        with contextlib.closing(wire.writer):
            authority = f"{door.host}:{door.port}"
            wire.writer.write(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode())
            status, fields = await wire.head()
            if status != 200:
                _own(ask, fields)
                return
            await self._exchange(wire, ask, door, "")

    async def _exchange(self, wire: Wire, ask: Ask, door: Door, place: str) -> bool:
        """Whether the connection can carry another request."""
        rng = self._rng
        size = rng.randrange(150_000) if rng.random() < LARGE else rng.randrange(4_000)
        body = b"" if ask.method == "GET" else body_of(ask.number, rng.randrange(2_000))
        head = f"{ask.method} {place}/{ask.number}/{size} HTTP/1.1\r\nHost: {door.host}:{door.port}"
        wire.writer.write(f"{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        status, fields = await wire.head()
        if "x-id" not in fields:
            await wire.body(fields)
            _own(ask, fields)
            return fields.get("connection", "").lower() != "close"
        if status != 200 or fields["x-id"] != str(ask.number):
            raise Broken
        ask.outcome = "cut"  # until all of it is there
        if await wire.body(fields) != body_of(ask.number, size):
            raise Broken
        ask.outcome = "whole"
        return fields.get("connection", "").lower() != "close"

    async def _wire(self, new: bool) -> Wire:
        while self._kept and not new:
            wire = self._kept.pop()
            if not wire.reader.at_eof():
                return wire
            wire.writer.close()
        return Wire(*await asyncio.open_connection(*self._proxy))


def _own(ask: Ask, fields: dict[str, str]) -> None:
    """An answer of the daemon's own says why in Proxy-Status (RFC 9209)."""
    said = fields.get("proxy-status", "")
    if "error=" not in said:
        raise Broken
    ask.outcome = "own"
    ask.token = said.partition("error=")[2].partition(";")[0].strip()
    ask.retried = "; retried" in said
