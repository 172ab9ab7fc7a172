"""How dials are spread over the turns of the loop."""

import asyncio
from typing import Any

from warmproxy.net.housekeeper import PLANS, REFILLS, Housekeeper
from warmproxy.observe import Observer
from warmproxy.origin import origin
from warmproxy.policy.retry import Prefer
from warmproxy.pool.registry import Registry
from warmproxy.settings import Settings, UpstreamSettings

COUNT = 200


class Silence:
    """A dialer whose dials never end. It counts those that begin in each turn of the loop."""

    def __init__(self) -> None:
        self.begun: list[list[Any]] = [[]]

    async def dial(self, origin: Any, *_: Any) -> Any:
        self.begun[-1].append(origin)
        await asyncio.Event().wait()


class Patience:
    """A waiter."""

    def lease_ready(self, lease: Any) -> None:
        raise AssertionError

    def lease_failed(self, error: Exception) -> None:
        pass


async def started(warm: int, turns: int, asks: str = "") -> list[list[Any]]:
    """The dials of each turn after a start with COUNT origins, before which a client asks for
    another one."""
    upstreams = [UpstreamSettings(url=f"http://a{i}.example", warm=warm) for i in range(COUNT)]
    settings = Settings(upstream=tuple(upstreams), max_connections=10_000)
    loop, dialer = asyncio.get_running_loop(), Silence()
    registry: Registry[Any, Any] = Registry(settings, Observer(), lambda: 0.5, loop.time())
    housekeeper = Housekeeper(settings, registry, dialer, Observer(), loop)  # type: ignore[arg-type]
    housekeeper.start()
    if asks:
        assert housekeeper.acquire(origin("http", asks, 80), Prefer.FRESH, Patience()) is None
    for _ in range(turns):
        await asyncio.sleep(0)
        dialer.begun.append([])
    housekeeper.stop()
    await asyncio.sleep(0)
    return dialer.begun


async def test_a_start_begins_a_few_dials_in_each_turn_of_the_loop() -> None:
    """However many are missing, one turn begins REFILLS of them, and in the end all are begun."""
    begun = await started(warm=3, turns=COUNT * 3)
    assert max(map(len, begun)) == REFILLS
    assert sum(map(len, begun)) == COUNT * 3


async def test_a_request_does_not_wait_for_refills() -> None:
    """The dial that a client waits for begins in the next turn, before most of what was missing
    at the start."""
    begun = await started(warm=3, turns=4, asks="asked.example")
    early = [place.host for turn in begun[:3] for place in turn]
    assert "asked.example" in early
    assert len(early) <= 3 * REFILLS + 1 < PLANS
