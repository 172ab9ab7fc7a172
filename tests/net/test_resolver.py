"""Names that are in use are asked for again: by whom, how often, how many at a time."""

import asyncio

import pytest

from warmproxy.errors import NameNotFound, NameTimeout
from warmproxy.net.resolver import A_SECOND, AT_ONCE, STALEST, AddrInfo, Resolver

FIRST, SECOND = "127.0.0.2", "127.0.0.3"


class Told(Resolver):
    """Answers what the test says, as slowly as it says; counts what is asked at a time."""

    def __init__(self, refresh: float = 1000.0, share: float = 0.0) -> None:
        super().__init__(asyncio.get_running_loop(), refresh, lambda: share)
        self.address = FIRST
        self.asked: list[str] = []
        self.at_once = self.most_at_once = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.answers: list[tuple[str, frozenset[str]]] = []
        self.on_answer = lambda host, places: self.answers.append((host, places))

    async def _look_up(self, host: str) -> list[AddrInfo]:
        self.asked.append(host)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(0)
            await self.gate.wait()
        finally:
            self.at_once -= 1
        if not self.address:
            raise NameNotFound(f"{host} does not resolve")
        return [(2, 1, 6, "", (self.address, 0))]

    async def __aenter__(self) -> "Told":
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.gate.set()
        for task in self._renewing:
            task.cancel()
        await until(lambda: not (self._renewing or self._asking))

    async def where(self, host: str, port: int = 80, timeout: float = 5.0) -> list[str]:
        return [info[4][0] for info in await self.resolve(host, port, timeout)]


async def until(condition) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - whatever happens may make it true
            await asyncio.sleep(0)


async def test_ports_and_schemes_of_a_host_share_one_look_up() -> None:
    """Several pools of one host cost one look-up, and each gets its own port."""
    async with Told() as resolver:
        found = await asyncio.gather(*(resolver.resolve("h", port, 5.0) for port in (80, 443, 80)))
        assert [info[4] for infos in found for info in infos] == [
            (FIRST, 80),
            (FIRST, 443),
            (FIRST, 80),
        ]
        assert resolver.asked == ["h"]
        assert resolver.answers == [("h", frozenset([FIRST]))]


async def test_a_name_is_asked_again_while_it_is_wanted() -> None:
    """On the timer, and each answer is told; one that nobody wants is forgotten, and asked for by
    the next dial."""
    async with Told(refresh=0.01) as resolver:
        resolver.is_wanted = lambda host: host == "wanted"
        await resolver.where("wanted")
        await resolver.where("other")
        resolver.address = SECOND
        await until(lambda: ("wanted", frozenset([SECOND])) in resolver.answers)
        await until(lambda: resolver.asked.count("wanted") >= 3)
        assert resolver.asked.count("other") == 1
        assert await resolver.where("other") == [SECOND]
        resolver.is_wanted = lambda host: False
        await until(lambda: not resolver._known)


async def test_many_names_are_asked_for_a_few_at_a_time() -> None:
    """Names whose time has come together do not make a storm: two at a time, so many a second;
    and where these are not answered, that holds up no dial."""
    async with Told(refresh=0.01) as resolver:
        resolver.is_wanted = lambda host: True
        hosts = [f"host{i}" for i in range(1000)]
        await asyncio.gather(*map(resolver.where, hosts))
        assert resolver.most_at_once == 1000, "dials do not wait"
        resolver.most_at_once = 0
        resolver.gate.clear()
        await until(lambda: resolver.at_once == AT_ONCE)
        assert await resolver.where("host999") == [FIRST]
        loop = asyncio.get_running_loop()
        asked, began = len(resolver.asked), loop.time()
        resolver.gate.set()
        await until(lambda: len(resolver.asked) >= asked + A_SECOND // 2)
        assert loop.time() - began > 0.4
        assert resolver.most_at_once == AT_ONCE


@pytest.mark.parametrize(("share", "pause"), [(0.0, 30.0), (0.5, 22.5), (1.0, 15.0)])
async def test_names_are_asked_again_at_different_times(share: float, pause: float) -> None:
    """What was first asked for together is asked for again within a half of `refresh`, by
    chance."""
    async with Told(30.0, share) as resolver:
        loop = asyncio.get_running_loop()
        before = loop.time()
        await resolver.where("h")
        (timer,) = (t for t in loop._scheduled if not t.cancelled())  # type: ignore[attr-defined]
        assert before + pause <= timer.when() < before + pause + 1.0


async def test_a_look_up_that_fails_leaves_what_was_found_before() -> None:
    """On the timer and for a dial after one that failed; a name that was never found fails."""
    async with Told(refresh=0.01) as resolver:
        resolver.is_wanted = lambda host: True
        await resolver.where("h")
        resolver.address = ""
        await until(lambda: len(resolver.asked) >= 3)
        assert await resolver.where("h") == [FIRST]
        resolver.doubt("h")
        assert await resolver.where("h") == [FIRST]
        assert len(resolver.answers) == 1 or set(resolver.answers) == {("h", frozenset([FIRST]))}
        with pytest.raises(NameNotFound):
            await resolver.where("new")


async def test_a_name_that_is_not_found_for_a_day_is_forgotten() -> None:
    """Addresses do not serve for ever: then a dial fails as for a name that never was."""
    async with Told(refresh=0.01) as resolver:
        resolver.is_wanted = lambda host: True
        await resolver.where("h")
        resolver._known["h"].answered_at -= STALEST
        resolver.address = ""
        await until(lambda: not resolver._known)
        with pytest.raises(NameNotFound):
            await resolver.where("h")


async def test_a_dial_does_not_wait_long_for_a_second_answer() -> None:
    """Where an older one is known a resolver that hangs costs two seconds and not the dial; where
    none is known it costs the dial."""
    async with Told() as resolver:
        await resolver.where("h")
        resolver.doubt_all()
        resolver.gate.clear()
        loop = asyncio.get_running_loop()
        began = loop.time()
        assert await resolver.where("h") == [FIRST]
        assert loop.time() - began < 3.0
        with pytest.raises(NameTimeout):
            await resolver.where("new", timeout=0.01)


async def test_after_a_doubt_the_next_dial_asks() -> None:
    """And only that one: its answer holds again."""
    async with Told() as resolver:
        await resolver.where("h")
        resolver.address = SECOND
        assert await resolver.where("h") == [FIRST]
        resolver.doubt("h")
        assert await resolver.where("h") == [SECOND]
        assert await resolver.where("h") == [SECOND]
        assert resolver.asked == ["h", "h"]


async def test_addresses_are_told_as_a_connection_has_them() -> None:
    """0.0.0.0 is reached at 127.0.0.1, an IPv4 address written as IPv6 as itself."""
    async with Told() as resolver:
        for address, place in (("0.0.0.0", "127.0.0.1"), ("::ffff:127.0.0.4", "127.0.0.4")):
            resolver.address = address
            await resolver.where(address.replace(":", "-").replace(".", "-") + "x")
            assert resolver.answers[-1][1] == {place}
