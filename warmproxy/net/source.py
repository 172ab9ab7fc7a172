"""From which local address connections are opened (source_address)."""

import errno
import socket
import sys
from ipaddress import ip_address

# Of Linux, see ip(7). Not every Python that runs us names it.
_BIND_ADDRESS_NO_PORT = getattr(socket, "IP_BIND_ADDRESS_NO_PORT", 24)


class NoSource(OSError):
    """A socket cannot have the local address that it should have."""


def family(source: str) -> socket.AddressFamily:
    return socket.AF_INET if ip_address(source).version == 4 else socket.AF_INET6


def bind(sock: socket.socket, source: str) -> None:
    """Let the socket's connection begin at the local address `source`. Raises NoSource."""
    try:
        _bind(sock, source)
    except OSError as error:
        raise NoSource(error.errno, f"source_address {source}: {_why(error)}") from error


def why_not(source: str) -> str | None:
    """What is wrong with a local address, None where connections may begin there."""
    try:
        with socket.socket(family(source)) as sock:
            _bind(sock, source)
    except OSError as error:
        return _why(error)
    return None


def _bind(sock: socket.socket, source: str) -> None:
    """The port is left to connect: bind would choose one that no other socket has, where
    connections to different addresses and ports may share one."""
    if sys.platform == "linux":
        sock.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
    sock.bind((source, 0))


def _why(error: OSError) -> str:
    if error.errno == errno.EADDRNOTAVAIL:
        return "this machine has no such address"
    return error.strerror or str(error)
