"""Mixed load through a proxy: GET, POST and CONNECT in turn, at a given rate, with no second try.

Clients behave as common ones do: connections are kept and used again unless the answer said
`Connection: close` or the other side has closed by then. Whatever goes wrong after that counts as a
failed request.
"""

import asyncio
import contextlib
import itertools
from dataclasses import dataclass, field

KINDS = ("GET", "POST", "CONNECT")
TIMEOUT = 10.0
BODY = b"x" * 1000


class Failed(Exception):
    """What a client of the proxy would have seen as an error."""


@dataclass(slots=True)
class Load:
    """`plain` and `tunnelled` are authorities of an origin that answers 200 with a body."""

    proxy: tuple[str, int]
    plain: str
    tunnelled: str
    sent: int = 0
    done: int = 0
    failures: list[str] = field(default_factory=list)
    opened: int = 0
    """Connections to the proxy."""
    _kept: list["Connection"] = field(default_factory=list)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def run(self, rate: float, stop: asyncio.Event) -> None:
        """Ask `rate` times a second until `stop` is set and all is answered. Who is late catches
        up: the load does not wait for the proxy."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        for kind in itertools.cycle(KINDS):
            if stop.is_set():
                break
            wait = began + self.sent / rate - loop.time()
            if wait > 0:
                await asyncio.sleep(wait)
            self.sent += 1
            task = loop.create_task(self._ask(kind))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if self._tasks:
            await asyncio.wait(self._tasks)
        for connection in self._kept:
            connection.writer.close()
        self._kept.clear()

    async def _ask(self, kind: str) -> None:
        try:
            async with asyncio.timeout(TIMEOUT):
                await (self._tunnel() if kind == "CONNECT" else self._forward(kind))
        except (Failed, OSError, TimeoutError, asyncio.IncompleteReadError, ValueError) as error:
            self.failures.append(f"{kind}: {type(error).__name__} {error}")
        else:
            self.done += 1

    async def _forward(self, method: str) -> None:
        connection = await self._connection()
        try:
            url = f"http://{self.plain}/"
            reusable = await connection.exchange(method, url, self.plain)
        except BaseException:
            connection.writer.close()
            raise
        if reusable:
            self._kept.append(connection)
        else:
            connection.writer.close()

    async def _tunnel(self) -> None:
        connection = await self._open()
        try:
            await connection.connect(self.tunnelled)
            await connection.exchange("GET", "/", self.tunnelled)
        finally:
            connection.writer.close()

    async def _connection(self) -> "Connection":
        while self._kept:
            connection = self._kept.pop()
            if not connection.reader.at_eof():
                return connection
            connection.writer.close()
        return await self._open()

    async def _open(self) -> "Connection":
        self.opened += 1
        return Connection(*await asyncio.open_connection(*self.proxy))


@dataclass(slots=True)
class Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def exchange(self, method: str, target: str, host: str) -> bool:
        """One request and its answer; whether there may be another."""
        body = BODY if method == "POST" else b""
        head = f"{method} {target} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n"
        self.writer.write(head.encode() + body)
        answer = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        if answer.split(" ")[1] != "200":
            raise Failed(answer.replace("\r\n", " | "))
        _, _, length = answer.partition("\r\ncontent-length: ")
        await self.reader.readexactly(int(length.split("\r\n")[0]))
        return "\r\nconnection: close\r\n" not in answer

    async def connect(self, authority: str) -> None:
        self.writer.write(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode())
        answer = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        if answer.split(" ")[1] != "200":
            raise Failed(answer.replace("\r\n", " | "))

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.writer.close()
