"""Requests that are to arrive when an idle connection is being closed, many lanes side by side.

A lane is one port of the origin and the proxy's pool for it. Its shots come one after the other:
ask the origin when one of the lane's connections will be closed, and let a request arrive then.
"""

import asyncio
import json
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rig.client import Address

AIM = 0.004
"""Seconds around the close in which a request is to arrive; the rest of the 5 ms is for noise."""
HASTE = 0.03
"""Seconds beside the round trips that a shot needs to be prepared."""
ANSWER_WITHIN = 10.0


@dataclass(frozen=True)
class Kind:
    """What is raced: a POST with the close of connections that never carried a request, or a GET,
    which takes used ones, with the close of one that did."""

    used: bool
    jitter: float

    @property
    def method(self) -> str:
        return "GET" if self.used else "POST"


POST = Kind(used=False, jitter=0.0)


@dataclass
class Shot:
    kind: Kind
    learned: bool
    name: str
    closes_at: float
    asked: float = 0.0
    status: int = 0
    accepted: float = 0.0
    """When the origin had the connection that served it."""
    error: str = ""
    arrivals: list[tuple[float, bool]] = field(default_factory=list)
    """When it came to the origin, each time, and whether it was served."""


@dataclass
class Track:
    """Where the lanes of one phase run."""

    proxy: Address
    origin: str
    control: Address
    one_way: float
    learned: bool
    shots: list[Shot] = field(default_factory=list)

    async def lane(self, kind: Kind, port: int, count: int) -> None:
        for _ in range(count):
            closes_at = await self.next_close(kind, port)
            shot = Shot(kind, self.learned, f"{port}-{time.monotonic_ns()}", closes_at)
            aim = closes_at + random.uniform(-AIM, AIM) - self.one_way
            await self.shoot(shot, port, aim)
            self.shots.append(shot)

    async def next_close(self, kind: Kind, port: int) -> float:
        """When one of the port's connections of this kind will be closed, and not too soon."""
        while True:
            told = json.loads((await self.ask(self.control, "GET", f"/port/{port}", ""))[1])
            soonest = time.monotonic() + 2 * self.one_way + HASTE
            fit = [at for used, at in told if used == kind.used and at > soonest]
            if fit:
                return random.choice(fit)
            if kind.used:
                await self.use(port)
            await asyncio.sleep(HASTE)

    async def use(self, port: int) -> None:
        """A request that leaves a used connection behind: a POST, which takes another."""
        await self.shoot(Shot(POST, self.learned, f"{port}-use", 0.0), port, 0.0)

    async def shoot(self, shot: Shot, port: int, at: float) -> None:
        method = shot.kind.method
        url = f"http://{self.origin}:{port}/{shot.name}"
        body = shot.name if method == "POST" else ""
        try:
            async with asyncio.timeout(ANSWER_WITHIN + max(0.0, at - time.monotonic())):
                head, _, shot.asked = await self.ask_at(self.proxy, method, url, body, at)
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            shot.error = repr(error)
            return
        first, *lines = head.decode("latin-1").split("\r\n")
        shot.status = int(first.split(" ")[1])
        fields = dict(line.lower().split(": ", 1) for line in lines if ": " in line)
        shot.accepted = float(fields.get("x-accepted", "inf"))
        shot.error = "" if shot.status == 200 else fields.get("proxy-status", first)

    async def ask(self, address: Address, method: str, url: str, body: str) -> tuple[bytes, bytes]:
        head, answer, _ = await self.ask_at(address, method, url, body, 0.0)
        return head, answer

    async def ask_at(
        self, address: Address, method: str, url: str, body: str, at: float
    ) -> tuple[bytes, bytes, float]:
        """Head and body of the answer, and when it was asked for: at that moment, on a connection
        that is open before."""
        reader, writer = await asyncio.open_connection(*address)
        try:
            await asyncio.sleep(at - time.monotonic())
            asked = time.monotonic()
            length = f"Content-Length: {len(body)}\r\n" if body else ""
            writer.write(f"{method} {url} HTTP/1.1\r\nHost: x\r\n{length}\r\n{body}".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            sized = head.lower().partition(b"content-length: ")[2]
            answer = await reader.readexactly(int(sized.partition(b"\r\n")[0] or 0))
        finally:
            writer.close()
        return head, answer, asked

    async def note_arrivals(self, shots: Iterable[Shot]) -> None:
        """Ask the origin what came of the shots."""
        told = json.loads((await self.ask(self.control, "GET", "/arrivals", ""))[1])
        for shot in shots:
            shot.arrivals = told.get(shot.name, [])


@dataclass(frozen=True)
class Result:
    """What came of the shots of one kind in one phase."""

    shots: int
    near: float
    """Share of those whose request arrived within 5 ms of the close, of those that arrived."""
    crossed: int
    """Requests that came to a connection after its close."""
    failed: int
    wrongly: int
    """Failed with anything but a 502 that says the connection was closed."""
    doubled: int
    """Of those that must not be repeated: came to the origin more than once."""
    hits: float
    """Share of the answered ones whose connection was open before they were asked."""


def summarise(shots: Sequence[Shot], one_way: float) -> Result:
    came = [(shot, shot.arrivals[0][0]) for shot in shots if shot.arrivals]
    failed = [shot for shot in shots if shot.error]
    answered = [shot for shot in shots if not shot.error]
    hits = sum(shot.accepted - one_way <= shot.asked for shot in answered)
    return Result(
        shots=len(shots),
        near=sum(abs(at - shot.closes_at) <= 0.005 for shot, at in came) / max(1, len(came)),
        crossed=sum(not served for shot in shots for _, served in shot.arrivals),
        failed=len(failed),
        wrongly=sum(s.status != 502 or "connection_terminated" not in s.error for s in failed),
        doubled=sum(len(shot.arrivals) > 1 and shot.kind.method == "POST" for shot in shots),
        hits=hits / max(1, len(answered)),
    )
