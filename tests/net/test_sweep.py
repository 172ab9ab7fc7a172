"""How clients are looked at."""

import asyncio
from typing import Any

from warmproxy.net.client import SWEPT_AT_ONCE, Clients
from warmproxy.settings import Settings


class Client:
    """Counts how often it was looked at; one that has gone must not be."""

    def __init__(self, clients: Clients, takes: set[Any]) -> None:
        self.looks = 0
        self.clients = clients
        self.takes = takes

    def sweep(self, now: float) -> None:
        assert self in self.clients.open
        self.looks += 1
        self.clients.open -= self.takes


async def test_a_sweep_looks_at_some_clients_in_each_turn_of_the_loop() -> None:
    """Each client is looked at once in a sweep, SWEPT_AT_ONCE of them in one turn; who goes
    meanwhile is left alone."""
    loop, nobody = asyncio.get_running_loop(), Any
    clients = Clients(nobody, nobody, nobody, loop, Settings(), lambda: None)  # type: ignore[arg-type]
    some: list[Any] = [Client(clients, set()) for _ in range(3 * SWEPT_AT_ONCE + 1)]
    clients.open |= set(some)
    clients.sweep()
    looked = [sum(client.looks for client in some)]
    while looked[-1] < len(some) and len(looked) < 9:
        await asyncio.sleep(0)
        looked.append(sum(client.looks for client in some))
    turns = [after - before for before, after in zip([0, *looked], looked, strict=False)]
    assert turns == [SWEPT_AT_ONCE] * 3 + [1]
    assert {client.looks for client in some} == {1}

    gone: list[Any] = [Client(clients, set()) for _ in range(9)]
    clients.open = {*some, *gone}
    for client in some:
        client.takes = set(gone)
    clients.sweep()
    for _ in range(5):
        await asyncio.sleep(0)
    assert {client.looks for client in some} == {2}
    assert sum(client.looks for client in gone) < 9
