"""In which order the addresses of a name are tried, and what is remembered of those that failed:
real sockets at loopback addresses."""

import asyncio
import socket
from collections import Counter
from collections.abc import Iterator

import pytest
import uvloop

from tests.e2e.harness import free_port
from tests.e2e.origins import fill_backlog
from warmproxy.errors import DialError, DialTimeout
from warmproxy.net.dialer import Dialer
from warmproxy.net.race import Attempts, Races
from warmproxy.net.resolver import AddrInfo, Resolver
from warmproxy.net.tls import Contexts
from warmproxy.origin import origin
from warmproxy.policy.destinations import Destinations

ORIGIN = origin("http", "several.example", 80)


class Place:
    """One port at several loopback addresses: listening, deaf (its backlog is full) or refusing."""

    def __init__(self) -> None:
        self.port = free_port()
        self._sockets: list[socket.socket] = []

    def at(self, host: str, *, listening: bool = True, deaf: bool = False) -> AddrInfo:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        if listening:
            sock = socket.create_server((host, self.port), family=family, backlog=0 if deaf else 64)
            self._sockets.append(sock)
            if deaf:
                self._sockets += fill_backlog((host, self.port))
        return (family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, self.port))

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()


@pytest.fixture
def place() -> Iterator[Place]:
    made = Place()
    yield made
    made.close()


def run(main):
    return uvloop.run(main)


async def race(races: Races, addresses: list[AddrInfo], there: Counter[str]) -> tuple[str, ...]:
    """Where it led, and which addresses were silent before."""
    attempts = Attempts()
    sock = await races.run(ORIGIN, addresses, lambda: there, "", attempts)
    with sock:
        return sock.getpeername()[0], *attempts.silent(sock)


def test_the_address_with_the_fewest_connections_is_first(place) -> None:
    """By those that are open, and among equals in the system's order."""
    addresses = [place.at(f"127.0.0.{n}") for n in (2, 3, 4)]

    async def main() -> list[tuple[str, ...]]:
        races = Races(asyncio.get_running_loop())
        loads = [Counter(), Counter({"127.0.0.2": 1}), Counter({"127.0.0.2": 2, "127.0.0.3": 3})]
        return [await race(races, addresses, load) for load in loads]

    assert run(main()) == [("127.0.0.2",), ("127.0.0.3",), ("127.0.0.4",)]


def test_dials_under_way_count(place) -> None:
    """Dials that begin together do not all go to one address."""
    addresses = [place.at(f"127.0.0.{n}") for n in (2, 3, 4)]

    async def main() -> list[tuple[str, ...]]:
        races = Races(asyncio.get_running_loop())
        found = await asyncio.gather(*(race(races, addresses, Counter()) for _ in range(6)))
        assert not races._heading
        return found

    led = Counter(host for host, *_ in run(main()))
    assert led == {"127.0.0.2": 2, "127.0.0.3": 2, "127.0.0.4": 2}


def test_the_preferred_family_goes_before_the_less_used_one(place) -> None:
    """However many connections there are: the system's order knows which family is better."""
    addresses = [place.at("::1"), place.at("127.0.0.2")]

    async def main() -> tuple[str, ...]:
        return await race(Races(asyncio.get_running_loop()), addresses, Counter({"::1": 9}))

    assert run(main()) == ("::1",)


@pytest.mark.parametrize("kind", ["deaf", "refusing"])
def test_an_address_that_failed_comes_last_for_a_while(place, kind) -> None:
    """A race that another address had to win is lost once: the next ones begin elsewhere, also
    where that is the other family. Only silence makes an address suspect, a refusal does not."""
    bad = place.at("::1", listening=kind == "deaf", deaf=kind == "deaf")
    addresses = [bad, place.at("127.0.0.2")]

    async def main() -> list[tuple[str, ...]]:
        races = Races(asyncio.get_running_loop())
        return [await race(races, addresses, Counter({"127.0.0.2": n})) for n in range(3)]

    silent = ("::1",) if kind == "deaf" else ()
    assert run(main()) == [("127.0.0.2", *silent), ("127.0.0.2",), ("127.0.0.2",)]


class Told(Resolver):
    """Knows one name."""

    def __init__(self, addresses: list[AddrInfo]) -> None:
        super().__init__(asyncio.get_running_loop())
        self._addresses = addresses

    async def resolve(self, host: str, port: int, timeout: float) -> list[AddrInfo]:
        return self._addresses


async def failed_dial(addresses: list[AddrInfo], timeout: float, source: str = "") -> DialError:
    anywhere = Destinations(connect_ports=(), allow=(), deny=(), configured=())
    dialer = Dialer(asyncio.get_running_loop(), Told(addresses), anywhere, Contexts([]))
    with pytest.raises(DialError) as failed:
        await dialer.dial(ORIGIN, timeout, source=source)
    return failed.value


def test_a_dial_that_times_out_names_who_was_silent(place) -> None:
    """All addresses that were tried and neither answered nor refused."""
    addresses = [
        place.at("127.0.0.2", deaf=True),
        place.at("127.0.0.3", listening=False),
        place.at("127.0.0.4", deaf=True),
    ]

    error = run(failed_dial(addresses, 0.7))
    assert isinstance(error, DialTimeout)
    assert error.silent == ("127.0.0.2", "127.0.0.4")


@pytest.mark.parametrize(
    ("source", "status", "reason"),
    [
        (
            "203.0.113.7",
            500,
            "no connection to several.example:80: source_address 203.0.113.7: "
            "this machine has no such address",
        ),
        (
            "::1",
            503,
            "several.example:80 has no address of the kind that source_address ::1 is",
        ),
    ],
)
def test_a_source_that_is_none_is_told(place, source, status, reason) -> None:
    """A local address that the machine lost, or of the other family: the answer names it, and no
    upstream address is suspect."""
    error = run(failed_dial([place.at("127.0.0.2"), place.at("127.0.0.3")], 5.0, source))
    assert (error.status, error.reason, error.silent) == (status, reason, ())
