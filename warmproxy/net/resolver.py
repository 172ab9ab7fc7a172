"""Names to addresses, off the loop and remembered for a while."""

import asyncio
import socket
from ipaddress import ip_address
from typing import Any

from warmproxy.errors import DialError, NameNotFound, NameTimeout

AddrInfo = tuple[int | socket.AddressFamily, int | socket.SocketKind, int, str, tuple[Any, ...]]
"""What getaddrinfo gives: family, type, protocol, canonical name, socket address."""

REMEMBER = 30.0
"""Seconds. getaddrinfo honours hosts and nsswitch, as users expect, but tells no TTL; half a
minute is what resolvers commonly serve stale at the least."""


class Resolver:
    """getaddrinfo in the loop's threads; those who ask for one name at once share one look-up."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._known: dict[tuple[str, int], tuple[float, list[AddrInfo]]] = {}
        self._asking: dict[tuple[str, int], asyncio.Task[list[AddrInfo]]] = {}

    async def resolve(self, host: str, port: int, timeout: float) -> list[AddrInfo]:
        """The addresses, in the system's order (RFC 6724), never none; `timeout` in seconds.

        Raises NameNotFound, NameTimeout, or DialError.
        """
        if literal := _literal(host, port):
            return literal
        key = (host, port)
        known = self._known.get(key)
        if known and self._loop.time() - known[0] < REMEMBER:
            return known[1]
        asking = self._asking.get(key)
        if asking is None:
            asking = self._loop.create_task(self._ask(host, port), name=f"resolve {host}")
            self._asking[key] = asking
            asking.add_done_callback(lambda task: self._answered(key, task))
        try:
            async with asyncio.timeout(timeout):
                # one that stops waiting must not take the answer from the others
                found = await asyncio.shield(asking)
        except TimeoutError:
            raise NameTimeout(f"{host} did not resolve within {timeout:g} s") from None
        self._known[key] = (self._loop.time(), found)
        return found

    def forget(self, host: str, port: int) -> None:
        """The addresses led nowhere: ask again next time."""
        self._known.pop((host, port), None)

    def _answered(self, key: tuple[str, int], task: asyncio.Task[list[AddrInfo]]) -> None:
        """Who still waits gets the outcome; where nobody does, a failure is no news."""
        self._asking.pop(key, None)
        if not task.cancelled():
            task.exception()

    async def _ask(self, host: str, port: int) -> list[AddrInfo]:
        try:
            found: list[AddrInfo] = []
            found += await self._loop.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
            )
        except socket.gaierror as error:
            if error.errno == socket.EAI_AGAIN:
                raise NameTimeout(f"{host}: {error.strerror}") from error
            raise NameNotFound(f"{host} does not resolve: {error.strerror}") from error
        except (OSError, UnicodeError) as error:
            raise DialError(f"{host} cannot be looked up: {error}") from error
        if not found:
            raise NameNotFound(f"{host} has no address")
        return found


def _literal(host: str, port: int) -> list[AddrInfo]:
    """A host that is an address needs no look-up."""
    try:
        address = ip_address(host)
    except ValueError:
        return []
    if address.version == 4:
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port))]
    return [(socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port, 0, 0))]
