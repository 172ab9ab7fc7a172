"""One connected socket to one of several addresses: in which order they are tried, and from where.

The first goes to the address with the fewest connections of the origin, so that they are spread;
the others are tried when it gives no answer, as RFC 8305 (happy eyeballs) says.
"""

import asyncio
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

import aiohappyeyeballs

from warmproxy.net import source as sources
from warmproxy.net.resolver import AddrInfo
from warmproxy.origin import Origin
from warmproxy.policy.destinations import reached

ATTEMPT_DELAY = 0.25
"""Seconds between attempts to one name's addresses (RFC 8305, 5: Connection Attempt Delay)."""

SHUNNED = 30.0
"""Seconds for which an address that others had to stand in for is tried after them."""

REMEMBERED = 1000
"""Such addresses at most: clients choose the names."""


@dataclass(frozen=True, slots=True)
class _Attempt:
    place: str
    began: float
    sock: socket.socket


class Attempts:
    """What one race has tried so far, in order."""

    def __init__(self) -> None:
        self._begun: list[_Attempt] = []

    def add(self, place: str, sock: socket.socket) -> None:
        self._begun.append(_Attempt(place, time.monotonic(), sock))

    def before(self, winner: socket.socket | None) -> list[str]:
        """The addresses that others had to stand in for; all where nobody has won."""
        lost = takewhile(lambda attempt: attempt.sock is not winner, self._begun)
        return [attempt.place for attempt in lost]

    def silent(self, winner: socket.socket | None = None) -> tuple[str, ...]:
        """Those of them that gave no answer for as long as the next one had to wait: one that
        refuses is followed at once."""
        ends = [attempt.began for attempt in self._begun[1:]] + [time.monotonic()]
        waits = [end - attempt.began for attempt, end in zip(self._begun, ends, strict=True)]
        before = zip(self.before(winner), waits, strict=False)
        return tuple(place for place, wait in before if wait > 0.9 * ATTEMPT_DELAY)


class Races:
    """All of them: what one has learned of an address, the others make use of."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._heading: Counter[tuple[Origin, str]] = Counter()
        """Races under way by the address that they began with."""
        self._shunned: dict[tuple[Origin, str], float] = {}
        """Addresses that others had to stand in for -> until when they come last."""

    async def run(
        self,
        origin: Origin,
        addresses: Sequence[AddrInfo],
        places: Callable[[], Mapping[str, int]],
        source: str,
        attempts: Attempts,
    ) -> socket.socket:
        """The connected socket, non-blocking. `places`: the origin's open connections by address;
        `source`: the local address, "" for any. Raises OSError; NoSource for the local address.
        """
        addresses = self._in_order(origin, addresses, places)
        first = (origin, place_of(addresses[0]))

        def make(info: AddrInfo) -> socket.socket:
            sock = socket.socket(*info[:3])
            try:
                if source:
                    sources.bind(sock, source)
            except OSError:
                sock.close()
                raise
            attempts.add(place_of(info), sock)
            return sock

        self._heading[first] += 1
        try:
            sock = await aiohappyeyeballs.start_connection(
                addresses,
                happy_eyeballs_delay=ATTEMPT_DELAY,
                loop=self._loop,
                socket_factory=make,
            )
        finally:
            self._heading[first] -= 1
            if not self._heading[first]:
                del self._heading[first]
        self._remember(origin, attempts.before(sock))
        return sock

    def _in_order(
        self,
        origin: Origin,
        addresses: Sequence[AddrInfo],
        places: Callable[[], Mapping[str, int]],
    ) -> list[AddrInfo]:
        """Those that work before those that lately did not, the preferred family before the
        other (the race then lets them take turns), where few connections are before many."""
        if len(addresses) == 1:
            return list(addresses)
        now, preferred, connections = self._loop.time(), addresses[0][0], places()

        def key(info: AddrInfo) -> tuple[bool, bool, int]:
            place = place_of(info)
            there = connections.get(place, 0) + self._heading.get((origin, place), 0)
            return now < self._shunned.get((origin, place), 0.0), info[0] != preferred, there

        return sorted(addresses, key=key)

    def _remember(self, origin: Origin, lost: list[str]) -> None:
        until = self._loop.time() + SHUNNED
        for place in lost:
            self._shunned.pop((origin, place), None)  # so that the order is that of time
            self._shunned[origin, place] = until
        while len(self._shunned) > REMEMBERED:
            del self._shunned[next(iter(self._shunned))]


def place_of(info: AddrInfo) -> str:
    """The address as pools know it."""
    return str(reached(info[4][0]))
