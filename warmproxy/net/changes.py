"""What makes all connections doubtful at once: the machine slept, or its network is another one.

Linux tells both; elsewhere nothing is heard here, and dead connections are found one by one.
"""

import asyncio
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

# ── sleep ────────────────────────────────────────────────────────────────────────────────────

ASLEEP = 2.0
"""Seconds of sleep that count: less can come from reading two clocks one after the other while
others have the processor."""


class Clocks(NamedTuple):
    """Seconds since some moment: one clock that goes on while the machine sleeps, one that does
    not."""

    boot: float
    awake: float


def read_clocks() -> Clocks:
    awake = time.monotonic()
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return Clocks(time.clock_gettime(boot) if boot is not None else awake, awake)


def slept(before: Clocks, after: Clocks) -> float:
    """Seconds that the machine has slept between two readings, 0 where it hardly has."""
    seconds = (after.boot - before.boot) - (after.awake - before.awake)
    return seconds if seconds > ASLEEP else 0.0


# ── the network ──────────────────────────────────────────────────────────────────────────────

SETTLE = 1.0
"""Seconds from the first message to a look: an interface that comes up sends a dozen."""

# linux/rtnetlink.h, linux/netlink.h, linux/if.h, linux/if_addr.h
_GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400  # links, then addresses and routes of IPv4, of IPv6
_NEWLINK, _GETLINK, _NEWADDR, _GETADDR, _NEWROUTE, _GETROUTE = 16, 18, 20, 22, 24, 26
_ERROR, _DONE = 2, 3
_REQUEST, _DUMP = 0x1, 0x300
_UP, _LOOPBACK, _RUNNING = 0x1, 0x8, 0x40
_PASSING = 0x01 | 0x08 | 0x40  # addresses: temporary, found to be another's, not yet proven
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_RTA_DST, _RTA_OIF, _RTA_GATEWAY = 1, 4, 5
_UNIVERSE = 0

_HEADER = struct.Struct("=LHHLL")  # length, type, flags, sequence, port
_LINK = struct.Struct("=BxHiLL")  # family, hardware, index, flags, change
_ADDRESS = struct.Struct("=BBBBL")  # family, prefix, flags, scope, index
_ROUTE = struct.Struct("=BBBBBBBBL")  # family, prefixes, tos, table, protocol, scope, type, flags
_ATTRIBUTE = struct.Struct("=HH")  # length, type

_ABROAD = {socket.AF_INET: "192.88.99.1", socket.AF_INET6: "2000::1"}
"""Addresses that no network has today: the way there is the way to everybody. Nothing is sent."""

Network = frozenset[tuple[object, ...]]
"""What connections stand on: each address with its interface, and the way out of each family."""


class NetworkChanges:
    """Calls `on_change` when the machine's addresses or its way out have changed.

    The kernel's messages say only that it is time to look; what they tell is mostly nothing to
    us: lifetimes, statistics, scans, containers that come and go. Raises OSError where the system
    does not let us listen.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, on_change: Callable[[], None]) -> None:
        self._loop = loop
        self._on_change = on_change
        self._looking: asyncio.TimerHandle | None = None
        if not hasattr(socket, "AF_NETLINK"):
            raise OSError("only Linux tells of its network")
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        try:
            self._sock.setblocking(False)
            self._sock.bind((0, _GROUPS))
            self._network = read_network()
        except OSError:
            self._sock.close()
            raise
        loop.add_reader(self._sock, self._readable)

    def close(self) -> None:
        self._loop.remove_reader(self._sock)
        self._sock.close()
        if self._looking is not None:
            self._looking.cancel()

    def _readable(self) -> None:
        try:
            while self._sock.recv(65536):
                pass
        except OSError:
            pass  # all read; or more came than the socket holds, which says enough
        if self._looking is None:
            self._looking = self._loop.call_later(SETTLE, self._look)

    def _look(self) -> None:
        self._looking = None
        try:
            network = read_network()
        except OSError:
            return
        if network != self._network:
            self._network = network
            self._on_change()


def read_network() -> Network:
    """Ask the kernel; it answers at once. Raises OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        sock.settimeout(1.0)
        sock.bind((0, 0))
        links = _ask(sock, _GETLINK, _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0))
        addresses = _ask(sock, _GETADDR, _ADDRESS.pack(socket.AF_UNSPEC, 0, 0, 0, 0))
        found = set(standing(links, addresses))
        for family, abroad in _ABROAD.items():
            packed = socket.inet_pton(family, abroad)
            body = _ROUTE.pack(family, 8 * len(packed), 0, 0, 0, 0, 0, 0, 0)
            body += _ATTRIBUTE.pack(_ATTRIBUTE.size + len(packed), _RTA_DST) + packed
            found |= set(ways(_ask(sock, _GETROUTE, body, 0)))
        return frozenset(found)


def standing(links: bytes, addresses: bytes) -> Iterator[tuple[object, ...]]:
    """From the kernel's lists: the addresses that stay and lead beyond this machine, of the
    interfaces that run."""
    running = set()
    for kind, body in _messages(links):
        if kind == _NEWLINK:
            _, _, index, flags, _ = _LINK.unpack_from(body)
            if flags & _UP and flags & _RUNNING and not flags & _LOOPBACK:
                running.add(index)
    for kind, body in _messages(addresses):
        if kind == _NEWADDR:
            family, prefix, flags, scope, index = _ADDRESS.unpack_from(body)
            attributes = _attributes(body[_ADDRESS.size :])
            if _IFA_FLAGS in attributes:
                flags = int.from_bytes(attributes[_IFA_FLAGS], sys.byteorder)
            address = attributes.get(_IFA_LOCAL, attributes.get(_IFA_ADDRESS))
            if index in running and scope == _UNIVERSE and not flags & _PASSING:
                yield family, prefix, index, address


def ways(routes: bytes) -> Iterator[tuple[object, ...]]:
    """From the kernel's answer: by which interface and gateway a packet would leave."""
    for kind, body in _messages(routes):
        if kind == _NEWROUTE:
            attributes = _attributes(body[_ROUTE.size :])
            yield "way", body[0], attributes.get(_RTA_OIF), attributes.get(_RTA_GATEWAY)


def _ask(sock: socket.socket, kind: int, body: bytes, how: int = _DUMP) -> bytes:
    """One question, and the messages of its answer."""
    sock.send(_HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | how, 0, 0) + body)
    answer = b""
    while True:
        data = sock.recv(1 << 18)
        answer += data
        if not how or any(kind in (_DONE, _ERROR) for kind, _ in _messages(data)):
            return answer


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, body) of each message."""
    while len(data) >= _HEADER.size:
        length, kind, _, _, _ = _HEADER.unpack_from(data)
        if length < _HEADER.size:
            return
        yield kind, data[_HEADER.size : length]
        data = data[_aligned(length) :]


def _attributes(data: bytes) -> dict[int, bytes]:
    found = {}
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if length < _ATTRIBUTE.size:
            break
        found[kind] = data[_ATTRIBUTE.size : length]
        data = data[_aligned(length) :]
    return found


def _aligned(length: int) -> int:
    return (length + 3) & ~3
