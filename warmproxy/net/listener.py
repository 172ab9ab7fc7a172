"""Listening sockets, bound before anything is said of being ready, and the doors made of them."""

import asyncio
import errno
import socket
from collections.abc import Callable
from ipaddress import ip_address

from warmproxy.errors import StartError

Factory = Callable[[], asyncio.BaseProtocol]
"""What makes the protocol of a connection that was accepted."""

BACKLOG = 4096
"""Connections that may wait to be accepted; the system caps it (net.core.somaxconn)."""


def listen(host: str, port: int, *, purpose: str, optional: bool = False) -> socket.socket | None:
    """A bound, listening, non-blocking socket. `purpose` is for the message.

    None where `optional` and the machine has no such address (no IPv6). Raises StartError.
    """
    if host == "localhost":
        host = "127.0.0.1"
    version = ip_address(host).version
    where = f"[{host}]:{port}" if version == 6 else f"{host}:{port}"
    sock: socket.socket | None = None
    try:
        sock = socket.socket(socket.AF_INET6 if version == 6 else socket.AF_INET)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if version == 6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
        sock.listen(BACKLOG)
        sock.setblocking(False)
        return sock
    except OSError as error:
        if sock is not None:
            sock.close()
        if optional and error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            return None
        raise StartError(f"cannot listen on {where} ({purpose}): {_advice(error, port)}") from error


class Doors:
    """The proxy's listeners. While they are paused, connections wait in the kernel's backlog.

    Pausing closes the loop's copy of each socket and keeps ours: asyncio at the descriptor limit
    would log one traceback per failed accept (measured: 13 MB in 4 s, half a core).
    """

    def __init__(self, sockets: list[tuple[socket.socket, Factory]]) -> None:
        self._sockets = sockets
        self._servers: list[asyncio.Server] = []
        self.paused = True

    async def open(self) -> None:
        """Accept, or accept again."""
        self.paused = False
        loop = asyncio.get_running_loop()
        for sock, factory in self._sockets:
            # it calls listen() once more: with a backlog of 100 unless told otherwise
            server = await loop.create_server(factory, sock=sock.dup(), backlog=BACKLOG)
            self._servers.append(server)

    def pause(self) -> None:
        self.paused = True
        for server in self._servers:
            server.close()
        self._servers.clear()

    def close(self) -> None:
        """For good: whoever connects now is refused."""
        self.pause()
        for sock, _ in self._sockets:
            sock.close()
        self._sockets.clear()


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
