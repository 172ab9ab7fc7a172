"""Names to addresses, off the loop; those of names in use are asked for again and again."""

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address
from typing import Any

from warmproxy.errors import DialError, NameNotFound, NameTimeout
from warmproxy.policy.addresses import Addresses
from warmproxy.policy.destinations import reached

AddrInfo = tuple[int | socket.AddressFamily, int | socket.SocketKind, int, str, tuple[Any, ...]]
"""What getaddrinfo gives: family, type, protocol, canonical name, socket address."""

AT_ONCE = 2
"""Look-ups on the timer at a time: they share the loop's threads, of which there are at least
five, with those that dials wait for."""

A_SECOND = 40
"""Look-ups on the timer at most, which cost 1.5 % of a core: of more than a thousand names each is
asked for less often than `refresh` says."""

STALE_ANSWER = 1.8
"""Seconds that a dial waits for a new answer where an old one is known (RFC 8767, 5: client
response timer)."""

STALEST = 86_400.0
"""Seconds that addresses serve while look-ups fail (RFC 8767, 5: one to three days)."""


@dataclass(slots=True)
class _Name:
    """What is known of one name."""

    found: list[AddrInfo]
    answered_at: float
    doubted: bool = False
    """A dial has failed since."""
    addresses: Addresses = field(default_factory=Addresses)


class Resolver:
    """getaddrinfo in the loop's threads; those who ask for one name at once share one look-up.

    An answer holds for `refresh` seconds at most; getaddrinfo honours hosts and nsswitch, as users
    expect, but tells no TTL. Names that `is_wanted` are then asked again, others forgotten. A
    look-up that fails changes nothing: the addresses that were found before go on serving.
    `on_answer` hears of each answer: the name, and the addresses where connections may stay.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        refresh: float = 30.0,
        rng: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.on_answer: Callable[[str, frozenset[str]], None] = lambda host, places: None
        self.is_wanted: Callable[[str], bool] = lambda host: False
        self._loop = loop
        self.refresh = refresh
        self._rng = rng
        self._known: dict[str, _Name] = {}
        self._asking: dict[str, asyncio.Task[list[AddrInfo]]] = {}
        self._renewing: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Semaphore(AT_ONCE)

    async def resolve(self, host: str, port: int, timeout: float) -> list[AddrInfo]:
        """The addresses, in the system's order (RFC 6724), never none; `timeout` in seconds.

        Raises NameNotFound, NameTimeout, or DialError.
        """
        if literal := _literal(host):
            return [_with_port(literal, port)]
        name = self._known.get(host)
        if name is None:
            found = await self._ask(host, timeout)
        elif name.doubted:
            try:
                found = await self._ask(host, min(timeout, STALE_ANSWER))
            except DialError:
                found = name.found
        else:
            found = name.found
        return [_with_port(info, port) for info in found]

    def doubt(self, host: str) -> None:
        """The addresses led nowhere: ask again next time."""
        if (name := self._known.get(host)) is not None:
            name.doubted = True

    def doubt_all(self) -> None:
        """The network is another one: so may be the answers."""
        for name in self._known.values():
            name.doubted = True

    async def _ask(self, host: str, timeout: float | None) -> list[AddrInfo]:
        asking = self._asking.get(host)
        if asking is None:
            asking = self._loop.create_task(self._look_up(host), name=f"resolve {host}")
            self._asking[host] = asking
            asking.add_done_callback(partial(self._answered, host))
        try:
            async with asyncio.timeout(timeout):
                # one that stops waiting must not take the answer from the others
                return await asyncio.shield(asking)
        except TimeoutError:
            raise NameTimeout(f"{host} did not resolve within {timeout:g} s") from None

    async def _look_up(self, host: str) -> list[AddrInfo]:
        try:
            found: list[AddrInfo] = []
            found += await self._loop.getaddrinfo(
                host, None, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
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

    def _answered(self, host: str, task: asyncio.Task[list[AddrInfo]]) -> None:
        """Who still waits gets the outcome; where nobody does, a failure is no news."""
        del self._asking[host]
        if task.cancelled() or task.exception() is not None:
            return
        now = self._loop.time()
        name = self._known.get(host)
        if name is None:
            name = self._known[host] = _Name(task.result(), now)
            self._ask_again_later(host)
        name.found, name.answered_at, name.doubted = task.result(), now, False
        places = (reached(info[4][0]) for info in name.found)
        self.on_answer(host, name.addresses.answered(map(str, places), now))

    # ── on the timer ─────────────────────────────────────────────────────────────────────────

    def _ask_again_later(self, host: str) -> None:
        """By chance half of `refresh` earlier: names that were first asked for together, at the
        start, are not asked for together for ever."""
        pause = self.refresh * (1.0 - 0.5 * self._rng())
        self._loop.call_later(pause, self._begin_to_renew, host)

    def _begin_to_renew(self, host: str) -> None:
        if not self.is_wanted(host):
            del self._known[host]
            return
        task = self._loop.create_task(self._renew(host), name=f"resolve {host} again")
        self._renewing.add(task)
        task.add_done_callback(self._renewing.discard)

    async def _renew(self, host: str) -> None:
        async with self._turn:
            try:
                await self._ask(host, timeout=None)
            except DialError:
                if self._loop.time() - self._known[host].answered_at > STALEST:
                    del self._known[host]
                    return
            await asyncio.sleep(AT_ONCE / A_SECOND)
        self._ask_again_later(host)


def _literal(host: str) -> AddrInfo | None:
    """A host that is an address needs no look-up."""
    try:
        address = ip_address(host)
    except ValueError:
        return None
    if address.version == 4:
        return (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, 0))
    return (socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, 0, 0, 0))


def _with_port(info: AddrInfo, port: int) -> AddrInfo:
    family, kind, protocol, name, address = info
    return (family, kind, protocol, name, (address[0], port, *address[2:]))
