"""An origin that is killed under load and is back within half a second."""

import asyncio
import contextlib
import signal
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.chaos.clients import Answer, Wire, read_answer
from tests.chaos.rig import python
from tests.chaos.script import Ask
from tests.e2e.daemon import Warmproxy, wait_warm, warmproxy_environ
from tests.e2e.harness import ROOT, Process, at, eventually, free_port

CONNECTIONS = 8
CLIENTS = 60
HOLD = 0.2
"""Seconds the origin takes for each request: with so few connections, requests wait for about
CLIENTS / CONNECTIONS of it before the origin is killed."""
DOWN = 0.3


@dataclass
class Asked:
    """One request and what became of it."""

    ask: Ask
    at: float
    ended: float
    answer: Answer


class Load:
    """Clients that ask in turn, each on its own connection, until they are told to stop."""

    def __init__(self, proxy: int, origin: int) -> None:
        self.done: list[Asked] = []
        self.stopped = False
        self._proxy, self._origin = proxy, origin
        self._next = 0

    async def client(self) -> None:
        _, wire = await asyncio.get_running_loop().create_connection(Wire, "127.0.0.1", self._proxy)
        try:
            while not self.stopped:
                number = self._next
                self._next += 1
                method = ("GET", "POST", "PUT", "POST", "DELETE")[number % 5]
                size = 30 if method in ("PUT", "POST") else 0
                ask = Ask(number, method, 0, size, False, "none", False, 0.0)
                began = time.monotonic()
                wire.transport.write(ask.head(self._origin) + ask.wire_body())
                async with asyncio.timeout(15):
                    answer = await read_answer(wire, ask, self._origin)
                self.done.append(Asked(ask, began, time.monotonic(), answer))
                assert answer.goes_on, answer
        finally:
            wire.transport.close()


def log_of(file: Path) -> dict[int, int]:
    """Request -> its place on its connection, of those that an origin has read; each once."""
    lines = [line.split() for line in file.read_text().splitlines()]
    seen = {int(number): int(nth) for number, _, nth in lines}
    assert len(seen) == len(lines), "an origin got a request twice"
    return seen


@pytest.fixture
def stack():
    """What the test has to close, closed in reverse order."""
    with contextlib.ExitStack() as stack:
        yield stack


async def test_a_killed_origin_that_comes_back_costs_its_waiting_requests_only_time(
    tmp_path: Path, stack: contextlib.ExitStack
) -> None:
    """SIGKILL under load, listening again within 0.5 s: only requests that were in flight at the
    kill may fail, and with 502; those that waited get their answer."""
    port = free_port()
    logs = [tmp_path / "first.log", tmp_path / "second.log"]
    origins = []
    for log, spare in zip(logs, ([], ["--spare"]), strict=True):
        args = ["--port", port, "--hold", HOLD, "--log", log, *spare]
        process = Process(
            python("tests.chaos.calm", *args), Path(f"{log}.out"), ROOT, warmproxy_environ()
        )
        stack.callback(process.stop)
        process.until(lambda p=process: "ready" in p.log())
        origins.append(process)
    first, second = origins
    first.until(lambda: "listening" in first.log())
    upstream = {"url": f"http://127.0.0.1:{port}", "warm": 4, "max_connections": CONNECTIONS}
    proxy = Warmproxy(tmp_path, config={"upstream": [upstream]})
    stack.callback(proxy.stop)
    wait_warm(proxy, upstream["url"], 4)

    load = Load(proxy.port, port)
    clients = [asyncio.ensure_future(load.client()) for _ in range(CLIENTS)]
    enough = 2 * CLIENTS
    await asyncio.to_thread(eventually, lambda: len(load.done) >= enough, 20.0)
    killed = time.monotonic()
    first.signal(signal.SIGKILL)
    await asyncio.to_thread(at, killed + DOWN)
    second.signal(signal.SIGUSR1)
    await asyncio.to_thread(eventually, lambda: "listening" in second.log())
    down = time.monotonic() - killed
    until = len(load.done) + enough
    await asyncio.to_thread(eventually, lambda: len(load.done) >= until, 20.0)
    load.stopped = True
    await asyncio.gather(*clients)
    assert down < 0.5, "this machine was too slow for the test to say anything"

    before, after = log_of(logs[0]), log_of(logs[1])
    failed = [one for one in load.done if one.answer.outcome != "whole"]
    for one in failed:
        said = one.answer.fields.get("proxy-status", "")
        assert one.answer.status == 502, one
        assert "error=connection_terminated" in said, one
        assert "before it answered" in said, one
        assert one.at < killed, one
        # a request that may be repeated was, unless the connection that died was a fresh one
        assert one.ask.method == "POST" or before.get(one.ask.number, 1) == 1, one
    # beside those in flight, dials that the dying listener's backlog still took
    assert len(failed) <= 2 * CONNECTIONS, failed
    posts = {one.ask.number for one in load.done if one.ask.method == "POST"}
    assert not posts & before.keys() & after.keys(), "a POST was sent twice"
    waited = [
        one
        for one in load.done
        if one.at < killed and one.ended > killed and one.ask.number not in before
    ]
    assert len(waited) >= CLIENTS - 3 * CONNECTIONS, "there was no load to speak of"
    slowest = max(one.ended - one.at for one in load.done)
    assert slowest < CLIENTS / CONNECTIONS * HOLD * 2 + down + 1.5
    assert proxy.count("warmproxy_retries_total", reason="dial") >= 1
    assert Counter(one.answer.outcome for one in load.done)["foreign"] == 0
