"""Listening sockets, bound before anything is said of being ready, and the doors made of them."""

import asyncio
import errno
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Literal, NamedTuple

from warmproxy.errors import StartError

Factory = Callable[[], asyncio.BaseProtocol]
"""What makes the protocol of a connection that was accepted."""

Group = Literal["first", "further"] | None

BACKLOG = 4096
"""Connections that may wait to be accepted; the system caps it (net.core.somaxconn)."""


def listen(
    host: str,
    port: int,
    *,
    purpose: str,
    optional: bool = False,
    group: Group = None,
) -> socket.socket | None:
    """A bound, listening, non-blocking socket. `purpose` is for the message.

    In a `group`, connections to the one address are spread over its sockets (SO_REUSEPORT). The
    first is bound as if it were alone, so that who has the port already is still noticed.

    None where `optional` and the machine has no such address (no IPv6). Raises StartError.
    """
    version = ip_address(host).version
    where = f"[{host}]:{port}" if version == 6 else f"{host}:{port}"
    sock: socket.socket | None = None
    try:
        sock = socket.socket(socket.AF_INET6 if version == 6 else socket.AF_INET)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if version == 6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if group == "further":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((host, port))
        if group == "first":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.listen(BACKLOG)
        sock.setblocking(False)
        return sock
    except OSError as error:
        if sock is not None:
            sock.close()
        if optional and error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            return None
        raise StartError(f"cannot listen on {where} ({purpose}): {_advice(error, port)}") from error


class Address(NamedTuple):
    """Where one listener is, as the settings say it."""

    host: str
    """an IP address"""
    port: int
    role: str = ""
    """which one of several it is, where the system chooses the port"""


@dataclass(slots=True)
class _Door:
    socket: socket.socket
    factory: Factory
    server: asyncio.Server | None = None

    def shut(self) -> None:
        if self.server is not None:
            self.server.close()
            self.server = None


class Doors:
    """Listeners, by address. While they are paused, connections wait in the kernel's backlog.

    Pausing closes the loop's copy of each socket and keeps ours: asyncio at the descriptor limit
    would log one traceback per failed accept (measured: 13 MB in 4 s, half a core).
    """

    def __init__(self, doors: Mapping[Address, tuple[socket.socket, Factory]]) -> None:
        self._doors = {address: _Door(*door) for address, door in doors.items()}
        self._opening = asyncio.Lock()
        self.paused = True

    async def open(self) -> None:
        """Accept, or accept again."""
        self.paused = False
        loop = asyncio.get_running_loop()
        async with self._opening:
            for door in [door for door in self._doors.values() if door.server is None]:
                # it calls listen() once more: with a backlog of 100 unless told otherwise
                copy = door.socket.dup()
                door.server = await loop.create_server(door.factory, sock=copy, backlog=BACKLOG)
            if self.paused:
                self.pause()

    async def adopt(self, doors: Mapping[Address, tuple[socket.socket, Factory]]) -> None:
        """Have these from now on. Those that were there before stay as they are; the sockets of
        those that are no more are left to the caller."""
        for address in self._doors.keys() - doors.keys():
            self._doors.pop(address).shut()
        for address in doors.keys() - self._doors.keys():
            self._doors[address] = _Door(*doors[address])
        if not self.paused:
            await self.open()

    def pause(self) -> None:
        self.paused = True
        for door in self._doors.values():
            door.shut()

    def close(self) -> None:
        """For good: whoever connects now is refused."""
        self.pause()
        for door in self._doors.values():
            door.socket.close()
        self._doors.clear()


def _advice(error: OSError, port: int) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return "the port is in use; is another warmproxy running? --listen and --admin move it"
        case errno.EACCES | errno.EPERM:
            return f"not permitted; ports below 1024 need privileges, this is {port}"
        case errno.EADDRNOTAVAIL:
            return "this machine has no such address"
        case _:
            return error.strerror or str(error)
