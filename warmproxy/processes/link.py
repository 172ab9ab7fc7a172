"""What parent and process tell each other, over a pair of sockets.

A message is its length in four bytes and then a pickle: both ends are forks of one program, run by
one user, and nobody else has the sockets.
"""

import asyncio
import pickle
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from warmproxy.net.listener import Address
from warmproxy.settings import Settings


@dataclass(frozen=True, slots=True)
class Begin:
    """Parent to process, once: who it is."""

    number: int
    """from 1"""
    settings: Settings
    """its share"""
    addresses: tuple[Address, ...]
    """of its listening sockets"""
    pseudonym: bytes


@dataclass(frozen=True, slots=True)
class Reload:
    """Parent to process: other settings, with the same listeners."""

    settings: Settings


@dataclass(frozen=True, slots=True)
class Leave:
    """Parent to process: the process with this id serves in its place, so drain patiently."""

    pid: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Parent to process: drain; and the second time, cut what is left."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Parent to process: `names` are of what it can tell, see Serving.tell."""

    ask: int
    """the number that the answer bears"""
    names: tuple[str, ...]
    argument: Any = None


@dataclass(frozen=True, slots=True)
class Answer:
    ask: int
    told: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Refusal:
    """It answers by this error: what WarmproxyError is made of."""

    ask: int
    reason: str
    status: int
    token: str


@dataclass(frozen=True, slots=True)
class Opened:
    """Process to parent: its doors are open."""


@dataclass(frozen=True, slots=True)
class Failed:
    """Process to parent: it cannot start."""

    reason: str


@dataclass(frozen=True, slots=True)
class WantsToGo:
    """Process to parent: it got a SIGTERM of its own, and serves on until it is replaced."""


@dataclass(frozen=True, slots=True)
class Farewell:
    """Process to parent: its last word."""

    sample: Any


ToProcess = Begin | Reload | Leave | Stop | Ask
ToParent = Opened | Failed | WantsToGo | Answer | Refusal | Farewell
Message = ToProcess | ToParent


class Link(asyncio.Protocol):
    """One end. `heard` gets each message of the other end, `ended` is called when that is gone."""

    def __init__(self, heard: Callable[[Message], None], ended: Callable[[], None]) -> None:
        self._heard = heard
        self._ended = ended
        self._input = bytearray()
        self._transport: asyncio.Transport

    @classmethod
    async def over(
        cls, sock: socket.socket, heard: Callable[[Message], None], ended: Callable[[], None]
    ) -> "Link":
        """A link that takes the socket over."""
        loop = asyncio.get_running_loop()
        sock.setblocking(False)
        _, link = await loop.create_unix_connection(lambda: cls(heard, ended), sock=sock)
        return link

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended()

    def data_received(self, data: bytes) -> None:
        self._input += data
        while len(self._input) >= 4:
            end = 4 + int.from_bytes(self._input[:4])
            if len(self._input) < end:
                return
            message = pickle.loads(self._input[4:end])
            del self._input[:end]
            self._heard(message)

    def send(self, message: Message) -> None:
        """Into the void where the other end is gone."""
        if not self._transport.is_closing():
            data = pickle.dumps(message)
            self._transport.write(len(data).to_bytes(4) + data)

    def close(self) -> None:
        """Once all is sent."""
        self._transport.close()
