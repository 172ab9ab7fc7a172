"""The parent's hold on one of the processes."""

import asyncio
import itertools
import os
import signal
import socket
import time
from collections.abc import Callable, Iterable
from typing import Any

from warmproxy.errors import StartError, WarmproxyError
from warmproxy.processes.link import (
    Answer,
    Ask,
    Begin,
    Failed,
    Farewell,
    Leave,
    Link,
    Message,
    Opened,
    Refusal,
    Reload,
    Stop,
    WantsToGo,
)
from warmproxy.processes.seed import Seed
from warmproxy.sample import Sample
from warmproxy.settings import Settings

ANSWER_SECONDS = 1.0
"""For an answer; who takes longer is named in its place."""
LATE_SECONDS = 5.0
"""Beyond the grace time, until a process that should have ended is killed."""


class Child:
    """Made by `start`."""

    def __init__(self, number: int, wants_to_go: Callable[["Child"], None]) -> None:
        self.number = number
        """from 1"""
        self.pid = 0
        self.began = time.monotonic()
        self.ended = asyncio.Event()
        """It has hung up: it is ending, or was killed."""
        self.over = asyncio.Event()
        """It has ended, and the system has nothing left of it."""
        self.is_leaving = False
        """It was told to stop."""
        self.last: Sample | None = None
        """What it said at last of what it has counted."""
        self._wants_to_go = wants_to_go
        self._opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asked: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._asks = itertools.count()
        self._link: Link

    @classmethod
    async def start(
        cls,
        seed: Seed,
        sockets: Iterable[socket.socket],
        begin: Begin,
        wants_to_go: Callable[["Child"], None],
    ) -> "Child":
        """A process that accepts connections; `wants_to_go` is called where it was told to end by
        somebody else. Raises StartError."""
        child = cls(begin.number, wants_to_go)
        ours, theirs = socket.socketpair()
        with theirs:
            child.pid = await seed.start([theirs, *sockets])
        child._link = await Link.over(ours, child._heard, child._hung_up)
        child._link.send(begin)
        try:
            await child._opened
        except BaseException:
            child.is_leaving = True
            child._link.close()
            await seed.end_of(child.pid)
            raise
        return child

    async def ask(self, *names: str, argument: Any = None) -> dict[str, Any]:
        """What it tells, by name. Raises TimeoutError, or ConnectionError where it is gone."""
        number = next(self._asks)
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._asked[number] = future
        self._link.send(Ask(number, names, argument))
        if self.ended.is_set():
            future.set_exception(ConnectionResetError())
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await future
        finally:
            del self._asked[number]

    def reload(self, settings: Settings) -> None:
        """Have it take other settings, with the same listeners."""
        self._link.send(Reload(settings))

    def leave(self, pid: int) -> None:
        """Let it drain patiently: another serves in its place."""
        if not self.is_leaving:
            self.is_leaving = True
            self._link.send(Leave(pid))

    def stop(self) -> None:
        """Let it drain, if it does not yet."""
        if not self.is_leaving:
            self.is_leaving = True
            self._link.send(Stop())

    def cut(self) -> None:
        """Its time is over."""
        self.stop()
        self._link.send(Stop())

    async def end_within(self, grace: float) -> None:
        """Wait until it is over, having been stopped; kill it where that takes too long."""
        try:
            async with asyncio.timeout(grace + LATE_SECONDS):
                await self.over.wait()
        except TimeoutError:
            os.kill(self.pid, signal.SIGKILL)  # its number is its own until the seed reaps it
            await self.over.wait()

    def _hung_up(self) -> None:
        self.ended.set()
        if not self._opened.done():
            self._opened.set_exception(StartError(f"process {self.number} ended as it started"))
        for future in self._asked.values():
            if not future.done():
                future.set_exception(ConnectionResetError())

    def _heard(self, message: Message) -> None:
        match message:
            case Opened():
                self._opened.set_result(None)
            case Failed() if not self._opened.done():
                self._opened.set_exception(StartError(message.reason))
            case WantsToGo():
                self._wants_to_go(self)
            case Farewell():
                self.last = message.sample
                self._link.close()
            case Answer() | Refusal():
                future = self._asked.get(message.ask)
                if future is None or future.done():
                    return
                if isinstance(message, Refusal):
                    future.set_exception(
                        WarmproxyError(message.reason, status=message.status, token=message.token)
                    )
                else:
                    self.last = message.told.get("sample", self.last)
                    future.set_result(message.told)
