"""Rows 60 to 63 of docs/standards.md: how a name with several addresses is dialled (RFC 8305).

The dialer with real sockets. Only the name's addresses are the test's: what a system resolves
cannot be set without being its owner.
"""

import asyncio
import socket
from collections.abc import Callable, Iterator

import pytest
import uvloop

from tests.e2e.harness import count_sockets_to, free_port
from warmproxy.net.dialer import Dialer, Dialled
from warmproxy.net.race import ATTEMPT_DELAY
from warmproxy.net.resolver import AddrInfo, Resolver
from warmproxy.net.tls import Contexts
from warmproxy.origin import origin
from warmproxy.policy.destinations import Destinations

SYN_SENT = "02"
NAMED = origin("http", "several.example", 80)
NO_TLS = Contexts([])


class Told(Resolver):
    """Knows one name."""

    def __init__(self, loop: asyncio.AbstractEventLoop, addresses: list[AddrInfo]) -> None:
        super().__init__(loop)
        self._addresses = addresses

    async def resolve(self, host: str, port: int, timeout: float) -> list[AddrInfo]:
        assert host == NAMED.host
        return self._addresses


Place = Callable[..., AddrInfo]


@pytest.fixture
def place() -> Iterator[Place]:
    """A loopback address that is alive, refuses, or is deaf: its backlog is full."""
    sockets: list[socket.socket] = []

    def make(kind: str, host: str = "127.0.0.1") -> AddrInfo:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        if kind == "refusing":
            return (family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, free_port()))
        listener = socket.socket(family)
        sockets.append(listener)
        try:
            listener.bind((host, 0))
        except OSError:
            pytest.skip(f"no {host} here")
        listener.listen(0)
        address = listener.getsockname()
        while kind == "deaf":
            filler = socket.socket(family)
            sockets.append(filler)
            filler.settimeout(0.1)
            try:
                filler.connect(address)
            except TimeoutError:
                break
        return (family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", address)

    yield make
    for sock in sockets:
        sock.close()


def dial(addresses: list[AddrInfo], timeout: float = 5.0) -> tuple[Dialled, tuple[str, int]]:
    """Dial the name; the result and where it has led."""

    async def run() -> tuple[Dialled, tuple[str, int]]:
        loop = asyncio.get_running_loop()
        anywhere = Destinations(connect_ports=(), allow=(), deny=(), configured=())
        dialled = await Dialer(loop, Told(loop, addresses), anywhere, NO_TLS).dial(NAMED, timeout)
        transport = dialled.connection.transport
        peer = transport.get_extra_info("peername")[:2]
        for address in addresses:
            if address[4][1] != peer[1]:
                assert count_sockets_to(address[4][1], SYN_SENT) == _fillers(address), "given up"
        transport.abort()
        return dialled, peer

    before.clear()
    before.update({a[4][1]: count_sockets_to(a[4][1], SYN_SENT) for a in addresses})
    return uvloop.run(run())


before: dict[int, int] = {}
"""Connections that are being opened to each port, and not by the dialer."""


def _fillers(address: AddrInfo) -> int:
    return before[address[4][1]]


def test_row_60_several_dials_share_one_look_up_that_blocks_nobody() -> None:
    """Row 60: look-ups run beside the loop, which goes on meanwhile, and one serves all."""

    async def run() -> int:
        loop = asyncio.get_running_loop()
        resolver = Resolver(loop)
        turns = 0
        looks = [
            loop.create_task(resolver.resolve("nosuch.invalid", 80, 5.0)),
            loop.create_task(resolver.resolve("nosuch.invalid", 80, 5.0)),
        ]
        while not all(look.done() for look in looks):
            turns += 1
            await asyncio.sleep(0)
        first, second = (look.exception() for look in looks)
        assert first is second
        return turns

    assert uvloop.run(run()) > 2


def test_row_61_families_take_turns(place) -> None:
    """Row 61: behind a deaf IPv6 address comes an IPv4 one, before the other IPv6 ones."""
    addresses = [place("deaf", "::1"), place("deaf", "::1"), place("deaf", "::1"), place("alive")]
    dialled, peer = dial(addresses)
    assert peer == addresses[3][4]
    assert dialled.tcp < 2 * ATTEMPT_DELAY


def test_row_61_the_systems_order_counts(place) -> None:
    """Row 61: the first address of those that work is the one, whatever its family."""
    for hosts in (("::1", "127.0.0.1"), ("127.0.0.1", "::1")):
        addresses = [place("alive", host) for host in hosts]
        _, peer = dial(addresses)
        assert peer == addresses[0][4][:2]


def test_row_62_the_default_delay_is_within_bounds() -> None:
    """Row 62: 250 ms, which is between 100 ms and 2 s and far above 10 ms."""
    assert ATTEMPT_DELAY == 0.25


@pytest.mark.parametrize("deaf", [1, 2])
def test_row_62_attempts_are_staggered(place, deaf) -> None:
    """Row 62: behind each address that does not answer the next one is tried after the delay, not
    sooner and not only once it has timed out."""
    hosts = ["127.0.0.2", "127.0.0.3"][:deaf]
    addresses = [*(place("deaf", host) for host in hosts), place("alive")]
    dialled, peer = dial(addresses)
    assert peer == addresses[-1][4]
    assert 0.9 * deaf * ATTEMPT_DELAY < dialled.tcp < (deaf + 1) * ATTEMPT_DELAY


def test_row_62_a_refusal_is_not_waited_for(place) -> None:
    """Row 62: an address that refuses is followed by the next one at once."""
    addresses = [place("refusing", "127.0.0.2"), place("refusing", "127.0.0.3"), place("alive")]
    dialled, peer = dial(addresses)
    assert peer == addresses[2][4]
    assert dialled.tcp < ATTEMPT_DELAY


def test_row_63_the_others_are_given_up(place) -> None:
    """Row 63: once one address has answered, no attempt to another goes on, before or behind."""
    addresses = [place("deaf", "127.0.0.2"), place("alive"), place("alive", "127.0.0.3")]
    _, peer = dial(addresses)  # which looks at the attempts
    assert peer == addresses[1][4]


def test_row_63_the_first_that_works_is_the_only_one(place) -> None:
    """Row 63: where the first address answers no other is tried."""
    addresses = [place("alive"), place("alive", "127.0.0.2")]
    dialled, peer = dial(addresses)
    assert peer == addresses[0][4]
    assert dialled.tcp < ATTEMPT_DELAY
