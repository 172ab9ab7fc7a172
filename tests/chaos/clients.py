"""The chaos clients: a process that asks through the daemon, misbehaves, and checks each answer.

    python -m tests.chaos.clients --seed N --first I --requests N --workers N --proxy PORT
        --books FILE PORT ...

One JSON object a line for each request, written at the end:

    {"id", "method", "kind": of its visit, "port": of the origin, "size", "asked", "ended": times,
     "outcome", "status", "token", "details": of Proxy-Status, "retried", "visit": id of its
     connection's first request, "before": id of the one before it there or null, "what"}

Outcomes: whole; truncated (told so by the framing or a reset); own (the daemon's own answer);
stray (a 408 that an idle connection got); none (ended before any byte); cut_head (ended inside a
head); short (looked whole and was not); foreign (bytes of another request, or of nobody); left
(the client went away); behind (pipelined after an answer that ended the connection); hung.
"""

import argparse
import asyncio
import json
import re
import socket
import struct
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import uvloop

from tests.chaos.script import Ask, Visit, body_of, visit

PATIENCE = 20.0
"""Seconds after which an answer counts as never coming."""
_TOKEN = re.compile(r"error=([a-z_0-9]+)")
_DETAILS = re.compile(r'details="(.*)"')


class Ended(Exception):
    """The connection ended: by eof or by reset."""


class Wire(asyncio.Protocol):
    """What came from the daemon and was not looked at yet."""

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.ended = ""
        self.transport: asyncio.Transport
        self._changed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        self._changed.set()

    def eof_received(self) -> None:
        self.ended = self.ended or "eof"
        self._changed.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended = self.ended or ("reset" if exc else "eof")
        self._changed.set()

    async def more(self) -> None:
        """Wait for more bytes. Raises Ended where none will come."""
        if self.ended:
            raise Ended(self.ended)
        self._changed.clear()
        await self._changed.wait()

    async def line_block(self) -> bytes:
        """A head, without its empty line."""
        while (end := self.buffer.find(b"\r\n\r\n")) < 0:
            await self.more()
        return self.take(end + 4)[:-4]

    async def line(self) -> bytes:
        while (end := self.buffer.find(b"\r\n")) < 0:
            await self.more()
        return self.take(end + 2)[:-2]

    def take(self, count: int) -> bytes:
        taken = bytes(self.buffer[:count])
        del self.buffer[:count]
        return taken

    async def take_into(self, sink: bytearray, count: int) -> None:
        """Move `count` bytes; those that came are moved even where not all do."""
        while count:
            if not self.buffer:
                await self.more()
            data = self.take(count)
            sink += data
            count -= len(data)

    def leave(self, rude: bool) -> None:
        """Go away, by FIN or by RST."""
        if rude:
            sock = self.transport.get_extra_info("socket")
            if sock is not None and sock.fileno() >= 0:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()
        else:
            self.transport.close()


@dataclass
class Answer:
    """How a request ended for its client."""

    outcome: str
    status: int = 0
    fields: dict[str, str] = field(default_factory=dict)
    what: str = ""
    goes_on: bool = False


async def read_answer(wire: Wire, ask: Ask, port: int) -> Answer:
    """Read the answer to `ask` and judge whose it is."""
    status, fields = 0, dict[str, str]()
    try:
        while True:
            status, fields = _parse(await wire.line_block())
            if status >= 200:
                break
            if fields.get("x-id") != str(ask.number):
                return Answer("foreign", status, fields, "interim response of another request")
    except Ended as end:
        if wire.buffer:
            return Answer("cut_head", status, fields, f"{end}: {bytes(wire.buffer[:80])!r}")
        return Answer("none", status, fields, str(end))
    body = bytearray()
    ended = await _read_body(wire, fields, body)
    if "x-id" not in fields:
        return _not_from_origin(status, fields, ended)
    size = int(fields["x-size"])
    goes_on = fields.get("connection", "").lower() != "close" and not ended
    if fields["x-id"] != str(ask.number) or fields["x-port"] != str(port):
        return Answer("foreign", status, fields, f"answer to {fields['x-id']}")
    if bytes(body) != body_of(ask.number, size)[: len(body)] or len(body) > size:
        return Answer("foreign", status, fields, f"{len(body)} bytes that are not its own")
    delimited = "content-length" not in fields and "transfer-encoding" not in fields
    if len(body) == size and (not ended or (delimited and ended == "eof")):
        return Answer("whole", status, fields, goes_on=goes_on)
    if delimited and ended == "eof":
        return Answer("short", status, fields, f"{len(body)} of {size} bytes, then an orderly end")
    if not ended:
        return Answer("short", status, fields, f"{len(body)} of {size} bytes, framed as whole")
    return Answer("truncated", status, fields, f"{len(body)} of {size} bytes, {ended}")


def _parse(block: bytes) -> tuple[int, dict[str, str]]:
    first, *lines = block.decode("latin-1").split("\r\n")
    pairs = (line.split(": ", 1) for line in lines)
    return int(first.split(" ")[1]), {name.lower(): value for name, value in pairs}


async def _read_body(wire: Wire, fields: dict[str, str], body: bytearray) -> str:
    """Read a body into `body`: "" where its framing was complete, else how the connection ended."""
    try:
        if "transfer-encoding" in fields:
            while size := int((await wire.line()).split(b";")[0], 16):
                await wire.take_into(body, size)
                await wire.line()
            while await wire.line():
                pass
        elif "content-length" in fields:
            await wire.take_into(body, int(fields["content-length"]))
        else:
            while True:
                await wire.take_into(body, 1 << 30)
    except Ended as end:
        return str(end)
    return ""


def _not_from_origin(status: int, fields: dict[str, str], ended: str) -> Answer:
    goes_on = fields.get("connection", "").lower() != "close"
    if "x-stray" in fields:
        return Answer("stray", status, fields, f"connection {fields['x-stray']}", goes_on)
    if ended:
        return Answer("cut_head", status, fields, "an answer of the daemon's own, cut")
    if "error=" in fields.get("proxy-status", ""):
        return Answer("own", status, fields, goes_on=goes_on)
    return Answer("foreign", status, fields, "from nobody")


class Clients:
    """Workers that make visits until all requests were asked."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._seed: int = options.seed
        self._next: int = options.first
        self._end: int = options.first + options.requests
        self._proxy: int = options.proxy
        self._ports: list[int] = options.ports
        self.lines: list[dict[str, Any]] = []

    async def work(self) -> None:
        while self._next < self._end:
            made = visit(self._seed, self._next, self._end - self._next, len(self._ports))
            self._next += len(made.asks)
            await self._make(made)

    async def _make(self, made: Visit) -> None:
        loop = asyncio.get_running_loop()
        _, wire = await loop.create_connection(Wire, "127.0.0.1", self._proxy)
        try:
            if made.kind == "pipelined":
                await self._pipelined(wire, made)
            else:
                await self._in_turn(wire, made)
        finally:
            wire.transport.close()

    async def _in_turn(self, wire: Wire, made: Visit) -> None:
        before: int | None = None
        for at, ask in enumerate(made.asks):
            if at and wire.ended:
                # as any client would: the connection is over, the rest goes on a new one
                rest = Visit(made.kind, made.asks[at:])
                await self._make(rest)
                return
            asked = time.monotonic()
            answer = await self._patiently(self._one(wire, made.kind, ask))
            self._note(made, ask, asked, answer, before)
            before = ask.number
            if not answer.goes_on and made.asks[at + 1 :]:
                await self._make(Visit(made.kind, made.asks[at + 1 :]))
                return

    async def _pipelined(self, wire: Wire, made: Visit) -> None:
        asked = time.monotonic()
        for ask in made.asks:
            wire.transport.write(ask.head(self._ports[ask.origin]) + ask.wire_body())
        before: int | None = None
        goes_on = True
        for ask in made.asks:
            if goes_on:
                reading = read_answer(wire, ask, self._ports[ask.origin])
                answer = await self._patiently(reading)
            else:
                answer = Answer("behind")
            self._note(made, ask, asked, answer, before)
            goes_on = answer.goes_on
            before = ask.number

    async def _patiently(self, reading: Any) -> Answer:
        try:
            async with asyncio.timeout(PATIENCE):
                return cast(Answer, await reading)
        except TimeoutError:
            return Answer("hung")

    async def _one(self, wire: Wire, kind: str, ask: Ask) -> Answer:
        port = self._ports[ask.origin]
        if kind == "tunnel":
            authority = f"127.0.0.1:{port}"
            head = f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n"
            wire.transport.write(head.encode())
            try:
                status, fields = _parse(await wire.line_block())
            except Ended as end:
                return Answer("none", 0, {}, f"CONNECT: {end}")
            if status != 200:
                return Answer("own", status, fields, "CONNECT")
        head = ask.head(port, kind)
        body = ask.wire_body()
        if ask.mischief == "none" or wire.ended:
            wire.transport.write(head + body)
            return await self._read(wire, ask, port)
        return await self._mischief(wire, ask, port, head, body)

    async def _read(self, wire: Wire, ask: Ask, port: int, sent_all: bool = True) -> Answer:
        answer = await read_answer(wire, ask, port)
        if not sent_all or wire.transport.get_write_buffer_size():
            answer.goes_on = False  # answered early: the rest of the body cannot be taken back
        return answer

    async def _mischief(self, wire: Wire, ask: Ask, port: int, head: bytes, body: bytes) -> Answer:
        write, half = wire.transport.write, len(body) // 2
        match ask.mischief:
            case "vanish_body":
                write(head + body[:half])
                await asyncio.sleep(ask.pause / 20)
            case "vanish_sent":
                write(head + body)
                await asyncio.sleep(ask.pause / 50)
            case "vanish_response":
                write(head + body)
                if not wire.buffer and not wire.ended:
                    await wire.more()
            case "stall_response":
                write(head + body)
                wire.transport.pause_reading()
                await asyncio.sleep(ask.pause)
                wire.transport.resume_reading()
                return await self._read(wire, ask, port)
            case "expect":
                write(head)
                await self._until_told(wire)
                goes = _may_send_body(wire)
                if goes:
                    write(body)
                return await self._read(wire, ask, port, goes)
            case _:
                write(head + body[:1])
                parts = 1 if ask.mischief == "stall_body" else 4
                cuts = [1 + (len(body) - 1) * part // parts for part in range(parts + 1)]
                for low, high in pairwise(cuts):
                    await asyncio.sleep(ask.pause / parts)
                    if not _may_send_body(wire):
                        return await self._read(wire, ask, port, False)
                    write(body[low:high])
                return await self._read(wire, ask, port)
        wire.leave(ask.rude)
        return Answer("left", what=ask.mischief)

    async def _until_told(self, wire: Wire) -> None:
        """Wait a moment for what Expect: 100-continue asks for."""
        try:
            async with asyncio.timeout(0.3):
                while b"\r\n\r\n" not in wire.buffer:
                    await wire.more()
        except (TimeoutError, Ended):
            pass

    def _note(
        self, made: Visit, ask: Ask, asked: float, answer: Answer, before: int | None
    ) -> None:
        said = answer.fields.get("proxy-status", "")
        token, details = _TOKEN.search(said), _DETAILS.search(said)
        self.lines.append(
            {
                "id": ask.number,
                "method": ask.method,
                "kind": made.kind,
                "port": self._ports[ask.origin],
                "size": len(ask.wire_body()) if ask.size else 0,
                "asked": asked,
                "ended": time.monotonic(),
                "outcome": answer.outcome,
                "status": answer.status,
                "token": token.group(1) if token else "",
                "details": details.group(1) if details else "",
                "retried": "; retried" in said,
                "visit": made.asks[0].number,
                "before": before,
                "what": answer.what,
            }
        )


def _may_send_body(wire: Wire) -> bool:
    """No final answer is there yet, and somebody listens."""
    blocks = bytes(wire.buffer).split(b"\r\n\r\n")
    finals = [b for b in blocks if b.startswith(b"HTTP/1.1 ") and not b.startswith(b"HTTP/1.1 1")]
    return not finals and not wire.ended


async def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Ask everything; the books."""
    clients = Clients(options)
    async with asyncio.TaskGroup() as group:
        for _ in range(options.workers):
            group.create_task(clients.work())
    return clients.lines


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("seed", "first", "requests", "workers", "proxy"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--books", required=True)
    parser.add_argument("ports", type=int, nargs="+")
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        lines = runner.run(run(options))
    with Path(options.books).open("w") as out:
        out.writelines(json.dumps(line) + "\n" for line in lines)


if __name__ == "__main__":
    main()
